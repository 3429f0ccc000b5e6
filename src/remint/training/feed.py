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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from remint.data.arrays import Array, ShardedArray, Split
from remint.data.blocks import check_memory, example_bytes, fill, memory_limit
from remint.data.sampler import batch_indices
from remint.distributed.world import World, to_device
from remint.errors import DataError, IntegrityError, StorageError
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
        self.array = x_NX if isinstance(x_NX, ShardedArray) else ShardedArray([x_NX])
        shards: Any = self.array.shards  # np.memmap, which knows its file
        self.starts = [int(shard.offset) for shard in shards]
        self.row = example_bytes(self.array.shape, self.array.dtype)
        self.files = [_open(Path(shard.filename), opened) for shard in shards]
        self.known = [_state(file) for file in self.files]

    def read(self, place_B: Places) -> Array:
        x_BX = np.empty((len(place_B), *self.array.shape[1:]), self.array.dtype)
        for x_X, shard, index in zip(x_BX, *self.array.locate(place_B), strict=True):
            file = self.files[shard]
            try:
                fill(x_X, file, self.starts[shard] + int(index) * self.row)
            except DataError as error:  # the file has become shorter
                raise _changed(file) from error
            except OSError as error:  # preadv names no file
                raise StorageError(f"{file.name} cannot be read ({error.strerror}): check the disk, and run again") from error
        return x_BX

    def check(self) -> None:
        for file, known in zip(self.files, self.known, strict=True):
            if _state(file) != known:
                raise _changed(file)


def _open(path: Path, opened: ExitStack) -> FileIO:
    return opened.enter_context(path.open("rb", buffering=0))


def _state(file: FileIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns


def _changed(file: FileIO) -> IntegrityError:
    return IntegrityError(f"{file.name} was changed while a training read it: prepare the data again (dvc repro), and run again")


@contextmanager
def open_feed(split: Split, settings: TrainingSettings, world: World) -> Iterator[Feed]:
    """Yield the feed of the training split. Emits reads_from_disk if it is mapped.

    Raises SettingsError if the batches that are read ahead exceed REMINT_MEMORY.
    """
    x_NX, y_N = split.x_NX, split.y_N
    mode = _mode(x_NX, settings.data, world)
    if mode == "device" or (mode == "host" and world.device.type == "cpu"):  # then host and device are the same
        on_device = partial(torch.tensor, device=world.device)
        yield InMemory(on_device(np.asarray(x_NX)), None if y_N is None else on_device(y_N))
        return
    with ExitStack() as opened:
        read: Callable[[Places], Array]
        if mode == "host":
            read, check = np.array(x_NX).__getitem__, _nothing
        else:
            batches = (AHEAD + 1) * -(-settings.batch_size // world.size)
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
