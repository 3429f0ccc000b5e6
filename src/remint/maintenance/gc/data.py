"""Garbage of dvc: objects that no kept version was trained on and that no person tracks.

Needed are the outputs that are named in a version's dvc.lock, or in a dvc.lock or .dvc file of the working tree, of a
version's commit, or of any commit that a branch, a tag, a stash or the reflog reaches.
"""

from __future__ import annotations

import subprocess
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from remint.errors import IntegrityError, VersioningError
from remint.runtime import manifest, scratch
from remint.runtime.home import Home
from remint.stores import git
from remint.stores.dvc import collect as sweep
from remint.stores.dvc.collect import Object
from remint.stores.mlflow import ModelVersion
from remint.stores.open import open_tracking

LOCK = "dvc.lock"
POINTERS = ("*.dvc", f"*{LOCK}")  # files that name dvc's objects


def garbage(
    home: Home, roots: Iterable[ModelVersion], others: Iterable[ModelVersion], before: float
) -> tuple[list[Object], list[str]]:
    """Return the unneeded objects in dvc's stores, and notes for people.

    Arguments: ``roots`` versions whose data must be kept, ``others`` versions that stay too, ``before`` a Unix time: younger
    objects stay. Raises IntegrityError if a root's dvc.lock is gone or damaged, VersioningError if dvc fails.
    """
    if git.run_git(home.repository, "rev-parse", "--is-shallow-repository").strip() == "true":
        return [], [f"DVC's data are not collected: {home.repository} is a shallow clone, without the files of older commits"]
    wanted: set[str] = set()
    notes: list[str] = []
    known: dict[str, set[str]] = {}
    rooted, staying = list(roots), list(others)
    for version in rooted:
        wanted |= _needs(home, version, known)
    for version in staying:
        try:
            wanted |= _needs(home, version, known)
        except IntegrityError as error:
            notes.append(f"{error}: its training data are not kept for it")
    for text in pointers(home.repository, {version.commit for version in (*rooted, *staying)}):
        wanted |= sweep.md5s_in(text)
    return sweep.unneeded(home, wanted, before), notes


def _needs(home: Home, version: ModelVersion, known: dict[str, set[str]]) -> set[str]:
    """Return the outputs in a version's dvc.lock. ``known`` caches them by the digest of the dvc.lock."""
    digest = version.tags.dvc_lock_sha256 or ""
    if digest not in known:
        with scratch.folder() as folder:
            lock = open_tracking(home).attachment(version, LOCK, folder)
            if manifest.sha256_file(lock) != digest:
                raise IntegrityError(f"{version.ref}: its dvc.lock differs from the registered one")
            known[digest] = sweep.md5s_in(lock.read_text(errors="replace"))
    return known[digest]


def pointers(repository: Path, commits: Collection[str]) -> Iterator[str]:
    """Yield the text of every dvc.lock and .dvc file in the working tree and in git's history, with that of ``commits``."""
    tracked = git.run_git(repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *POINTERS).split("\0")
    for name in dict.fromkeys(tracked):
        path = repository / name
        if name and path.is_file():
            yield path.read_text(errors="replace")
    present = [commit for commit in sorted(commits) if commit and git.holds(repository, commit)]
    reached = ("--exclude=refs/remint/*", "--all", "--reflog", *present)
    listed = git.run_git(repository, "rev-list", "--full-history", "--objects", *reached, "--", *POINTERS)
    files = (line.partition(" ")[::2] for line in listed.splitlines())  # digest and path; the path of a commit is ""
    blobs = [sha for sha, path in files if Path(path).suffix == ".dvc" or Path(path).name == LOCK]
    yield _blobs(repository, blobs)


def _blobs(repository: Path, shas: list[str]) -> str:
    done = subprocess.run(
        ["git", "cat-file", "--batch"], cwd=repository, input="\n".join(shas).encode(), capture_output=True, check=False
    )
    if done.returncode:
        raise VersioningError(f"git cat-file in {repository}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")
