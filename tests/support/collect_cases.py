"""Small real world for garbage collection: a git repository with dvc, cache and remote, MLflow on SQLite, versions with data.

python -m tests.support.collect_cases REPOSITORY    for each of POINTS, a process that collects garbage and kills itself there
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remint.maintenance import gc
from remint.maintenance.gc import Collection, collect_garbage
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.records import TrainedModel
from remint.runtime import manifest
from remint.runtime.home import Home
from remint.stores import git, uncommitted
from remint.stores.dvc import addresses, workspace_environment
from remint.stores.ledger.chain import Ledger
from remint.stores.mlflow import ModelVersion, VersionTags
from remint.stores.open import open_ledger, open_tracking
from tests.support import registry_cases

FILES = {
    "params.yaml": "datasets:\n  kept: {source: s3://bucket/kept}\n",
    ".dvc/config": "[core]\n    remote = local\n[cache]\n    dir = ../.remint/dvc/cache\n['remote \"local\"']\n    url = ../.remint/dvc/remote\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n",
    ".gitignore": "/outs/\n/.remint/\n",
}
USER_FILES = ("thesis.csv", "old.csv")
POINTS = ("written down", "version", "run", "files", "home", "listings")  # of a collection where a test kills it


@dataclass(frozen=True)
class World:
    home: Home
    versions: dict[int, ModelVersion]
    outputs: dict[int, list[str]]  # version -> MD5 of its outputs in dvc

    def objects(self, place: str) -> set[str]:
        """Return the MD5 of every object in dvc's cache or remote."""
        folder = self.home.dvc / place / "files" / "md5"
        return {path.parent.name + path.name for path in folder.glob("??/*")}

    def gc(self, *, apply: bool = False, older_than: float = 0.0, window: int = 1) -> Collection:
        return collect_garbage(self.home, remove=apply, older_than=older_than, window=window, say=lambda _text: None)


def make_world(repository: Path, count: int) -> World:
    """Make versions 1 to ``count`` of one model, each with its own and with shared data; the last one is champion."""
    home = Home.of(repository).ensure()
    outputs = add_data(home, repository, count)
    store, book = open_tracking(home), open_ledger(home)
    versions = {number: register(home, number, outputs[number]) for number in range(1, count + 1)}
    for number in versions:
        promote(book, number, number - 1 or None)
    sync_mlflow_to_ledger(home, "m")
    assert store.version("m").version == count
    return World(home, versions, outputs)


def promote(book: Ledger, number: int, before: int | None, action: Any = "promoted") -> None:
    after = number if action == "promoted" else before
    book.append("m", action, number, champion_after=after, who="w", why="y", evidence=f"{number}", expected_champion=before)


def add_data(home: Home, repository: Path, count: int) -> dict[int, list[str]]:
    """Add raw and prepared data of each version to dvc's cache and remote, and two files that a person tracks.

    One of these is not committed yet, the other is only in an old commit.
    """
    from dvc.repo import Repo

    folder = git.check_out(repository, uncommitted.commit_of_tree(repository), home.workspaces / "made")
    addresses(home, folder)
    for number in range(1, count + 1):
        for kind in ("raw", "prepared"):
            (folder / f"{kind}{number}").mkdir()
            (folder / f"{kind}{number}" / "shared").write_text("what all versions share")
            (folder / f"{kind}{number}" / "own").write_text(f"{kind} of {number}")
    added = [f"{kind}{number}" for number in range(1, count + 1) for kind in ("raw", "prepared")]
    for name in USER_FILES:
        (folder / name).write_text(f"{name}, a person's own\n")
    os.environ["DVC_SITE_CACHE_DIR"] = workspace_environment(folder, home)["DVC_SITE_CACHE_DIR"]
    with contextlib.chdir(folder):
        repo = Repo(str(folder))
        stages = {stage.outs[0].def_path: str(stage.outs[0].hash_info.value) for stage in repo.add([*added, *USER_FILES])}
        repo.push()
        repo.close()
    for name in USER_FILES:
        shutil.copy(folder / f"{name}.dvc", repository)
    old = f"{USER_FILES[1]}.dvc"
    git.run_git(repository, "add", old)
    git.run_git(repository, "commit", "-q", "-m", "tracks it", env=GIT_IDENTITY)
    git.run_git(repository, "rm", "-q", old)
    git.run_git(repository, "commit", "-q", "-m", "no longer tracks it", env=GIT_IDENTITY)
    git.remove(folder)
    return {number: [stages[f"raw{number}"], stages[f"prepared{number}"]] for number in range(1, count + 1)}


def register(home: Home, number: int, outputs: list[str]) -> ModelVersion:
    """Register a version with its dvc.lock, a local copy and a report in HOME, an entry in the run cache, and a git ref."""
    folder = home.path / "made" / str(number)
    registry_cases.make_bundle(folder / "bundle", number, pipeline="m")
    trained = TrainedModel.read(folder / "bundle" / "training.json")
    lock = folder / "dvc.lock"
    outs = {
        stage: {"cmd": "x", "outs": [{"path": f"outs/{stage}", "hash": "md5", "md5": md5, "size": 1, "nfiles": 2}]}
        for stage, md5 in zip(("snapshot@digits", "prepare@digits"), outputs, strict=True)
    }
    lock.write_text(json.dumps({"schema": "2.0", "stages": outs}, indent=1))
    remembered = home.dvc / "cache" / "runs" / "ab" / f"{number:064x}" / "entry"
    remembered.parent.mkdir(parents=True)
    remembered.write_text(
        f"cmd: x\ndeps:\n- path: a\n  md5: {'0' * 32}\nouts:\n- path: outs/x\n  hash: md5\n  md5: {outputs[1]}\n"
    )
    head = git.run_git(home.repository, "rev-parse", "HEAD").strip()
    sha = git.run_git(home.repository, "commit-tree", f"{head}^{{tree}}", "-p", head, "-m", str(number), env=GIT_IDENTITY).strip()
    git.run_git(home.repository, "update-ref", f"refs/remint/{sha}", sha)
    tags = VersionTags(
        commit=sha,
        dirty="false",
        dvc_lock_sha256=manifest.sha256_file(lock),
        data=json.dumps({"name": "digits", "source": "x"}),
    )
    store = open_tracking(home)
    version = registry_cases.register(store, folder / "bundle", tags=tags, attachments={"dvc.lock": lock})
    store.fetch(version, home.path / "models" / version.key)
    home.report("m", version.version).mkdir(parents=True)
    (home.report("m", version.version) / "report.html").write_text("a page")
    evaluation = home.path / "evaluations" / f"of{number}"
    evaluation.mkdir(parents=True)
    (evaluation / "report.json").write_text(json.dumps({"model_key": trained.key}))
    return version


GIT_IDENTITY = {f"GIT_{role}_{field}": "someone@localhost" for role in ("AUTHOR", "COMMITTER") for field in ("NAME", "EMAIL")}


def _die(*_arguments: Any, **_named: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def kill_at(point: str) -> None:
    """Make this process die at a point of a collection: right after the named action happened for the first time."""
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    from remint.maintenance.gc import places
    from remint.stores.dvc import collect as sweep
    from remint.stores.ledger.collected import CollectedVersions
    from remint.stores.mlflow import removal

    def after(owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)
        setattr(owner, name, lambda *given, **named: (real(*given, **named), _die())[0])

    if point == "written down":
        after(CollectedVersions, "record")
    elif point == "version":
        after(removal, "remove_version")
    elif point == "run":
        after(SqlAlchemyStore, "delete_run")
    elif point == "files":
        after(LocalArtifactRepository, "delete_artifacts")
    elif point == "home":
        after(places, "remove")
    elif point == "listings":
        real = sweep.remove
        sweep.remove = lambda home, objects: (real(home, [each for each in objects if each.name.endswith(".dir")]), _die())[0]


def _killed_at_each_point(home: Home) -> None:
    """Fork before MLflow has opened a database, so that it is imported once. Print how each process ended."""
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    gc._damaged = lambda _home: []  # takes seconds and has its own test
    for point in POINTS:
        child = os.fork()
        if not child:
            kill_at(point)
            collect_garbage(home, remove=True, older_than=0.0, window=1, say=lambda _text: None)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(point, os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _killed_at_each_point(Home.of(Path(sys.argv[1])).ensure())
