"""Data larger than memory: blocks and shards change no byte, and appended data add shards."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remint.data import arrays, blocks, shards, snapshots, sources, splits
from remint.data.arrays import ShardedArray
from remint.data.blocks import Blocks, memory_limit
from remint.errors import DataError, IntegrityError, SettingsError, StorageError
from remint.records import DatasetVersion
from remint.settings.dataset import DatasetSettings, ResizeSettings
from tests.support.full_disk import full_disk

FOLDER = DatasetSettings(source="pictures")
Array = np.ndarray[Any, Any]


def draw(folder: Path, names: list[str], size: int = 6) -> None:
    """Write a PNG for each name. The picture is a function of the name."""
    for name in names:
        path = folder / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = list(hashlib.sha256(name.encode()).digest())
        x_HWC = np.random.default_rng(seed).integers(256, size=(size, size, 3), dtype=np.uint8)
        Image.fromarray(x_HWC).save(path)


def prepare(folder: Path, settings: DatasetSettings = FOLDER, name: str = "out") -> DatasetVersion:
    sources.snapshot("x", settings, folder, folder / name / "raw")
    return splits.prepare("x", settings, folder / name / "raw", folder / name / "prepared")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 108-byte pictures: 3 to 12 of them, 6 on average."""
    monkeypatch.setattr(shards, "LEAST", 3 * 108)
    monkeypatch.setattr(shards, "MOST", 12 * 108)
    for module in (shards, snapshots):
        monkeypatch.setattr(module, "WHOLE", 12 * 108)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("limit", [108 * 32, 300 * 32, 1000 * 32])
def test_the_memory_limit_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, sharded: bool, limit: int
) -> None:
    """Of a snapshot and its preparation: blocks of 1, 2 and 9 pictures, and one block of all."""
    if sharded:
        request.getfixturevalue("small_shards")
    draw(tmp_path, [f"{label}/{index}.png" for label in ("cat", "dog") for index in range(60)])
    prepare(tmp_path, name="whole")
    monkeypatch.setattr(blocks, "memory_limit", lambda: limit)
    prepare(tmp_path, name="blocks")
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "blocks") == whole
    assert any("-00001" in name for name in whole) == sharded


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "a.npy"},
        {"source": "a.npz", "levels": 256},
        {"source": "f.npy"},
        {"source": "deep.npy", "bits": 12},
        {"source": "fractions.npz", "shape": [3, 6, 4]},
        {"source": "a.npy", "resize": {"size": [3, 5]}},
        {"source": "a.npy", "split": {"stratify": False, "calibration": 0.1}},
    ],
)
def test_the_memory_limit_changes_no_byte_of_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    x_NHWC = np.random.default_rng(0).integers(256, size=(80, 6, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", x_NHWC)
    np.save(tmp_path / "f.npy", np.asfortranarray(x_NHWC))
    np.save(tmp_path / "deep.npy", x_NHWC.astype(np.uint16) * 16)
    np.savez_compressed(tmp_path / "a.npz", x=x_NHWC, y=np.arange(80) % 3)
    np.savez(tmp_path / "fractions.npz", x=x_NHWC / np.float32(255))
    made = DatasetSettings.model_validate(settings)
    prepare(tmp_path, made, "whole")
    monkeypatch.setattr(blocks, "memory_limit", lambda: 32 * 700)
    prepare(tmp_path, made, "blocks")
    assert contents(tmp_path / "blocks") == contents(tmp_path / "whole")


def test_a_snapshot_has_the_bytes_of_numpy(tmp_path: Path) -> None:
    """So the digests of data that was imported before stay."""
    x_NCHW = np.random.default_rng(0).integers(256, size=(50, 3, 4, 4), dtype=np.uint8)
    y_N, time_N = np.arange(50), np.arange(50).astype("datetime64[us]")
    snapshots.write_arrays(tmp_path, {"x": x_NCHW, "y": y_N, "time": time_N})
    np.savez(tmp_path / "numpy.npz", allow_pickle=False, x=x_NCHW, y=y_N, time=time_N)
    assert (tmp_path / "data.npz").read_bytes() == (tmp_path / "numpy.npz").read_bytes()
    writer = shards.Writer(tmp_path, "one", x_NCHW.shape, x_NCHW.dtype)
    for at in range(0, 50, 7):
        writer.append(x_NCHW[at : at + 7])
    writer.close()
    np.save(tmp_path / "numpy.npy", x_NCHW)
    assert (tmp_path / "one.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()


@pytest.mark.usefixtures("small_shards")
def test_shards_hold_the_examples_in_order_within_their_sizes(tmp_path: Path) -> None:
    draw(tmp_path, [f"{index:03d}.png" for index in range(200)])
    version = prepare(tmp_path)
    found = snapshots.read_arrays(tmp_path / "out/raw")["x"]
    expected = [np.asarray(Image.open(tmp_path / f"pictures/{index:03d}.png")).transpose(2, 0, 1) for index in range(200)]
    np.testing.assert_array_equal(np.concatenate(list(found)), expected)
    files = arrays.shard_names([path.name for path in (tmp_path / "out/raw").iterdir()], "x")
    sizes = [len(np.load(tmp_path / "out/raw" / name)) for name in files]
    assert sum(sizes) == 200 and all(3 <= size <= 12 for size in sizes[:-1]) and 4 < np.mean(sizes) < 9
    dataset = arrays.load(tmp_path / "out/prepared")
    assert dataset.version == version and isinstance(dataset.train.x_NX, ShardedArray)
    held = [bytes(x) for part in (dataset.train, dataset.validation, dataset.held_out) for x in part.x_NX]
    assert sorted(held) == sorted(map(bytes, np.array(expected)))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize(("first", "changed"), [("999", 1), ("05", 8)])
def test_appended_pictures_change_only_the_shards_that_they_fall_into(tmp_path: Path, first: str, changed: int) -> None:
    """Ten pictures behind the others, or among 050 .. 059. So many of the former shards, 20 to 120 of each array, are not kept.

    Behind them only the last one grows. Among them a few shards pass before the ends fall on the former ones again.
    """
    draw(tmp_path, [f"{index:03d}.png" for index in range(0, 600)])
    prepare(tmp_path, name="before")
    draw(tmp_path, [f"{first}{index}+.png" for index in range(10)])
    prepare(tmp_path, name="after")
    before, after = contents(tmp_path / "before"), contents(tmp_path / "after")
    for array in ("raw/x", "prepared/train", "prepared/validation", "prepared/held_out"):
        old = [before[name] for name in before if name.startswith(f"{array}-")]
        kept = set(old) & set(after.values())
        assert len(old) >= 10 and len(old) - len(kept) <= changed, array


@pytest.mark.slow
@pytest.mark.usefixtures("small_shards")
def test_dvc_pushes_only_the_shards_that_appended_pictures_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With DVC and a remote: the former objects stay, and few are new."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    folder, remote = tmp_path / "data", tmp_path / "remote"
    folder.mkdir()

    def dvc(*arguments: str) -> None:
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=folder, check=True, capture_output=True)

    dvc("init", "--no-scm")
    dvc("remote", "add", "--default", "store", str(remote))

    def push(count: int) -> tuple[set[str], int]:
        draw(folder, [f"{index:03d}.png" for index in range(count)])
        prepare(folder)
        dvc("add", "out")
        dvc("push")
        return {str(path) for path in remote.rglob("*") if path.is_file()}, len(list((folder / "out").rglob("*-0*.npy")))

    (before, shards_before), (after, _) = push(600), push(610)
    assert before < after and shards_before > 100
    # At most two shards of each of four arrays; data.npz, dataset.json, and the listing of the folder.
    assert len(after - before) <= 4 * 2 + 3


@pytest.mark.usefixtures("small_shards")
def test_a_damaged_or_missing_shard_is_found(tmp_path: Path) -> None:
    draw(tmp_path, [f"{index:03d}.png" for index in range(200)])
    prepare(tmp_path)
    for path, read in (
        (tmp_path / "out/prepared/train-00001.npy", lambda: arrays.load(tmp_path / "out/prepared")),
        (tmp_path / "out/raw/x-00001.npy", lambda: snapshots.read_arrays(tmp_path / "out/raw")),
    ):
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(IntegrityError, match=rf"{path.name} is damaged"):
            read()
        path.unlink()
        with pytest.raises(IntegrityError, match=rf"{path.name} is missing"):
            read()
        path.write_bytes(good)
        read()


@pytest.mark.parametrize(
    ("text", "size"), [("", 1 << 30), ("512MiB", 512 << 20), ("2G", 2 << 30), ("3 GB", 3 << 30), ("64K", 64 << 10)]
)
def test_sizes_of_the_memory_limit(monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv("REMINT_MEMORY", text)
    assert memory_limit() == size


@pytest.mark.parametrize("text", ["much", "1.5G", "-1G", "10", "G"])
def test_a_memory_limit_that_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    monkeypatch.setenv("REMINT_MEMORY", text)
    with pytest.raises(SettingsError, match=rf"^REMINT_MEMORY: expected a size such as 512MiB or 2GiB, not '{text}'$"):
        prepare(tmp_path, DatasetSettings(source="sklearn:digits"))


def test_a_memory_limit_below_one_example_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    draw(tmp_path, [f"{index}.png" for index in range(40)], size=200)
    before = prepare(tmp_path)
    kept = contents(tmp_path / "out")
    monkeypatch.setenv("REMINT_MEMORY", "3M")  # one picture has 120,000 bytes, and may be in memory 32 times
    message = r"^REMINT_MEMORY: one example of 3 x 200 x 200 numbers needs 4 MiB at once: set it to at least that$"
    for again in (lambda: sources.snapshot("x", FOLDER, tmp_path, tmp_path / "out/raw"), lambda: prepare(tmp_path)):
        with pytest.raises(SettingsError, match=message):
            again()
    assert contents(tmp_path / "out") == kept
    monkeypatch.setenv("REMINT_MEMORY", "4M")
    assert prepare(tmp_path) == before


@pytest.mark.parametrize("step", ["spool", "snapshot", "prepare"])
def test_a_full_disk_in_a_block_leaves_the_former_content_and_the_next_run_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """``spool``: decoded pictures do not fit; ``snapshot``: data.npz does not; ``prepare``: the training split does not."""
    draw(tmp_path, [f"{index:03d}.png" for index in range(400)])
    prepare(tmp_path)
    before = contents(tmp_path / "out")
    draw(tmp_path, [f"{index:03d}.png" for index in range(400, 500)])
    run = {
        "spool": lambda: sources.snapshot("x", FOLDER, tmp_path, tmp_path / "out/raw"),
        "snapshot": lambda: sources.snapshot("x", FOLDER, tmp_path, tmp_path / "out/raw"),
        "prepare": lambda: splits.prepare("x", FOLDER, tmp_path / "out/raw", tmp_path / "out/prepared"),
    }[step]
    size = {"spool": 40_000, "snapshot": 500 * 108, "prepare": 20_000}[step]  # data.npz has a header beside its 54,000 bytes
    with full_disk(size), pytest.raises(StorageError, match=r"no room to write .*out/(raw|prepared) \(File too large\)"):
        run()
    assert contents(tmp_path / "out") == before
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    after = prepare(tmp_path)
    assert sum(after.counts.values()) == 500


def test_a_source_that_becomes_shorter_is_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((9, 4, 4), np.uint8))
    x = np.load(tmp_path / "a.npy", mmap_mode="r")
    read = blocks.stored(tmp_path / "a.npy", x.shape, x.dtype, x.offset)
    with (tmp_path / "a.npy").open("r+b") as stream:
        stream.truncate(200)
    with pytest.raises(DataError, match=r"a\.npy became shorter while it was read: run again once it is complete"):
        list(read)


def test_blocks_hold_what_the_limit_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The widest form of an example decides: 8 bytes before, 1 byte after the conversion."""
    monkeypatch.setattr(blocks, "memory_limit", lambda: 32 * 8 * 10 * 5)
    x_ND = np.arange(230.0).reshape(23, 10)
    narrow = Blocks.of(x_ND).map(lambda x_BD: x_BD.astype(np.uint8))
    assert [len(x_BD) for x_BD in narrow] == [5, 5, 5, 5, 3] and (narrow.min(), narrow.max()) == (0, 229)
    np.testing.assert_array_equal(np.concatenate(list(narrow)), x_ND.astype(np.uint8))
    both = blocks.concatenate([narrow, narrow])
    assert both.shape == (46, 10) and len(list(both.examples())) == 46


def test_resizing_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((9, 8, 8), np.uint8))
    settings = DatasetSettings(source="a.npy", resize=ResizeSettings(size=[4, 4], filter="pad"))
    with pytest.raises(DataError, match=r"^params\.yaml: datasets\.x\.source: an image of 8x8 does not fit"):
        prepare(tmp_path, settings)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
