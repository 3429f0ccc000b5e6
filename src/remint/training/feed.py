"""Feed of a training: the examples of the training split, batch by batch. ``training.data`` says where they are meanwhile.

    device   in the memory of the device; of the CPU where there is no GPU
    host     in the memory of the host
    mapped   on disk; memory does not grow with them
    auto     device if they fit, else host, else mapped

What fits: half of a GPU's free memory; on the host REMINT_MEMORY, divided among the processes. A thread reads the next batches
from host or disk during a step. The order of the examples, and so the weights, are the same in each mode.

Shapes: N examples, B this process's part of the batch, X the axes of one example.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from remint.data.arrays import Array, ShardedArray, Split
from remint.data.blocks import check_memory, memory_limit
from remint.data.sampler import batch_indices
from remint.distributed.world import World, to_device
from remint.errors import IntegrityError
from remint.runtime.events import emit
from remint.settings.recipe import TrainingSettings

AHEAD = 4  # batches that are read before their step
GPU_SHARE = 0.5  # of a GPU's free memory that the examples may take

Places = np.ndarray[Any, Any]


class Feed(Protocol):
    """Examples by their places in the training split."""

    def __len__(self) -> int: ...

    def take(self, step: int, place_B: Places) -> tuple[Tensor, Tensor | None]:
        """Return x_BX, of any dtype, and y_B of these places, on the device. ``step``: steps already done."""
        ...

    def check(self) -> None:
        """Raise IntegrityError if the files of the split have changed since the feed was opened."""
        ...


class InMemory:
    """Feed from tensors on the device."""

    def __init__(self, x_NX: Tensor, y_N: Tensor | None) -> None:
        self.x_NX, self.y_N = x_NX, y_N

    def __len__(self) -> int:
        return len(self.x_NX)

    def take(self, step: int, place_B: Places) -> tuple[Tensor, Tensor | None]:
        chosen_B = to_device(torch.tensor(place_B), self.x_NX.device)
        return self.x_NX.index_select(0, chosen_B), None if self.y_N is None else self.y_N.index_select(0, chosen_B)

    def check(self) -> None:
        return


class Streamed:
    """Feed that reads each batch, in a thread, up to AHEAD steps before it is needed.

    ``read``: examples at some places; ``places``: the places of a step; ``check``: as in Feed.
    """

    def __init__(
        self,
        read: Callable[[Places], Array],
        y_N: Array | None,
        count: int,
        places: Callable[[int], Places],
        check: Callable[[], None],
        device: torch.device,
        thread: ThreadPoolExecutor,
    ) -> None:
        self._read, self._y_N, self._count, self._places, self.check = read, y_N, count, places, check
        self._device, self._thread = device, thread
        self._coming: dict[int, Future[tuple[Tensor, Tensor | None]]] = {}

    def __len__(self) -> int:
        return self._count

    def take(self, step: int, place_B: Places) -> tuple[Tensor, Tensor | None]:
        wanted = range(step, step + 1 + AHEAD)
        for other in self._coming.keys() - set(wanted):  # before a step that is made again
            self._coming.pop(other).cancel()
        for each in wanted:
            if each not in self._coming:
                self._coming[each] = self._thread.submit(self._make, place_B if each == step else self._places(each))
        x_BX, y_B = self._coming.pop(step).result()
        return to_device(x_BX, self._device), None if y_B is None else to_device(y_B, self._device)

    def _make(self, place_B: Places) -> tuple[Tensor, Tensor | None]:
        return torch.from_numpy(self._read(place_B)), None if self._y_N is None else torch.from_numpy(self._y_N[place_B])


class Files:
    """Rows of memory-mapped arrays, read by system calls.

    A mapping would kill the process if a file became shorter, and its pages would count as memory of this process.
    """

    def __init__(self, x_NX: Array, opened: ExitStack) -> None:
        shards: Any = x_NX.shards if isinstance(x_NX, ShardedArray) else (x_NX,)
        self.ends = np.cumsum([len(shard) for shard in shards])
        self.shape, self.dtype = x_NX.shape[1:], x_NX.dtype
        self.row = int(np.prod(self.shape)) * x_NX.dtype.itemsize  # bytes
        self.paths = [str(shard.filename) for shard in shards]
        self.starts = [int(shard.offset) for shard in shards]
        self.files = [os.open(path, os.O_RDONLY) for path in self.paths]
        for file in self.files:
            opened.callback(os.close, file)
        self.known = [_state(file) for file in self.files]

    def read(self, place_B: Places) -> Array:
        x_BX = np.empty((len(place_B), *self.shape), self.dtype)
        rows: Any = memoryview(x_BX.reshape(-1).view(np.uint8))  # type: ignore[arg-type, unused-ignore]
        shard_B = np.searchsorted(self.ends, place_B, side="right")
        for index, (place, shard) in enumerate(zip(place_B.tolist(), shard_B.tolist(), strict=True)):
            before = int(self.ends[shard - 1]) if shard else 0
            at = self.starts[shard] + (place - before) * self.row
            if os.preadv(self.files[shard], [rows[index * self.row : (index + 1) * self.row]], at) != self.row:
                raise _changed(self.paths[shard])
        return x_BX

    def check(self) -> None:
        for path, file, known in zip(self.paths, self.files, self.known, strict=True):
            if _state(file) != known:
                raise _changed(path)


def _state(file: int) -> tuple[int, int]:
    found = os.fstat(file)
    return found.st_size, found.st_mtime_ns


def _changed(path: str) -> IntegrityError:
    return IntegrityError(f"{path} was changed while a training read it: prepare the data again (dvc repro), and run again")


@contextmanager
def open_feed(split: Split, settings: TrainingSettings, world: World) -> Iterator[Feed]:
    """Yield the feed of the training split. Emits reads_from_disk if it is mapped.

    Raises SettingsError if the batches that are read ahead exceed REMINT_MEMORY.
    """
    x_NX, y_N = split.x_NX, split.y_N
    mode = _mode(x_NX, settings.data, world)
    if mode == "device" or (mode == "host" and world.device.type == "cpu"):  # then host and device are the same
        yield InMemory(*on_device(x_NX, y_N, world.device))
        return
    with ExitStack() as opened:
        read: Callable[[Places], Array]
        if mode == "host":
            read, check = np.array(x_NX).__getitem__, _nothing
        else:
            batches = (AHEAD + 1) * (settings.batch_size // world.size)
            check_memory(batches * x_NX.nbytes // len(x_NX), f"reading {batches:,} examples ({AHEAD + 1} batches) from disk")
            files = Files(x_NX, opened)
            read, check = files.read, files.check
            if world.leads:
                why = "training.data is mapped" if settings.data == "mapped" else "it does not fit into REMINT_MEMORY"
                emit("reads_from_disk", size=f"{x_NX.nbytes / 1e9:.3g} GB", message=why)
        # After the files, because it must end before they are closed.
        thread = opened.enter_context(ThreadPoolExecutor(1, thread_name_prefix="feed"))
        rows = world.rows(settings.batch_size)

        def places(step: int) -> Places:
            return batch_indices(len(x_NX), settings.batch_size, settings.seed, step)[rows]

        yield Streamed(read, None if y_N is None else np.array(y_N), len(x_NX), places, check, world.device, thread)


def _nothing() -> None:
    return


def _mode(x_NX: Array, mode: str, world: World) -> str:
    """Return the mode: that of the settings, or for auto the first one that fits."""
    if mode == "auto":
        on_host = memory_limit() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        on_gpu = GPU_SHARE * torch.cuda.mem_get_info(world.device)[0] if world.device.type == "cuda" else on_host
        mode = "device" if x_NX.nbytes <= on_gpu else "host" if x_NX.nbytes <= on_host else "mapped"
    mapped = isinstance(x_NX, (np.memmap, ShardedArray))
    return "host" if mode == "mapped" and not mapped else mode


def on_device(x_NX: Array, y_N: Array | None, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Copy examples and labels to the device."""
    return torch.tensor(np.asarray(x_NX), device=device), None if y_N is None else torch.tensor(y_N, device=device)


def evenly_spaced(x_NX: Sequence[Any] | Array, count: int) -> Array:
    """Return ``count`` evenly spaced examples; all of them, in order, if there are no more."""
    return np.asarray(x_NX[np.linspace(0, len(x_NX) - 1, min(count, len(x_NX))).round().astype(np.int64)])  # type: ignore[call-overload, unused-ignore]
