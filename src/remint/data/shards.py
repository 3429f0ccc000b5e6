"""Writer of arrays of examples: one .npy file, or, of a large array, several: its shards.

    NAME.npy           an array of at most WHOLE bytes
    NAME-00000.npy ..  a larger one, in shards of LEAST to MOST bytes

A shard ends after an example whose CRC-32 is a multiple of some number. Therefore the end of a shard depends on the examples
in it only. Appended, inserted or removed examples change the shards that they fall into, and the others keep their bytes: DVC
stores and pushes only files that changed. (Idea: content-defined chunking; Muthitacharoen et al., LBFS, 2001.)

Shapes: B examples of one block, X the axes of one.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from remint.data.blocks import example_bytes

WHOLE = 128 << 20  # bytes
LEAST, MOST = 16 << 20, 64 << 20  # bytes of a shard, but the last; LEAST is also the mean distance of ends beyond LEAST

Array = np.ndarray[Any, Any]


def write_header(stream: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Write the header of a .npy file, as np.save does. Its length does not depend on the number of examples."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)


class Writer:
    """Write an array of a known ``shape`` (N, X) block by block. ``close`` it at the end."""

    def __init__(self, folder: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.folder, self.name, self.shape, self.dtype = folder, name, shape, dtype
        size = max(1, example_bytes(shape, dtype))
        self.whole = shape[0] * size <= WHOLE
        self.least, self.most = max(1, math.ceil(LEAST / size)), max(1, MOST // size)  # examples
        self.names: list[str] = []  # of the files
        self.stream: BinaryIO | None = None
        self.count = 0  # examples in the open file

    def append(self, x_BX: Array) -> None:
        x_BX = np.ascontiguousarray(x_BX, dtype=self.dtype)
        while len(x_BX):
            end = self._end(x_BX)
            until = end or len(x_BX)
            self._write(x_BX[:until])
            if end:
                self.close()
            x_BX = x_BX[until:]

    def close(self) -> None:
        """End the open file, if there is one."""
        if self.stream is not None:
            if not self.whole:
                self.stream.seek(0)
                write_header(self.stream, (self.count, *self.shape[1:]), self.dtype)
            self.stream.close()
            self.stream, self.count = None, 0

    def _end(self, x_BX: Array) -> int:
        """Return how many examples of the block belong to the open shard; 0 if it does not end in them."""
        if self.whole:
            return 0
        for place in range(max(0, self.least - self.count - 1), len(x_BX)):
            if self.count + place + 1 >= self.most or zlib.crc32(x_BX[place]) % self.least == 0:
                return place + 1
        return 0

    def _write(self, x_BX: Array) -> None:
        if self.stream is None:
            self.names.append(f"{self.name}.npy" if self.whole else f"{self.name}-{len(self.names):05d}.npy")
            self.stream = (self.folder / self.names[-1]).open("wb")
            write_header(self.stream, self.shape if self.whole else (0, *self.shape[1:]), self.dtype)
        self.stream.write(memoryview(cast(Any, x_BX)).cast("B"))
        self.count += len(x_BX)
