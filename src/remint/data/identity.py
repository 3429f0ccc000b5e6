"""Identity of an example: what it is equal to others by, and its digest.

Examples are read in blocks. Of each only its digest stays in memory; with occurrences also a count for each different one.

Shapes: N examples, X the axes of one: C, H, W of an image, D of a table's row.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from remint.data.blocks import Blocks
from remint.records import Column, DataSpec

ID_SEED = 0  # of ids, which are the same for every seed of the split
MOST = 0.5  # share of rows that equal another row, above which occurrences count

Array = np.ndarray[Any, Any]


def choose_rule(x_NX: Iterable[Array]) -> Literal["content", "occurrence"]:
    """Return the rule of a table: ``occurrence`` if most of its rows (X) equal another row."""
    _, count_K = np.unique(digests(x_NX, ID_SEED, occurrences=False), return_counts=True)
    return "occurrence" if count_K[count_K > 1].sum() > MOST * count_K.sum() else "content"


def digests(x_NX: Iterable[Array], seed: int, *, occurrences: bool) -> Array:
    """Return the first 8 bytes of SHA-256(seed, content) of each example (X), uint64 (N,).

    ``occurrences``: with the number of equal examples before it, if there are any.
    """
    before: Counter[bytes] = Counter()
    digest_N = array("Q")
    for x_X in x_NX:
        state = hashlib.sha256(f"split {seed} {x_X.shape}\n".encode())
        state.update(x_X.tobytes())
        if occurrences:
            key = state.digest()
            if before[key]:
                state.update(f"\noccurrence {before[key]}".encode())
            before[key] += 1
        digest_N.append(int.from_bytes(state.digest()[:8], "big"))
    return np.array(digest_N, dtype=np.uint64)


def text_words(texts: Sequence[str]) -> Array:
    """Return the first 8 bytes of SHA-256 of each text, uint64 (K,)."""
    return np.array([int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") for text in texts], dtype=np.uint64)


def canonical_rows(x_ND: Array, columns: tuple[Column, ...]) -> Array:
    """Return the part of each row that decides its split, uint64 (N, D). Column order and schema do not change it.

    Numbers are in single precision, as models receive them, so rows that are equal for a model get the same split. A
    category is the hash of its text, since its index may change with the schema. Columns are sorted by name.
    """
    order = sorted(range(len(columns)), key=lambda d: columns[d].name)
    return np.stack([_canonical(x_ND[:, d], columns[d]) for d in order], axis=1)


def canonical_examples(x_ND: Blocks | Array, spec: DataSpec) -> Iterator[Array]:
    """Yield the part of each row that decides its split, uint64 (D,)."""
    return Blocks.of(x_ND).map(lambda x_BD: canonical_rows(x_BD, spec.columns)).examples()


def _canonical(x_N: Array, column: Column) -> Array:
    missing_N = np.isnan(x_N)
    if column.numeric:
        with np.errstate(over="ignore"):
            single_N = x_N.astype(np.float32) + np.float32(0.0)  # -0.0 becomes 0.0
        words_N = single_N.view(np.uint32).astype(np.uint64)
    else:
        words_N = text_words(column.categories)[np.where(missing_N, 0, x_N).astype(np.int64)]
    return np.where(missing_N, np.uint64(2**64 - 1), words_N)
