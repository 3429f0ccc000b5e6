"""Garbage in HOME and in git's ``refs/remint``: workspaces, checkpoints, copies, caches, reports, job logs."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from remint.maintenance.gc.reach import GIT, HOME, Node, Thing
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.runtime.locks import is_free, locked_if_free
from remint.settings.judging import INCEPTION_SHA256
from remint.settings.params import PARAMS
from remint.stores import git

REFS = "refs/remint"
LOCK = "lock"  # lock file of a training's checkpoints (training/checkpoint.py)


def things(home: Home) -> Iterator[Thing]:
    """Yield everything that gc may remove here. While jobs run, that is only the workspaces of dead jobs."""
    alive = {job.id for job in jobs.alive(home)}
    yield from _things(home, home.workspaces, "the workspace of an ended job", skip=alive)
    if alive:
        return
    yield from _things(home, home.checkpoints, "checkpoints of an unfinished training", skip=_held(home))
    yield from _things(home, home.path / "models", "a copy of a version that is not a root")
    yield from _each(home, sorted(home.path.glob("*.promote-*")), "a copy of a promotion that was killed")
    yield from _things(home, home.path / "evaluations", "a champion's evaluation on later data")
    yield from _things(home, home.path / "features", "features of a dataset version, computed again when they are needed")
    yield from _things(home, home.files, "a fetched file that no settings name")
    yield from _things(home, home.fetched, "fetched data of a dataset that no settings name")
    yield from _things(home, home.jobs, "the log of an ended job", skip={job.id for job in jobs.dead(home)})
    for model in sorted(home.reports.glob("*")):
        yield from _things(home, model, "the report of a version that is not a root")
    yield from _refs(home)


def roots(home: Home) -> list[Node]:
    """Return what settings name below HOME (those on disk and at the head of each branch), and the newest job logs."""
    settings = "\n".join(_settings(home))
    if "inception" in settings:
        settings += INCEPTION_SHA256  # the default digest
    newest = [folder.name for folder in sorted(home.jobs.glob("*"))[-jobs.KEPT :]]
    return [
        *((HOME, f"fetched/{path.name}") for path in _entries(home.fetched) if _dataset(path) in settings),
        *((HOME, f"files/{path.name}") for path in home.files.glob("*") if path.name in settings),
        *((HOME, f"jobs/{name}") for name in newest),
    ]


def needs(home: Home) -> Callable[[Node], list[Node]]:
    """Return a function for the evaluations of a version's key; MlflowInventory.needs names them as one node."""
    by_key: dict[str, list[Node]] = {}
    for folder in sorted((home.path / "evaluations").glob("*")):
        by_key.setdefault(f"evaluations of {_key(folder)}", []).append((HOME, f"evaluations/{folder.name}"))
    return lambda node: by_key.get(node[1], []) if node[0] == HOME else []


def remove(home: Home, name: str) -> None:
    """Remove a thing below HOME."""
    path = home.path / name
    if path.parent == home.checkpoints:
        _remove_checkpoints(path)
        return
    if path.is_dir():
        aside = path.with_name(f".{path.name}.gone")  # so that a kill leaves no partial folder under the old name
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        path = aside
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def remove_ref(home: Home, ref: str) -> None:
    git.run_git(home.repository, "update-ref", "-d", ref)


def _things(home: Home, folder: Path, why: str, skip: Collection[str] = ()) -> Iterator[Thing]:
    """Yield a thing for each entry of a folder, also for entries that a killed gc or writer left."""
    yield from _each(home, [path for path in _entries(folder) if path.name not in skip], why)


def _each(home: Home, paths: Sequence[Path], why: str) -> Iterator[Thing]:
    for path in paths:
        size, since = _measure(path)
        yield Thing(HOME, str(path.relative_to(home.path)), since, why, size)


def _entries(folder: Path) -> list[Path]:
    """Return the entries, hidden ones first: a dataset's manifest is removed before its folder."""
    return sorted(folder.iterdir(), key=lambda path: (not path.name.startswith("."), path.name)) if folder.is_dir() else []


def _dataset(path: Path) -> str:
    """Return the dataset of NAME, .NAME.json or .NAME.parts below HOME/fetched, and of those of NAME+held_out."""
    name = path.name[1:].rpartition(".")[0] if path.name.startswith(".") else path.name
    return name.partition("+")[0]


def _measure(path: Path) -> tuple[int, float]:
    """Return the size in bytes and the time of the last change, over all files."""
    states = []
    for each in (path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())):
        with suppress(FileNotFoundError):  # removed meanwhile
            states.append(each.lstat())
    size = sum(state.st_size for state in states if stat.S_ISREG(state.st_mode))
    return size, max((state.st_mtime for state in states), default=0.0)


def _key(folder: Path) -> str:
    """Return the key of the evaluated model, "" if it cannot be read."""
    try:
        return str(json.loads((folder / "report.json").read_bytes())["model_key"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _held(home: Home) -> set[str]:
    """Return the checkpoints of running trainings, of jobs or by hand."""
    return {lock.parent.name for lock in home.checkpoints.glob(f"*/{LOCK}") if not is_free(lock)}


def _remove_checkpoints(folder: Path) -> None:
    # A training that ended meanwhile has removed the folder. None begins inside the block.
    with suppress(FileNotFoundError), locked_if_free(folder / LOCK) as free:
        if free:
            shutil.rmtree(folder)


def _settings(home: Home) -> Iterator[str]:
    """Yield params.yaml on disk and at the head of each branch. Raises VersioningError if git cannot read one of these."""
    with suppress(FileNotFoundError):  # the branches have it
        yield (home.repository / PARAMS).read_text()
    heads = git.run_git(home.repository, "for-each-ref", "--format=%(objectname)", "refs/heads", "refs/remotes").split()
    for head in dict.fromkeys(heads):
        if git.run_git(home.repository, "ls-tree", "--name-only", head, "--", PARAMS):
            yield git.run_git(home.repository, "show", f"{head}:{PARAMS}")


def _refs(home: Home) -> Iterator[Thing]:
    """Yield the commits of uncommitted work, with the bytes that git can free without them."""
    others = ("--not", "--exclude=refs/remint/*", "--all")
    for ref in git.run_git(home.repository, "for-each-ref", "--format=%(refname)", REFS).split():
        size = git.run_git(home.repository, "rev-list", "--objects", "--disk-usage", ref, *others).strip()
        yield Thing(GIT, ref, 0.0, "uncommitted work that no version was built from", int(size))
