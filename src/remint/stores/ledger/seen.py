"""Held-out examples that decisions of the gate have seen: a sample of their digests, in the ledger's database.

The sample is a function of the digests: those that a power of 2 divides, so many that about MOST remain of one set. Samples of
two sets can then be compared: of the coarser of the two. A row of the ledger names the SHA-256 of what it added.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa

from remint.stores.ledger.schema import open_database
from remint.stores.ledger.schema import seen_examples as _rows

Array = np.ndarray[Any, Any]
MOST = 2000  # examples of one set in the sample


class SeenExamples:
    """Seen examples at one database address. Raises the errors of schema.open_database."""

    def __init__(self, url: str) -> None:
        self._database = open_database(url)

    def of(self, model: str) -> dict[int, str]:
        """Return what each row of the ledger saw first, by its sequence."""
        query = sa.select(_rows.c.sequence, _rows.c.examples).where(_rows.c.model == model).order_by(_rows.c.sequence)
        return {fields["sequence"]: fields["examples"] for fields in self._database.rows(query)}


def insert(connection: sa.Connection, model: str, sequence: int, examples: str) -> None:
    connection.execute(_rows.insert().values(model=model, sequence=sequence, examples=examples))


def ages(digest_N: Array, seen: Mapping[int, str]) -> tuple[dict[int, float], str]:
    """Return by row the share of examples that it saw first, and the text of those in the sample that none saw.

    ``digest_N``: of the examples, unsigned 64 bits; ``seen``: as ``SeenExamples.of`` returns it. Where the samples do not meet,
    all count as seen in the first row.
    """
    all_N = np.unique(np.asarray(digest_N, dtype=np.uint64))
    bits = max(0, math.ceil(math.log2(max(1, all_N.size) / MOST)))
    parts = {sequence: _parse(text) for sequence, text in seen.items()}
    common_N = _sampled(all_N, max([bits, *(part_bits for part_bits, _ in parts.values())]))
    known_M = np.unique(np.concatenate([np.zeros(0, np.uint64), *(part_M for _, part_M in parts.values())]))
    sample_N = _sampled(all_N, bits)
    new_N = sample_N[~np.isin(sample_N, known_M)]
    if parts and not common_N.size:
        shares = {min(parts): 1.0}
    else:
        counts = {sequence: int(np.isin(common_N, part_M).sum()) for sequence, (_, part_M) in parts.items()}
        shares = {sequence: count / common_N.size for sequence, count in counts.items() if count}
    return shares, f"{bits} {' '.join(f'{each:x}' for each in new_N.tolist())}" if new_N.size else ""


def sha256(examples: str) -> str:
    """Return the digest of such a text, "" of none."""
    return hashlib.sha256(examples.encode()).hexdigest() if examples else ""


def _sampled(digest_N: Array, bits: int) -> Array:
    return np.asarray(digest_N[digest_N % np.uint64(2**bits) == 0])


def _parse(text: str) -> tuple[int, Array]:
    bits, *digests = text.split()
    return int(bits), np.array([int(each, 16) for each in digests], dtype=np.uint64)
