"""Results, code and checkpoints between two hosts by the DVC remote, on real dvc: what arrives is whole, or it does not count."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import remint
from remint.errors import VersioningError
from remint.runtime.home import Home
from remint.stores import git, uncommitted
from remint.stores.dvc import Workspace, travel, workspace_environment
from remint.stores.dvc import workspace as dvc_workspace
from tests.support.s3 import Server

pytestmark = [pytest.mark.usefixtures("forked"), pytest.mark.slow]

WORK = """
import pathlib, sys
from remint.runtime import events

def main(key):
    folder = pathlib.Path("outs") / key
    folder.mkdir(parents=True)
    (folder / "made").write_text("of " + pathlib.Path("given").read_text())

events.run_step(main)
"""
FILES = {
    "work.py": WORK,
    "given": "data",
    "dvc.yaml": "stages:\n  work:\n    foreach: [x]\n    do:\n      cmd: python work.py ${item}\n      deps: [work.py, given]\n"
    "      outs: ['outs/${item}']\n",
    ".dvc/config": "[core]\n    remote = local\n['remote \"local\"']\n    url = ../.remint/dvc/remote\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n",
    ".gitignore": "/outs/\n/.remint/\n",
}
STAGE = "work@x"

Host = Callable[[str], Workspace]


@pytest.fixture
def folder_remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMINT_DVC_REMOTE", str(tmp_path / "remote"))


@pytest.fixture
def s3_remote(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMINT_DVC_REMOTE", f"s3://{s3.bucket({})}/dvc")


@pytest.fixture(params=["folder_remote", pytest.param("s3_remote", marks=pytest.mark.soak)])
def any_remote(request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(request.param)


@pytest.fixture
def host(make_repository: Callable[[dict[str, str]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Return a function that makes a workspace of a host: a home of its own, and the remote of all."""
    repository, source, real = make_repository(FILES), str(Path(remint.__file__).parents[1]), workspace_environment
    monkeypatch.setattr(dvc_workspace, "workspace_environment", lambda folder, home: {**real(folder, home), "PYTHONPATH": source})

    def make(name: str) -> Workspace:
        home = Home(repository, tmp_path / name).ensure()
        folder = git.check_out(repository, uncommitted.commit_of_tree(repository), home.workspaces / "job")
        (folder / ".dvc/config.local").unlink(missing_ok=True)
        return Workspace(folder, home, logs=home.path / "logs")

    return make


def refuse(event: dict[str, object]) -> None:
    raise AssertionError(event)


@pytest.mark.usefixtures("any_remote")
def test_a_result_of_one_host_is_restored_on_another(host: Host) -> None:
    first, second = host("first"), host("second")
    assert not second.recall(STAGE)
    assert first.reproduce("work", "x", lambda _: None)
    first.record(STAGE)
    assert not second.restore(STAGE, "--single-item"), "its own cache has nothing yet"
    assert second.recall(STAGE) and second.restore(STAGE, "--single-item")
    assert (second.folder / "outs/x/made").read_text() == "of data"
    assert not second.reproduce("work", "x", refuse)


@pytest.mark.usefixtures("folder_remote")
@pytest.mark.parametrize("damage", [pytest.param("missing", marks=pytest.mark.soak), "flipped", "other outputs"])
def test_a_result_that_is_not_whole_does_not_count(host: Host, tmp_path: Path, damage: str) -> None:
    first, second = host("first"), host("second")
    first.reproduce("work", "x", lambda _: None)
    first.record(STAGE)
    if damage == "other outputs":
        (entry,) = (path for path in (tmp_path / "remote/runs").rglob("*") if path.is_file())
        entry.write_text(entry.read_text().replace("outs/x", "outs/../../../stolen"))
    for path in (tmp_path / "remote/files/md5").rglob("*"):
        if damage != "other outputs" and path.is_file() and path.suffix != ".dir":
            path.chmod(0o644)
            path.write_text("xx data") if damage == "flipped" else path.unlink()
    assert not second.recall(STAGE)
    assert second.reproduce("work", "x", lambda _: None), "it is made again"


@pytest.mark.usefixtures("folder_remote")
def test_code_and_inputs_are_sent_once_and_verified(host: Host, tmp_path: Path) -> None:
    first, second = host("first"), host("second")
    code = tmp_path / "code.tar"
    code.write_bytes(git.pack(first.folder))
    (again := tmp_path / "again.tar").write_bytes(git.pack(second.folder))
    assert code.read_bytes() == again.read_bytes(), "the same files give the same archive"
    offer = first.offer(STAGE, [], code)
    assert not offer.known and second.offer(STAGE, [], code) == offer
    travel.fetch_file(second.home, offer.code, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == code.read_bytes()
    (stored,) = (path for path in (tmp_path / "remote/files/md5").rglob("*") if path.is_file())
    stored.chmod(0o644)
    stored.write_bytes(b"\0" + stored.read_bytes()[1:])
    with pytest.raises(VersioningError, match=f"the remote has no intact copy of {offer.code}"):
        travel.fetch_file(second.home, offer.code, tmp_path / "fetched")
    first.reproduce("work", "x", lambda _: None)
    first.record(STAGE)
    assert second.offer(STAGE, [], code).known


@pytest.mark.usefixtures("s3_remote")
def test_checkpoints_follow_a_training_to_another_host(host: Host, tmp_path: Path) -> None:
    first, second = host("first"), host("second")

    def write(folder: Path, *steps: int) -> None:
        for step in steps:
            place = folder / f"checkpoints/digest/step-{step:08d}"
            place.mkdir(parents=True)
            for name in ("tensors.safetensors", "notes.json", "manifest.json"):
                (place / name).write_text(f"{name} of {step}")

    here, there = (each.checkpoints("key", tmp_path / name) for each, name in ((first, "here"), (second, "there")))
    there.fetch()
    assert not there.names, "a training that begins"
    write(here.folder, 10, 20)
    here.save()
    shutil.rmtree(here.folder / "checkpoints/digest/step-00000010")
    write(here.folder, 30)
    here.save()
    write(there.folder, 20)
    there.fetch()
    assert there.names == here.names == {f"checkpoints/digest/step-000000{step}" for step in (20, 30)}
    assert (there.folder / "checkpoints/digest/step-00000030/notes.json").read_text() == "notes.json of 30"
    assert not list(there.folder.rglob(".*"))
    there.remove()
    assert not there.folder.exists()
    there.fetch()
    assert not there.names, "the remote has none left"
    assert len(here.names) == 2, "another host's own checkpoints stay"
