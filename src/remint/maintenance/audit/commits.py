"""Audit of git: commits of versions, bundles of uncommitted work, and unneeded refs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from remint.errors import IntegrityError, NotFoundError
from remint.maintenance.audit.fault import Fault, fault
from remint.runtime import scratch
from remint.runtime.home import Home
from remint.stores import git
from remint.stores.mlflow import ModelVersion, Tracking

BUNDLE = "uncommitted.bundle"
RISK = "It cannot be built again."


def present(home: Home, store: Tracking, version: ModelVersion) -> Iterator[Fault]:
    """Check that a version's commit is available: here, at origin, or (for uncommitted work) in the version's bundle."""
    if version.dirty:
        yield from _bundled(home, store, version)
    elif not git.obtain(home.repository, version.commit):
        yield _lost(version, f"Its commit {version.commit[:10]} is neither in {home.repository} nor at its origin.")


def _bundled(home: Home, store: Tracking, version: ModelVersion) -> Iterator[Fault]:
    here = git.holds(home.repository, version.commit)
    with scratch.folder() as temporary:
        try:
            base = git.prerequisites(store.attachment(version, BUNDLE, temporary))
        except (IntegrityError, NotFoundError):
            if not here:
                yield _lost(version, f"It was built from uncommitted work, and the {BUNDLE} with that work is gone.")
                return
            yield fault(
                "commit",
                version.ref,
                f"It was built from uncommitted work, and its {BUNDLE} is gone; this clone has the commit.",
                "It can be built again in this clone only.",
                "remint audit --repair makes the bundle again and stores it with the version.",
                damages=version.ref,
                mend=lambda: _bundle(home, store, version),
            )
            return
    gone = [sha[:10] for sha in base if not git.obtain(home.repository, sha)]
    if gone and not here:
        yield _lost(version, f"Its uncommitted work is based on {', '.join(gone)}, which is neither here nor at origin.")


def _bundle(home: Home, store: Tracking, version: ModelVersion) -> None:
    base = git.run_git(home.repository, "rev-parse", f"{version.commit}^").strip()
    git.pin(home.repository, version.commit)
    with scratch.folder() as temporary:
        commit = git.Commit(version.commit, dirty=True, base=base)
        store.attach(version, {BUNDLE: git.bundle(home.repository, commit, temporary / BUNDLE)})


def _lost(version: ModelVersion, what: str) -> Fault:
    repair = "Push the commit to origin from a clone that has it, or fetch it into this one."
    return fault("commit", version.ref, what, RISK, repair, damages=version.ref)


def refs(home: Home, needed: Collection[str]) -> Iterator[Fault]:
    """Find kept commits that no version and no running job was built from. ``needed``: the commits of those."""
    listed = git.run_git(home.repository, "for-each-ref", "--format=%(refname)", "refs/remint").split()
    for ref in listed:
        sha = ref.removeprefix("refs/remint/")
        if sha not in needed:
            yield fault(
                "orphan",
                ref,
                "No version was built from this commit.",
                "It takes space in the clone, and it may keep uncommitted work that a person wanted to discard.",
                f"remint gc --apply removes it (git update-ref -d {ref}).",
            )
