"""Feeds: the same batches and the same weights wherever the examples are; changed files are one clear line."""

from __future__ import annotations

import itertools
import os
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from remint.data import shards
from remint.data.arrays import Array, Dataset, ShardedArray, Split
from remint.distributed.machine import deterministic
from remint.distributed.world import SINGLE_PROCESS
from remint.errors import IntegrityError, ResourceError, SettingsError, StorageError
from remint.settings.recipe import TrainingSettings
from remint.training import feed
from remint.training.feed import Files, Streamed, open_feed
from tests.support import training_cases as cases

SETTINGS = TrainingSettings(batch_size=4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    with deterministic(threads=1):
        yield cases.prepare(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def sharded(tmp_path: Path) -> ShardedArray:
    """30 rows of 3 numbers, each its own, in shards of 7, 13 and 10."""
    x_ND = np.arange(90, dtype=np.float32).reshape(30, 3)
    for number, part in enumerate(np.split(x_ND, [7, 20])):
        np.save(tmp_path / f"train-{number:05d}.npy", part)
    return ShardedArray([np.load(tmp_path / f"train-{number:05d}.npy", mmap_mode="r") for number in range(3)])


def test_rows_are_read_from_all_shards_in_any_order(sharded: ShardedArray) -> None:
    places = np.array([29, 0, 6, 7, 19, 20, 20, 3])
    with ExitStack() as opened:
        assert np.array_equal(Files(sharded, opened).read(places), np.asarray(sharded)[places])  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["gan", "vae-conditional", "flow"])
@pytest.mark.parametrize("mode", ["host", "mapped"])
def test_each_mode_gives_the_same_weights(
    mode: str, case: str, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[str] = []
    real = feed._mode
    monkeypatch.setattr(feed, "_mode", lambda *arguments: chosen.append(real(*arguments)) or streamed(chosen[-1]))
    in_memory = cases.train_into(cases.recipe(case, data="device"), tiny, tmp_path / "device")
    other = cases.train_into(cases.recipe(case, data=mode), tiny, tmp_path / mode)
    assert chosen == ["device", mode]
    assert other.weights_sha256 == in_memory.weights_sha256
    curves = [(tmp_path / name / "out/curve.csv").read_bytes() for name in ("device", mode)]
    assert curves[0] == curves[1]


def streamed(mode: str) -> str:
    """Read from the host in a thread on the CPU too, as on a GPU."""
    return "host, streamed" if mode == "host" else mode


def batches(split: Split, mode: str, steps: list[int]) -> list[Any]:
    settings = SETTINGS.model_copy(update={"data": mode})
    with open_feed(split, settings, SINGLE_PROCESS) as opened:
        return [opened.take(step, feed.batch_indices(len(split), 4, 0, step)) for step in steps]


@pytest.mark.parametrize("steps", [[0, 1, 2, 3], [5, 6, 3, 4, 5], [0, 0, 0], [9, 2, 100, 3]])
def test_steps_may_be_made_again_or_jump(steps: list[int], sharded: Array) -> None:
    split = Split(sharded, np.arange(30))
    for (x, y), (x_expected, y_expected) in zip(batches(split, "mapped", steps), batches(split, "device", steps), strict=True):
        assert torch.equal(x, x_expected) and torch.equal(y, y_expected)


def test_batches_are_read_ahead_and_no_more_than_a_few() -> None:
    read: list[float] = []
    with ThreadPoolExecutor(1) as thread:

        def rows(places: Any) -> Any:
            read.append(float(places[0]))
            return places.astype(np.float32)

        stream = Streamed(rows, None, 100, lambda step: np.array([step]), lambda: None, torch.device("cpu"), thread)
        for step in range(10):
            stream.take(step, np.array([step]))
            assert len(stream._coming) <= feed.AHEAD
    assert read == list(map(float, range(10 + feed.AHEAD))), "each batch is read once"


@pytest.mark.parametrize(
    ("limit", "mode", "expected"),
    [("1MiB", "auto", "device"), ("1K", "auto", "mapped"), ("1K", "device", "device"), ("1MiB", "mapped", "mapped")],
)
def test_auto_maps_what_does_not_fit(
    limit: str, mode: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((100, 4), np.float32))
    monkeypatch.setenv("REMINT_MEMORY", limit)
    assert feed._mode(np.load(tmp_path / "x.npy", mmap_mode="r"), mode, SINGLE_PROCESS) == expected


def test_ranks_of_one_machine_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.zeros((100, 4), np.float32))
    monkeypatch.setenv("REMINT_MEMORY", "2K")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert feed._mode(np.load(tmp_path / "x.npy", mmap_mode="r"), "auto", SINGLE_PROCESS) == "mapped"


def test_a_limit_below_the_batches_that_are_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.zeros((100, 30_000), np.float32))
    monkeypatch.setenv("REMINT_MEMORY", "2MiB")
    split = Split(np.load(tmp_path / "x.npy", mmap_mode="r"), None)
    expected = r"^REMINT_MEMORY: reading 20 examples \(5 batches\) from disk needs 3 MiB at once: set it to at least that$"
    with pytest.raises(SettingsError, match=expected), open_feed(split, SETTINGS, SINGLE_PROCESS):
        pass


@pytest.mark.parametrize("how", ["shorter", "other bytes"])
def test_changed_files_end_the_training_with_one_line(how: str, sharded: Array, tmp_path: Path) -> None:
    path = tmp_path / "train-00001.npy"
    with open_feed(Split(sharded, None), SETTINGS.model_copy(update={"data": "mapped"}), SINGLE_PROCESS) as opened:
        opened.check()
        if how == "shorter":
            os.truncate(path, 200)
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"\0")
            os.utime(path, ns=(1, 1))
        with pytest.raises(IntegrityError, match=r"train-00001.npy was changed while a training read it: prepare the data again"):
            for step in itertools.count() if how == "shorter" else ():
                opened.take(step, feed.batch_indices(30, 4, 0, step))
            opened.check()


def test_a_disk_that_cannot_be_read_is_one_line(sharded: ShardedArray) -> None:
    """The first page of a process's memory is a file that opens and gives EIO."""
    with ExitStack() as opened:
        files = Files(sharded, opened)
        files.files[1] = opened.enter_context(Path("/proc/self/mem").open("rb", buffering=0))
        expected = r"^/proc/self/mem cannot be read \(Input/output error\): check the disk, and run again$"
        with pytest.raises(StorageError, match=expected):
            files.read(np.array([0, 8]))


def test_a_folder_that_vanishes_does_not_stop_a_training(sharded: Array, tmp_path: Path) -> None:
    with open_feed(Split(sharded, None), SETTINGS.model_copy(update={"data": "mapped"}), SINGLE_PROCESS) as opened:
        for path in tmp_path.glob("*.npy"):
            path.unlink()
        x_BX, _ = opened.take(0, np.array([3, 29]))
        assert x_BX.tolist() == [[9.0, 10.0, 11.0], [87.0, 88.0, 89.0]]
        opened.check()


@pytest.mark.parametrize(
    ("limit", "mode", "why"), [("1G", "mapped", "training.data is mapped"), ("1K", "auto", "it does not fit into REMINT_MEMORY")]
)
def test_a_run_that_reads_from_disk_says_why(
    limit: str, mode: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1000, 4), np.float32))
    monkeypatch.setenv("REMINT_MEMORY", limit)
    settings = SETTINGS.model_copy(update={"data": mode})
    with open_feed(Split(np.load(tmp_path / "x.npy", mmap_mode="r"), None), settings, SINGLE_PROCESS):
        assert capsys.readouterr().err == f"reads_from_disk size=1.6e-05 GB message={why}\n"


def test_no_file_is_closed_while_it_is_read(sharded: ShardedArray, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[OSError] = []
    read = os.preadv

    def slow(*arguments: Any) -> int:
        time.sleep(0.01)
        try:
            return read(*arguments)
        except OSError as error:
            failed.append(error)
            raise

    monkeypatch.setattr(os, "preadv", slow)
    batches(Split(sharded, None), "mapped", [0])  # type: ignore[arg-type]
    assert not failed


@pytest.fixture
def few_files() -> Iterator[None]:
    """Let this process open 40 more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (sum(1 for _ in Path("/dev/fd").iterdir()) + 40, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
def test_a_split_of_more_shards_than_open_files_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WHOLE", "LEAST", "MOST"):
        monkeypatch.setattr(shards, name, 1)
    dataset = cases.prepare(tmp_path)
    assert isinstance(dataset.train.x_NX, ShardedArray) and len(dataset.train.x_NX.shards) == len(dataset.train) > 40
    (x_BX, _), *_ = batches(dataset.train, "mapped", [0])
    places = feed.batch_indices(len(dataset.train), 4, 0, 0)
    assert np.array_equal(x_BX, dataset.train.x_NX[places])


def test_more_shards_than_a_process_may_ever_open_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases.prepare(tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 200))
    expected = r"^the dataset needs \d+ open files, and the limit is 200: raise it \(ulimit -Hn \d+\)$"
    with pytest.raises(ResourceError, match=expected):
        cases.load(tmp_path)
