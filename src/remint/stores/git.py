"""Git: the commit that a job builds, and a checkout of it. A job never runs in a person's working tree.

uncommitted.py makes the commit of a working tree.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped, unused-ignore]

from remint.errors import RepositoryError, VersioningError
from remint.runtime.retry import wait_until

SHA = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")  # full name of a commit, SHA-1 or SHA-256
MOST_PACKED = 100 << 20  # bytes of a checkout that travels to other machines
STALE = 2.0  # seconds after which an unchanged lock on one of remint's refs may be stale


@dataclass(frozen=True)
class Commit:
    """Commit that a job builds."""

    sha: str
    dirty: bool  # made from uncommitted work
    changed: tuple[str, ...] = ()  # the uncommitted paths
    base: str = ""  # HEAD below the uncommitted work

    @property
    def reason_dirty(self) -> str | None:
        """Reason why this commit is not promoted automatically; None for a clean one."""
        if not self.dirty:
            return None
        shown = ", ".join(self.changed[:3]) + (f" and {len(self.changed) - 3} more" if len(self.changed) > 3 else "")
        return f"uncommitted changes in {shown}"


def run_git(folder: Path, *arguments: str, env: Mapping[str, str] | None = None, stdin: str = "") -> str:
    """Return the output of one git command, which takes no optional locks. Raises VersioningError with git's message."""
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", **(env or {})},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise VersioningError(f"git {arguments[0]} in {folder}: {done.stderr.strip() or f'exit status {done.returncode}'}")
    return done.stdout


def repository_of(folder: Path) -> Path:
    """Return the root of the git repository around ``folder``. Raises RepositoryError if there is none, or no commit."""
    try:
        root = Path(run_git(folder, "rev-parse", "--show-toplevel").removesuffix("\n"))
    except VersioningError as error:
        if "not a git repository" not in str(error):
            raise RepositoryError(str(error)) from None
        raise RepositoryError(
            f"no git repository at {folder}: a job builds a commit. Clone your remint repository, or run git init and commit."
        ) from None
    try:
        run_git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
    except VersioningError:
        raise RepositoryError(
            f"the git repository {root} has no commit yet: a job builds a commit. Run git add -A && git commit."
        ) from None
    return root


def files(repository: Path, pattern: str) -> list[str]:
    """Return the paths that match a pattern, of tracked files and of those that git does not ignore."""
    return run_git(repository, "ls-files", "-co", "--exclude-standard", "-z", "--", pattern).split("\0")[:-1]


def branch_of(repository: Path) -> str:
    """Return the checked-out branch. Raises RepositoryError if there is none (a detached HEAD)."""
    branch = run_git(repository, "rev-parse", "--abbrev-ref", "HEAD").strip()
    if branch == "HEAD":
        raise RepositoryError(
            f"{repository} has no branch checked out: git switch to the branch that scheduled jobs build, or give --branch NAME"
        )
    return branch


def commit_of(repository: Path, revision: str) -> Commit:
    """Return the commit of a branch, tag or SHA. Raises RepositoryError if it does not exist."""
    if revision.startswith("-") or not revision.isprintable():  # git would read the first as an option
        raise RepositoryError(
            f"{revision[:100]!r} is not a branch, tag or commit: git branch --all lists the branches of {repository}"
        )
    try:
        return Commit(run_git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").strip(), dirty=False)
    except VersioningError:
        raise RepositoryError(
            f"{repository} has no branch, tag or commit '{revision}': git branch --all lists its branches"
        ) from None


def pin(repository: Path, sha: str) -> None:
    """Protect a commit from `git gc`, also if the branches that lead to it are deleted."""
    update = ("update-ref", f"refs/remint/{sha}", sha)
    try:
        run_git(repository, *update)
    except VersioningError:
        _remove_stale_lock(
            repository / run_git(repository, "rev-parse", "--git-path", f"refs/remint/{sha}.lock").removesuffix("\n"), repository
        )
        run_git(repository, *update)


def _remove_stale_lock(lock: Path, repository: Path) -> None:
    """Remove the lock of one of remint's refs if a killed git left it: every later git would fail on it.

    Git's locks name neither their holder nor a time, and git holds these for milliseconds. So a lock is stale if it is the
    same after STALE seconds and no git runs in this repository.
    """
    first = _inode(lock)
    changed = first is None or wait_until(lambda: _inode(lock) != first, STALE, every=0.05)
    if not changed and not _git_runs_in(repository):
        lock.unlink(missing_ok=True)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        return path.stat().st_ino, path.stat().st_ctime_ns
    except FileNotFoundError:
        return None


def _git_runs_in(repository: Path) -> bool:
    places = (each.info["cwd"] for each in psutil.process_iter(["name", "cwd"]) if each.info["name"] == "git")
    return any(Path(place).is_relative_to(repository.resolve()) for place in places if place)


def is_commit(sha: str) -> bool:
    """Return whether this is the full name of a commit, which git cannot read as an option or a path."""
    return SHA.fullmatch(sha) is not None


def holds(repository: Path, sha: str) -> bool:
    """Return whether this clone has a commit, on a branch or not."""
    if not is_commit(sha):
        return False
    try:
        run_git(repository, "cat-file", "-e", f"{sha}^{{commit}}")
    except VersioningError:
        return False
    return True


def obtain(repository: Path, sha: str) -> bool:
    """Fetch a commit from origin if this clone lacks it. Return whether the clone has it now.

    Fetches objects only: the person's branches, tags and files do not change.
    """
    if not is_commit(sha):
        return False
    quiet = ("fetch", "--quiet", "--no-tags", "--no-auto-gc", "--no-write-fetch-head", "--refmap=", "origin")
    for wanted in (sha, "refs/heads/*"):  # an old server gives branches only
        if holds(repository, sha):
            return True
        with suppress(VersioningError):  # the return value reports it
            run_git(repository, *quiet, wanted, env={"GIT_TERMINAL_PROMPT": "0"})
    return holds(repository, sha)


def origin(repository: Path) -> str:
    """Return the address of origin without user, password and query; "" if there is none."""
    try:
        address = run_git(repository, "remote", "get-url", "origin").strip()
    except VersioningError:
        return ""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address  # a path, or the short form of ssh, which holds no password
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0].partition('#')[0]}"


def address(repository: Path) -> str:
    """Return the address by which another machine clones the origin, without a password; "" if there is none."""
    return origin(repository).replace(
        "ssh://", "ssh://git@", 1
    )  # origin() took the user away, and that is git where ssh is offered


def clone(address: str, branch: str, folder: Path) -> Path:
    """Clone a branch into the new ``folder``, by git's own credentials, and return it. Raises RepositoryError."""
    command = ("clone", "--quiet", "--no-tags", "--branch", branch, "--", address, str(folder))
    try:
        run_git(folder.parent, *command, env={"GIT_TERMINAL_PROMPT": "0"})
    except VersioningError as error:
        raise RepositoryError(
            f"{address} could not be cloned by this worker: {str(error).splitlines()[-1]}: give the account of the worker git's "
            "credentials for it"
        ) from None
    return folder


def check_out(repository: Path, commit: Commit, folder: Path, bundled: Path | None = None) -> Path:
    """Check ``commit`` out into the new ``folder``, which shares its objects with the repository. Return ``folder``.

    ``bundled``: a bundle with the commit, if the repository has only the bundle's prerequisites.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    run_git(folder.parent, "clone", "--quiet", "--shared", "--no-checkout", str(repository), str(folder))
    if bundled:
        run_git(folder, "bundle", "unbundle", str(bundled))
    run_git(folder, "-c", "advice.detachedHead=false", "checkout", "--quiet", "--detach", commit.sha)
    return folder


def pack(folder: Path) -> bytes:
    """Return a tar archive of a checkout: its files as they are, those that git does not know too, without those that it ignores.

    Raises RepositoryError if they have more than MOST_PACKED bytes together.
    """
    names = [name for name in run_git(folder, "ls-files", "-co", "--exclude-standard", "-z").split("\0") if name]
    found = [path for path in (folder / name for name in names) if path.is_file()]
    size = sum(path.stat().st_size for path in found)
    if size > MOST_PACKED:
        raise RepositoryError(
            f"the files of the commit have {size >> 20} MiB, and at most {MOST_PACKED >> 20} go to a machine: remove large ones"
        )
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path in found:
            archive.add(path, str(path.relative_to(folder)), filter=_without_time)
    return content.getvalue()


def _without_time(file: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return a file of an archive without its owner and time: the same files give the same bytes."""
    file.mtime, file.uid, file.gid, file.uname, file.gname = 0, 0, 0, "", ""
    return file


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
