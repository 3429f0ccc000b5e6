"""Uncommitted work as a commit: what a job builds from a person's working tree, and how it travels.

A clean tree is HEAD. A dirty one is committed under ``refs/remint/`` through a temporary index: neither the working tree nor
the person's index changes. Raw data never enter that commit.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Collection, Sequence
from itertools import takewhile
from pathlib import Path

from remint import redaction
from remint.errors import RepositoryError
from remint.runtime import scratch
from remint.stores.git import Commit, pin, run_git

LARGEST_FILE = 10 * 2**20  # bytes; larger files are data and belong into DVC
SECRETS = (".env", ".env.*", "*.pem", "*.key", "id_rsa*", "id_ed25519*", "*credentials*", "*.p12", "*.pfx", ".netrc", ".pgpass")
AUTHOR = "remint@localhost"  # of a commit of uncommitted work
IGNORED_CHANGES = ("dvc.lock",)  # `dvc repro` by hand changes it; a job makes its own and stores it with the version
LEFT_BY_TOOLS = ("mlflow.db", "mlruns", "mlartifacts", ".prefect", "dvc_plots")  # at the root: neither work nor part of a commit


def commit_of_tree(repository: Path, data: Collection[Path] = ()) -> Commit:
    """Return HEAD if the working tree is clean, else a new commit of all files on disk that git does not ignore.

    ``data``: files and folders of raw data. Their content on disk never enters the commit, also if it is staged, and a change
    of it is no uncommitted work. A folder that holds the whole repository is not excluded.

    The same content gives the same commit. Raises RepositoryError, which names the file, if a file is too large or looks like
    a secret.
    """
    head = run_git(repository, "rev-parse", "HEAD").strip()
    apart = sorted({*_paths_inside(repository, data), *LEFT_BY_TOOLS})
    differing = _differing(repository, apart)
    changed = sorted(path for path in differing if path not in IGNORED_CHANGES)
    if not changed:
        return Commit(head, dirty=False)
    for path in changed:
        _refuse_secret_or_large(repository / path, path)
    with scratch.folder() as folder:
        index = folder / "index"
        own = Path(run_git(repository, "rev-parse", "--git-path", "index").removesuffix("\n"))
        if (repository / own).exists():
            # The index's stat cache avoids hashing unchanged files. The index must keep its time: by it git knows which
            # entries were written in the same tick as their file and must be read again.
            shutil.copy2(repository / own, index)
        env = {"GIT_INDEX_FILE": str(index)}
        run_git(repository, "reset", "--quiet", head, "--", *(f":(top,literal){path}" for path in apart), env=env)
        # Not `git add --all` without ``apart``: it fails where one of these paths exists and git ignores it.
        paths = "".join(f"{path.rstrip('/')}\0" for path in differing)
        run_git(repository, "update-index", "--add", "--remove", "--replace", "-z", "--stdin", env=env, stdin=paths)
        tree = run_git(repository, "write-tree", env=env).strip()
    if tree == run_git(repository, "rev-parse", f"{head}^{{tree}}").strip():
        return Commit(head, dirty=False)
    when = run_git(repository, "show", "-s", "--format=%cI", head).strip()
    person = {
        f"GIT_{role}_{field}": value
        for role in ("AUTHOR", "COMMITTER")
        for field, value in (("NAME", "remint"), ("EMAIL", AUTHOR), ("DATE", when))
    }
    sha = run_git(
        repository, "commit-tree", tree, "-p", head, "-m", "Uncommitted work, as a remint job found it", env=person
    ).strip()
    pin(repository, sha)
    return Commit(sha, dirty=True, changed=tuple(changed), base=head)


def _paths_inside(repository: Path, data: Collection[Path]) -> list[str]:
    """Return the paths below the repository's root, relative to it; of a symbolic link both itself and where it leads."""
    root, found = repository.absolute(), set()
    for path in data:
        for place, base in ((os.path.normpath(root / path), root), (os.path.realpath(root / path), root.resolve())):
            if Path(place).is_relative_to(base) and Path(place) != base:
                found.add(str(Path(place).relative_to(base)))
    return sorted(found)


def _differing(repository: Path, apart: Sequence[str]) -> list[str]:
    """Return the paths with uncommitted changes outside ``apart``; of a rename both names."""
    outside = (":(top)", *(f":(top,exclude,literal){path}" for path in apart))
    fields = iter(run_git(repository, "status", "--porcelain=v1", "-z", "--untracked-files=all", "--", *outside).split("\0"))
    paths = []
    for field in fields:
        if field:
            paths.append(field[3:])
            if field[0] in "RC":
                paths.append(next(fields))
    return paths


def _refuse_secret_or_large(path: Path, name: str) -> None:
    if not path.is_file():
        return
    if any(fnmatch.fnmatch(path.name.lower(), pattern) for pattern in SECRETS):
        raise RepositoryError(
            f"{name} looks like a secret, and it would be committed with your uncommitted work: add it to .gitignore"
        )
    if path.stat().st_size > LARGEST_FILE:
        size = path.stat().st_size / 2**20
        raise RepositoryError(
            f"{name} is {size:.0f} MiB, too large for git: add it to .gitignore, and if it is data, name it as a dataset's source"
        )
    variable = redaction.variable_in(path.read_bytes())
    if variable is not None:
        raise RepositoryError(
            f"{name} holds the secret of {variable} and would be committed with your uncommitted work: remove the secret"
        )


def bundle(repository: Path, commit: Commit, file: Path) -> Path:
    """Write a git bundle of a dirty commit without its base, so that it can be built elsewhere. Return ``file``."""
    run_git(repository, "bundle", "create", "--quiet", str(file), f"refs/remint/{commit.sha}", f"^{commit.base}")
    return file


def prerequisites(bundle: Path) -> list[str]:
    """Return the commits that a git bundle needs and does not contain, from its header (gitformat-bundle)."""
    with bundle.open("rb") as stream:
        header = iter(stream.readline, b"\n")
        return [line[1:].split()[0].decode() for line in takewhile(bool, header) if line.startswith(b"-")]


def pinned(repository: Path) -> dict[str, bool]:
    """Return the commits under ``refs/remint/``, each with whether it was made from uncommitted work."""
    listed = run_git(repository, "for-each-ref", "--format=%(refname) %(authoremail)", "refs/remint").splitlines()
    return {
        ref.removeprefix("refs/remint/"): author == f"<{AUTHOR}>" for ref, _, author in (line.partition(" ") for line in listed)
    }


def files_of(repository: Path, sha: str, data: Collection[Path]) -> list[str]:
    """Return the files below ``data`` that a commit of uncommitted work added or changed."""
    apart = [f":(top,literal){path}" for path in _paths_inside(repository, data)]
    if not apart:
        return []
    return run_git(
        repository, "diff", "--name-only", "--no-renames", "--diff-filter=d", "-z", f"{sha}^", sha, "--", *apart
    ).split("\0")[:-1]


def unbundle(repository: Path, file: Path, folder: Path) -> Path:
    """Return the new bare clone ``folder``, which shares its objects with the repository and has a bundle's commit."""
    run_git(folder.parent, "clone", "--quiet", "--shared", "--bare", str(repository), str(folder))
    run_git(folder, "bundle", "unbundle", str(file))
    return folder
