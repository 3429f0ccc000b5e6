"""Audit of git: commits of versions, bundles of uncommitted work, raw data in either, and unneeded refs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from remint.errors import IntegrityError, NotFoundError, VersioningError
from remint.maintenance.audit.fault import Fault, fault
from remint.runtime import scratch
from remint.runtime.home import Home
from remint.stores import git, uncommitted
from remint.stores.mlflow import ModelVersion, Tracking

BUNDLE = "uncommitted.bundle"
RISK = "It cannot be built again."


def present(home: Home, store: Tracking, version: ModelVersion, data: Sequence[Path]) -> Iterator[Fault]:
    """Check that a version's commit is available: here, at origin, or (for uncommitted work) in the version's bundle.

    ``data``: the paths of raw data. A commit that contains any is not bundled again.
    """
    if version.dirty:
        yield from _bundled(home, store, version, data)
    elif not git.obtain(home.repository, version.commit):
        yield _lost(version, f"Its commit {version.commit[:10]} is neither in {home.repository} nor at its origin.")


def _bundled(home: Home, store: Tracking, version: ModelVersion, data: Sequence[Path]) -> Iterator[Fault]:
    repository, commit = home.repository, version.commit
    here = git.holds(repository, commit) and not uncommitted.files_of(repository, commit, data)
    with scratch.folder() as temporary:
        try:
            base = uncommitted.prerequisites(store.attachment(version, BUNDLE, temporary))
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
        store.attach(version, {BUNDLE: uncommitted.bundle(home.repository, commit, temporary / BUNDLE)})


def _lost(version: ModelVersion, what: str) -> Fault:
    repair = "Push the commit to origin from a clone that has it, or fetch it into this one."
    return fault("commit", version.ref, what, RISK, repair, damages=version.ref)


def raw_files(home: Home, store: Tracking, versions: Iterable[ModelVersion], data: Sequence[Path]) -> Iterator[Fault]:
    """Find raw data in commits of uncommitted work and in the bundles of versions, which an older remint put there."""
    for sha, from_uncommitted_work in uncommitted.pinned(home.repository).items():
        if from_uncommitted_work and (found := uncommitted.files_of(home.repository, sha, data)):
            yield _raw(
                f"refs/remint/{sha}",
                found,
                "Everyone who can read this clone can read them.",
                f"In each clone that has it: git update-ref -d refs/remint/{sha} && git gc --prune=now",
            )
    for version in versions:
        if version.dirty and (found := _files_of_bundle(home, store, version, data)):
            yield _raw(
                version.ref,
                found,
                f"They are in its {BUNDLE}: everyone who can read MLflow's files can read them.",
                f"Delete {store.attachment_uri(version, BUNDLE)}. {version.ref} can then not be built again; remint run "
                f"{version.name} registers a version without them.",
            )


def _raw(thing: str, found: Sequence[str], risk: str, repair: str) -> Fault:
    named = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    return fault("raw_data", thing, f"It contains raw data: {named}.", risk, repair)


def _files_of_bundle(home: Home, store: Tracking, version: ModelVersion, data: Sequence[Path]) -> list[str]:
    """Return the raw data in the bundle of a version; none if the bundle is gone, or cannot be read in this clone."""
    here = git.holds(home.repository, version.commit)
    found = uncommitted.files_of(home.repository, version.commit, data) if here else []
    if here and not found:
        return []  # the bundle has what the commit has: it need not be fetched
    with scratch.folder() as temporary:
        try:
            file = store.attachment(version, BUNDLE, temporary)
            if here:
                return found
            clone = uncommitted.unbundle(home.repository, file, temporary / "clone")
            return uncommitted.files_of(clone, version.commit, data)
        except (IntegrityError, NotFoundError, VersioningError):
            return []


def refs(home: Home, needed: Collection[str]) -> Iterator[Fault]:
    """Find kept commits that no version and no running job was built from. ``needed``: the commits of those."""
    for sha in uncommitted.pinned(home.repository):
        ref = f"refs/remint/{sha}"
        if sha not in needed:
            yield fault(
                "orphan",
                ref,
                "No version was built from this commit.",
                "It takes space in the clone, and it may keep uncommitted work that a person wanted to discard.",
                f"remint gc --apply removes it (git update-ref -d {ref}).",
            )
