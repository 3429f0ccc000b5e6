"""dvc's part: what the versions that stay were trained on, and what people track themselves, is kept; the rest is not.

Which outputs are needed stands in text: in the dvc.lock that each version carries, and in every dvc.lock and .dvc file of
every commit that a branch, a tag, a stash or the reflog reaches, of the versions' own commits, and of the working tree.
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
POINTERS = ("*.dvc", f"*{LOCK}")  # files by which dvc knows what it keeps


def garbage(
    home: Home, roots: Iterable[ModelVersion], others: Iterable[ModelVersion], before: float
) -> tuple[list[Object], list[str]]:
    """What lies in dvc's stores that nothing needs; and what there is to say.

    Arguments: ``roots`` versions whose data must be whole, ``others`` versions that stay as well, ``before`` a Unix time: what
    is younger stays. Raises IntegrityError where a root's dvc.lock is gone or damaged, VersioningError where dvc fails.
    """
    if git.run_git(home.repository, "rev-parse", "--is-shallow-repository").strip() == "true":
        return [], [f"DVC is left alone: {home.repository} is a shallow clone, in which older commits' data cannot be told"]
    wanted: set[str] = set()
    said: list[str] = []
    known: dict[str, set[str]] = {}
    rooted, staying = list(roots), list(others)
    for version in rooted:
        wanted |= _needs(home, version, known)
    for version in staying:
        try:
            wanted |= _needs(home, version, known)
        except IntegrityError as error:
            said.append(f"{error}: what it was trained on is not kept for it")
    for text in pointers(home.repository, {version.commit for version in (*rooted, *staying)}):
        wanted |= sweep.named(text)
    return sweep.unneeded(home, wanted, before), said


def _needs(home: Home, version: ModelVersion, known: dict[str, set[str]]) -> set[str]:
    """The outputs that a version's dvc.lock names; versions of one dvc.lock ask once."""
    digest = version.tags.dvc_lock_sha256 or ""
    if digest not in known:
        with scratch.folder() as folder:
            lock = open_tracking(home).attachment(version, LOCK, folder)
            if manifest.sha256_file(lock) != digest:
                raise IntegrityError(f"{version.ref}: its dvc.lock is not the one that it was registered with")
            known[digest] = sweep.named(lock.read_text(errors="replace"))
    return known[digest]


def pointers(repository: Path, commits: Collection[str]) -> Iterator[str]:
    """The text of every dvc.lock and .dvc file in git's history, that of ``commits`` too, and in the working tree."""
    tracked = git.run_git(repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *POINTERS).split("\0")
    for name in dict.fromkeys(tracked):
        path = repository / name
        if name and path.is_file():
            yield path.read_text(errors="replace")
    present = [commit for commit in sorted(commits) if commit and git.holds(repository, commit)]
    reached = ("--exclude=refs/remint/*", "--all", "--reflog", *present)
    listed = git.run_git(repository, "rev-list", "--full-history", "--objects", *reached, "--", *POINTERS)
    files = (line.partition(" ")[::2] for line in listed.splitlines())  # digest and path, "" of a commit
    blobs = [sha for sha, path in files if Path(path).suffix == ".dvc" or Path(path).name == LOCK]
    yield _blobs(repository, blobs)


def _blobs(repository: Path, shas: list[str]) -> str:
    done = subprocess.run(
        ["git", "cat-file", "--batch"], cwd=repository, input="\n".join(shas).encode(), capture_output=True, check=False
    )
    if done.returncode:
        raise VersioningError(f"git cat-file in {repository}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")
