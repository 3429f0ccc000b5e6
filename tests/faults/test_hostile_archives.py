"""Malicious archives and folders are refused in one line, quickly, with little memory, and without a written file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hostile_archives import ARCHIVES, HARMLESS
from tests.support.measured import Reader, start_reader
from tests.support.trials import Trials

MAX_MEMORY_GROWTH = 200 << 20  # bytes
MAX_SECONDS = 2.0  # seconds of CPU time


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with start_reader() as process:
        yield process


@pytest.mark.case(27)
def test_hostile_archives_and_folders(trials: Trials, reader: Reader, tmp_path: Path) -> None:
    names = list(ARCHIVES)
    for trial in trials(short=8, full=len(names)):
        name = names[trial.number]
        path = tmp_path / str(trial.number) / name
        path.parent.mkdir()
        ARCHIVES[name](path)
        before = sorted(tmp_path.rglob("*"))
        (found,) = reader("source", path)
        if name in HARMLESS:
            assert found.ended == "read", (name, found)
        else:
            assert found.ended == "refused" and len(found.said.splitlines()) == 1, (name, found)
            assert str(path) in found.said and sorted(tmp_path.rglob("*")) == before, name
        assert found.grown < MAX_MEMORY_GROWTH, (name, found)
        trial.note(written_outside=0, slower_than_2_s=int(found.seconds > MAX_SECONDS))
    assert not Path("/tmp/out.png").exists() and not list(tmp_path.rglob("out.png"))
