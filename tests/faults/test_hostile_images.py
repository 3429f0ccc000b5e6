"""Mutated image files: each is decoded or set aside with a reason, quickly, with little memory, without a crash."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hostile_images import OTHER_SUFFIXES, mutate_file
from tests.support.measured import Reader, start_reader
from tests.support.trials import Trials

FILES_PER_TRIAL = 100
MAX_MEMORY_GROWTH = 400 << 20  # bytes: 67 million pixels are 200 MB as RGB, and twice that while they are converted
MAX_SECONDS = 1.0  # seconds of CPU time


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with start_reader() as process:
        yield process


@pytest.mark.case(28)
def test_mutated_images(trials: Trials, reader: Reader, tmp_path: Path) -> None:
    for trial in trials(short=2, full=10_000 // FILES_PER_TRIAL):
        folder = tmp_path / str(trial.number)
        folder.mkdir()
        for index in range(FILES_PER_TRIAL):
            ending, content = mutate_file(trial.random)
            (folder / f"{index:03}{ending}").write_bytes(content)
        (found,) = reader("images", folder)
        assert found.ended == "read", (found, folder)
        aside, good = found.notes["aside"], found.notes["good"]
        assert good + len(aside) == FILES_PER_TRIAL and 0 < good < FILES_PER_TRIAL and all(aside.values())
        others = {path.name for path in folder.iterdir() if path.suffix in OTHER_SUFFIXES}
        assert {name for name, why in aside.items() if why == "is not PNG, JPEG, WebP, TIFF or BMP"} == others
        assert found.grown < MAX_MEMORY_GROWTH, found
        trial.note(
            files=FILES_PER_TRIAL, crashed=0, set_aside=len(aside), slower_than_1_s=int(found.notes["seconds"] > MAX_SECONDS)
        )
        shutil.rmtree(folder)
