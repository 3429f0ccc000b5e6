"""Mutated image files: each is decoded or set aside with its reason, soon, in little memory; no process ends by one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hostile_images import OTHER_SUFFIXES, mutate_file
from tests.support.measured import Reader, start_reader
from tests.support.trials import Trials

EACH = 100  # files of one trial
MOST_GROWN = 400 << 20  # bytes: 67 million pixels are 200 MB as RGB, and twice that while they are converted
LONGEST = 1.0  # seconds of the processor


@pytest.fixture(scope="module")
def read() -> Iterator[Reader]:
    with start_reader() as process:
        yield process


@pytest.mark.case(28)
def test_mutated_images(trials: Trials, read: Reader, tmp_path: Path) -> None:
    for trial in trials(short=2, full=10_000 // EACH):
        folder = tmp_path / str(trial.number)
        folder.mkdir()
        for index in range(EACH):
            ending, content = mutate_file(trial.random)
            (folder / f"{index:03}{ending}").write_bytes(content)
        (found,) = read("images", folder)
        assert found.ended == "read", (found, folder)
        aside, good = found.notes["aside"], found.notes["good"]
        assert good + len(aside) == EACH and 0 < good < EACH and all(aside.values())
        others = {path.name for path in folder.iterdir() if path.suffix in OTHER_SUFFIXES}
        assert {name for name, why in aside.items() if why == "is not PNG, JPEG or WebP"} == others
        assert found.grown < MOST_GROWN, found
        trial.note(files=EACH, crashed=0, set_aside=len(aside), slower_than_1_s=int(found.notes["seconds"] > LONGEST))
        shutil.rmtree(folder)
