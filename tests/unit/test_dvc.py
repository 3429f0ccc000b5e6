"""The dvc module, on real dvc: known results are restored, a failed step raises our error, addresses are absolute."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import remint
from remint.errors import DataError, RepositoryError, StepError, VersioningError
from remint.runtime.home import Home
from remint.runtime.yaml import load_safe_yaml
from remint.settings.params import write_params
from remint.stores import git, uncommitted
from remint.stores.dvc import Workspace, addresses, dependency, locked, workspace_environment
from remint.stores.dvc import workspace as dvc_workspace

pytestmark = pytest.mark.usefixtures("forked")

WORK = """
import os, pathlib, sys, time
from remint.errors import DataError
from remint.runtime import events

def main(key):
    settings = dict(line.split(": ") for line in pathlib.Path("params.yaml").read_text().splitlines() if ": " in line)
    mode = settings["    mode"]
    if mode == "refuse":
        raise DataError("the data of x is empty: fill it")
    if mode == "killed":
        os.kill(os.getsid(0), 9)  # dvc, which began the session; a shell may stand between
        time.sleep(60)
    if mode == "crash":
        raise RuntimeError("boom")
    events.emit("progress", step=1, steps=2)
    folder = pathlib.Path("outs") / key
    folder.mkdir(parents=True)
    (folder / "made").write_text(mode)

events.run_step(main)
"""
DVC_YAML = """
stages:
  work:
    foreach: ${things}
    do:
      cmd: python work.py ${key}
      params: ["things.${key}"]
      deps: [work.py]
      outs: ["outs/${key}"]
"""
FILES = {
    "work.py": WORK,
    "dvc.yaml": DVC_YAML,
    "params.yaml": "things:\n  x:\n    mode: good\n",
    ".dvc/config": "[core]\n    remote = local\n[cache]\n    dir = ../.remint/dvc/cache\n['remote \"local\"']\n    url = ../.remint/dvc/remote\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n",
    ".gitignore": "/outs/\n/.remint/\n",
}

Open = Callable[..., Workspace]


@pytest.fixture
def repository(make_repository: Callable[[dict[str, str]], Path]) -> Path:
    return make_repository(FILES)


@pytest.fixture
def open_workspace(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    source = str(Path(remint.__file__).parents[1])
    real = workspace_environment
    monkeypatch.setattr(dvc_workspace, "workspace_environment", lambda folder, home: {**real(folder, home), "PYTHONPATH": source})

    def open_(name: str, mode: str = "good") -> Workspace:
        home = Home.of(repository).ensure()
        folder = git.check_out(repository, uncommitted.commit_of_tree(repository), home.workspaces / name)
        write_params({"things": {"x": {"mode": mode}}}, folder)
        return Workspace(folder, home, logs=home.path / "logs" / name)

    return open_


def quiet(_event: dict[str, Any]) -> None:
    pass


@pytest.mark.slow
def test_a_step_runs_once_and_is_restored_in_another_workspace(open_workspace: Open) -> None:
    first, events = open_workspace("first"), []
    assert not first.restore("work@x")
    assert first.reproduce("work", "x", events.append)
    assert [event["event"] for event in events] == ["started", "progress", "ended"]
    second = open_workspace("second")
    assert second.restore("work@x")
    assert (second.folder / "outs/x/made").read_text() == "good"
    assert not open_workspace("third").reproduce("work", "x", quiet)
    assert not open_workspace("fourth", mode="other").restore("work@x")


@pytest.mark.slow
def test_dvc_lock_does_not_depend_on_the_order_of_the_steps(open_workspace: Open) -> None:
    locks = []
    for name, order in (("first", "xy"), ("second", "yx")):
        job = open_workspace(name)
        write_params({"things": {"x": {"mode": "good"}, "y": {"mode": "good"}}}, job.folder)
        for thing in order:
            job.reproduce("work", thing, quiet)
        locks.append((load_safe_yaml((job.folder / "dvc.lock").read_text()), job.lock().read_bytes()))
        assert job.restore("work@x") and job.restore("work@y"), "dvc reads it"
    (values, first), (_, second) = locks
    assert first == second and load_safe_yaml(first.decode()) == values


def test_an_error_of_ours_in_a_step_is_raised_again_as_the_same_error(open_workspace: Open) -> None:
    with pytest.raises(DataError, match="^the data of x is empty: fill it$"):
        open_workspace("job", mode="refuse").reproduce("work", "x", quiet)


def test_a_crashed_step_is_named_with_its_last_error_line(open_workspace: Open) -> None:
    with pytest.raises(VersioningError, match=r"work@x failed: .*(boom|work\.py)"):
        open_workspace("job", mode="crash").reproduce("work", "x", quiet)


@pytest.mark.slow
def test_a_killed_dvc_is_not_taken_for_an_answer_of_dvc(open_workspace: Open) -> None:
    with pytest.raises(StepError, match=r"^dvc repro --single-item work@x was killed \(signal 9\): run again"):
        open_workspace("job", mode="killed").reproduce("work", "x", quiet)


@pytest.mark.slow
def test_two_jobs_at_once_do_not_block_each_other(open_workspace: Open) -> None:
    jobs = [open_workspace(f"job{i}", mode=f"m{i}") for i in range(4)]
    failures: list[BaseException] = []

    def work(job: Workspace) -> None:
        try:
            job.reproduce("work", "x", quiet)
            job.push("work@x")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [(job.folder / "outs/x/made").read_text() for job in jobs] == ["m0", "m1", "m2", "m3"]


def test_a_push_goes_to_the_users_remote_and_not_next_to_the_workspace(open_workspace: Open, repository: Path) -> None:
    job = open_workspace("job")
    job.reproduce("work", "x", quiet)
    job.push("work@x")
    assert any(path.is_file() for path in (repository / ".remint/dvc/remote").rglob("*"))
    assert not (job.folder.parent / ".remint").exists()


def test_addresses_follow_remint_home_and_the_users_settings_take_precedence(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMINT_HOME", str(tmp_path / "elsewhere"))
    (repository / ".dvc/config.local").write_text("['remote \"local\"']\n    url = /mnt/share\n")
    home = Home.of(repository).ensure()
    folder = git.check_out(repository, uncommitted.commit_of_tree(repository), home.workspaces / "job")
    addresses(home, folder)
    written = (folder / ".dvc/config.local").read_text()
    assert f"dir = {tmp_path}/elsewhere/dvc/cache" in written
    assert "url = /mnt/share" in written
    assert "verify = true" in written


def test_an_s3_remote_keeps_its_endpoint_and_key_files(repository: Path) -> None:
    (repository / ".dvc/config.local").write_text(
        "[core]\n    remote = store\n['remote \"store\"']\n    url = s3://bucket/dvc\n    endpointurl = http://127.0.0.1:1\n"
        "    credentialpath = ../keys\n    configpath = ~/aws\n"
    )
    home = Home.of(repository).ensure()
    folder = git.check_out(repository, uncommitted.commit_of_tree(repository), home.workspaces / "job")
    addresses(home, folder)
    written = (folder / ".dvc/config.local").read_text()
    for line in ("remote = store", "url = s3://bucket/dvc", "endpointurl = http://127.0.0.1:1"):
        assert line in written
    assert f"credentialpath = {repository}/keys" in written and f"configpath = {Path.home()}/aws" in written
    assert (folder / ".dvc/config.local").stat().st_mode & 0o077 == 0, "it may hold keys"


def test_the_remote_of_jobs_can_be_set_by_a_variable(
    open_workspace: Open, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMINT_DVC_REMOTE", f"{tmp_path}/elsewhere/")
    job = open_workspace("job")
    job.reproduce("work", "x", quiet)
    job.push("work@x")
    assert any(path.is_file() for path in (tmp_path / "elsewhere").rglob("*"))
    assert not (repository / ".remint/dvc/remote").exists()
    monkeypatch.setenv("REMINT_DVC_REMOTE", "s3://bucket/dvc/")
    assert job.home.dvc_remote == "s3://bucket/dvc"


@pytest.mark.slow
def test_outputs_in_an_older_lock_are_restored_from_cache_or_remote(
    open_workspace: Open, repository: Path, tmp_path: Path
) -> None:
    old = open_workspace("old", mode="before")
    old.reproduce("work", "x", quiet)
    old.push("work@x")
    lock = shutil.copy(old.folder / "dvc.lock", tmp_path / "dvc.lock")
    stores = repository / ".remint/dvc"

    def made(name: str) -> str:
        job = open_workspace(name, mode="now")
        job.reproduce("work", "x", quiet)
        folder = job.fetch_output(lock, "work@x")
        assert (job.folder / "outs/x/made").read_text() == "now", "what the job itself made stays"
        return (folder / "made").read_text()

    (stores / "remote").rename(stores / "remote-away")
    assert made("from the cache") == "before"
    (stores / "remote-away").rename(stores / "remote")
    shutil.rmtree(stores / "cache/files")
    assert made("from the remote") == "before"
    shutil.rmtree(stores / "cache/files")
    shutil.rmtree(stores / "remote")
    with pytest.raises(VersioningError, match="pull"):
        made("from neither")
    with pytest.raises(VersioningError, match="dvc.lock names no output of work@y"):
        open_workspace("other").fetch_output(lock, "work@y")


@pytest.mark.slow
def test_an_isolated_step_runs_without_the_cache_of_the_home_and_leaves_nothing_there(
    open_workspace: Open, repository: Path
) -> None:
    first = open_workspace("first")
    first.reproduce("work", "x", quiet)
    first.push("work@x")
    stores = repository / ".remint/dvc"
    before = set(stores.rglob("*"))
    (stores / "cache").rename(repository / "cache-away")
    folder = open_workspace("apart").folder
    job = Workspace(folder, Home.of(repository), first.logs, scratch=folder / "scratch")
    shutil.copyfile(first.folder / "dvc.lock", folder / "dvc.lock")
    job.pull("work@x")
    assert (folder / "outs/x/made").read_text() == "good", "from the remote"
    ran: list[str] = []
    for _ in range(2):
        job.run_uncached("work", "x", lambda event: ran.append(event["event"]), {})
    assert ran.count("started") == 2, "dvc remembers nothing of it"
    assert locked(folder / "dvc.lock", "work@x") == locked(first.folder / "dvc.lock", "work@x")
    assert not (stores / "cache").exists()
    (repository / "cache-away").rename(stores / "cache")
    assert {path for path in stores.rglob("*") if path.is_file() and "site" not in path.parts} <= before


def test_a_repository_without_dvc_is_refused(make_repository: Callable[..., Path]) -> None:
    bare = make_repository({"params.yaml": ""}, name="bare")
    home = Home.of(bare).ensure()
    folder = git.check_out(bare, uncommitted.commit_of_tree(bare), home.workspaces / "job")
    with pytest.raises(RepositoryError, match="dvc init"):
        Workspace(folder, home, logs=home.path / "logs")


@pytest.mark.parametrize(("foreach", "name"), [("${datasets}", "d"), ("${pipelines}", "p")])
def test_the_name_of_features_comes_from_the_dvc_yaml_of_the_checkout(
    open_workspace: Open, tmp_path: Path, foreach: str, name: str
) -> None:
    """In older commits features are named after the dataset, and there is no stage that resolves settings."""
    job = open_workspace("job")
    job.resolve()
    (job.folder / "dvc.yaml").write_text(f"stages:\n  features: {{foreach: '{foreach}', do: {{cmd: x}}}}\n")
    assert job.key("features", "d", "p") == name
    (tmp_path / "dvc.lock").write_text(
        f"stages: {{evaluate@p: {{deps: [{{path: outs/prepared/d}}, {{path: outs/features/{name}}}]}}}}\n"
    )
    assert dependency(tmp_path / "dvc.lock", "evaluate@p", "outs/features") == name


@pytest.mark.parametrize("path", ["outs/prepared/d", "outs/features/-d", "outs/features/..", "outs/features/a/b"])
def test_a_lock_without_features_is_refused(tmp_path: Path, path: str) -> None:
    (tmp_path / "dvc.lock").write_text(f"stages: {{evaluate@p: {{deps: [{{path: {path}}}]}}}}\n")
    with pytest.raises(VersioningError, match="dvc.lock names no dependency of evaluate@p in outs/features"):
        dependency(tmp_path / "dvc.lock", "evaluate@p", "outs/features")
