"""Arrays that are read in blocks of examples, so that preparation takes the same memory for any number of examples.

REMINT_MEMORY, such as 512MiB or 2GiB, bounds the bytes of the examples that are in memory at once. The default is 1GiB. It
changes no result, so it is no setting of params.yaml.

Shapes: N examples, B examples of one block, X the axes of one.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from remint.errors import DataError, SettingsError

MEMORY = "REMINT_MEMORY"
DEFAULT = "1GiB"
UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}  # powers of 2
COPIES = 32  # a conversion needs at most so many times the bytes of its block: uint16 in double precision, with masks
LARGEST_BLOCK = 2 << 20  # bytes; larger blocks are not read faster

Array = np.ndarray[Any, Any]


def memory_limit() -> int:
    """Return REMINT_MEMORY in bytes. Raises SettingsError if it is no size."""
    return size_of(MEMORY, DEFAULT)


def size_of(variable: str, default: str) -> int:
    """Return the size that a variable names, in bytes. Raises SettingsError if it is no size."""
    text = os.environ.get(variable) or default
    match = re.fullmatch(r"(\d{1,9}) ?([KMGT])(i?B)?", text.strip())
    if match is None:
        raise SettingsError(f"{variable}: expected a size such as 512MiB or 2GiB, not {text[:40]!r}")
    return int(match[1]) << UNITS[match[2]]


def check_memory(needed: int, what: str) -> None:
    """Raise SettingsError if ``what``, which needs so many bytes at once, exceeds the memory limit."""
    if needed > memory_limit():
        raise SettingsError(f"{MEMORY}: {what} needs {math.ceil(needed / (1 << 20)):,} MiB at once: set it to at least that")


def check_example(shape: Sequence[int], size: int) -> None:
    """Raise SettingsError if the memory limit is below one example of this shape, which has ``size`` bytes."""
    check_memory(COPIES * size, f"one example of {' x '.join(map(str, shape))} numbers")


@dataclass(frozen=True, eq=False)
class Blocks:
    """Array (N, X) that is read block by block, from the first example to the last, any number of times."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[int], Iterator[Array]]  # blocks of at most so many examples
    widest: int  # bytes of one example, before or after its conversion, whichever are more

    @classmethod
    def of(cls, x_NX: Array | Blocks) -> Blocks:
        """Return an array as blocks of itself."""
        if isinstance(x_NX, Blocks):
            return x_NX

        def read(rows: int) -> Iterator[Array]:
            return (x_NX[at : at + rows] for at in range(0, len(x_NX), rows))

        return cls(x_NX.shape, x_NX.dtype, read, example_bytes(x_NX.shape, x_NX.dtype))

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Array]:
        """Yield the blocks, in the memory limit. Raises SettingsError if it is below one example."""
        check_example(self.shape[1:], self.widest)
        return self.read(max(1, min(LARGEST_BLOCK, memory_limit() // COPIES) // max(1, self.widest)))

    def examples(self) -> Iterator[Array]:
        """Yield each example (X)."""
        for x_BX in self:
            yield from x_BX

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def map(self, convert: Callable[[Array], Array]) -> Blocks:
        """Return the blocks as ``convert`` returns them. It converts each example alone, whatever block it is in."""
        like = convert(np.empty((0, *self.shape[1:]), self.dtype))

        def read(rows: int) -> Iterator[Array]:
            return map(convert, self.read(rows))

        widest = max(self.widest, example_bytes(like.shape, like.dtype))
        return Blocks((len(self), *like.shape[1:]), like.dtype, read, widest)

    def min(self) -> Any:
        return min(x_BX.min() for x_BX in self)

    def max(self) -> Any:
        return max(x_BX.max() for x_BX in self)


def example_bytes(shape: Sequence[int], dtype: np.dtype[Any]) -> int:
    return math.prod(shape[1:]) * dtype.itemsize


def concatenate(parts: Sequence[Blocks]) -> Blocks:
    """Return the examples of all parts, which have one form, as one array."""

    def read(rows: int) -> Iterator[Array]:
        return (x_BX for part in parts for x_BX in part.read(rows))

    first = parts[0]
    return Blocks((sum(map(len, parts)), *first.shape[1:]), first.dtype, read, max(part.widest for part in parts))


def stored(
    file: Path | BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int = 0, order_N: Array | None = None
) -> Blocks:
    """Return the array whose bytes begin at ``offset`` of a file. ``order_N``: place in the file of each example.

    Blocks are read and not mapped: mapped pages would count as memory of this process.
    """
    size = example_bytes(shape, dtype)

    def read(rows: int) -> Iterator[Array]:
        opened = file.open("rb") if isinstance(file, Path) else nullcontext(file)
        if not isinstance(file, Path):
            file.flush()
        with cast(AbstractContextManager[BinaryIO], opened) as stream:
            for at in range(0, shape[0], rows):
                x_BX = np.empty((min(rows, shape[0] - at), *shape[1:]), dtype)
                if order_N is None:
                    fill(x_BX, stream, offset + at * size)
                else:
                    for place, x_X in zip(order_N[at : at + rows].tolist(), x_BX, strict=True):
                        fill(x_X, stream, offset + place * size)
                yield x_BX

    return Blocks(shape, dtype, read, size)


def fill(x: Array, stream: BinaryIO, offset: int) -> None:
    """Fill an array with the bytes at ``offset``. Raises DataError if the file has become too short."""
    free = memoryview(cast(Any, x.reshape(-1).view(np.uint8)))
    while free:
        count = os.preadv(stream.fileno(), [free], offset)
        if not count:
            raise DataError(f"{stream.name} became shorter while it was read: run again once it is complete")
        free, offset = free[count:], offset + count


class Spool:
    """Temporary files without a name, beside the output. They end with the process, also if it is killed."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self._stack = folder, ExitStack()

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def file(self) -> BinaryIO:
        return cast(BinaryIO, self._stack.enter_context(tempfile.TemporaryFile(dir=self.folder)))

    def keep(self, path: Path) -> BinaryIO:
        """Return a file as an open one, which stays readable after its name is removed."""
        return self._stack.enter_context(path.open("rb"))
