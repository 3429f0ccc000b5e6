"""Audit of DVC: the dvc.lock of each version, and every file that a rebuild of it needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from remint.errors import IntegrityError, NotFoundError, RemintError, VersioningError
from remint.maintenance.audit.fault import Fault, fault, unreachable
from remint.runtime import manifest, scratch
from remint.runtime.home import Home
from remint.stores.dvc import locked, presence
from remint.stores.dvc.presence import Presence
from remint.stores.mlflow import ModelVersion, Tracking

# Outputs that a rebuild needs, by stage of dvc.lock: name of the output, and the risk if it is lost.
NEEDED = {
    "snapshot": ("raw data", "No version that was trained on them can be built again"),
    "prepare": ("prepared data", "Later data cannot be compared with them, for changes or for leakage"),
}

Outputs = dict[str, list[tuple[ModelVersion, str]]]  # by MD5: the versions that need the output, each with the stage that made it


def locks(store: Tracking, roots: Sequence[ModelVersion]) -> tuple[Outputs, list[Fault]]:
    """Return the outputs in the dvc.lock of each version, and the faults of those files themselves."""
    outputs: Outputs = defaultdict(list)
    found: list[Fault] = []
    for version in roots:
        with scratch.folder() as temporary:
            try:
                lock = store.attachment(version, "dvc.lock", temporary)
                if manifest.sha256_file(lock) != version.tags.dvc_lock_sha256:
                    raise IntegrityError("its dvc.lock differs from the registered one")
                dataset = version.tags.origin.name
                for stage in NEEDED:
                    outputs[locked(lock, f"{stage}@{dataset}")["md5"]].append((version, stage))
            except (IntegrityError, NotFoundError, VersioningError, KeyError, ValueError) as error:
                found.append(_no_lock(version, str(error)))
            except RemintError as error:
                found.append(unreachable(f"the dvc.lock of {version.ref}", error))
    return outputs, found


def _no_lock(version: ModelVersion, what: str) -> Fault:
    return fault(
        "lineage",
        version.ref,
        f"Its dvc.lock cannot be read: {what}.",
        "The record of its training data is lost: it cannot be built again.",
        f"remint run {version.name} registers a new version with a new dvc.lock.",
        damages=version.ref,
    )


def missing(home: Home, outputs: Outputs, *, read: bool) -> Iterator[Fault]:
    """Find files that the remote, or also the cache, lacks. ``read``: compare the bytes on the remote with their MD5."""
    if not outputs:
        return
    for found in presence.check(home, sorted(outputs), read=read):
        if found.remote_lacks or found.damaged:
            yield _missing(home, found, [version for version, _ in outputs[found.md5]], outputs[found.md5][0][1])


def _missing(home: Home, found: Presence, needing: Sequence[ModelVersion], stage: str) -> Fault:
    what, risk = NEEDED[stage]
    version = needing[-1]
    data = version.tags.origin
    thing = f"{what} {data.name} {found.md5[:10]} of {', '.join(each.ref for each in needing)}"
    lacks = f"the remote lacks {len(found.remote_lacks)} of its {found.files} files"
    if found.damaged:
        lacks += f", and the bytes of {len(found.damaged)} do not match their MD5"
    if not found.lost:
        return fault(
            "remote",
            thing,
            f"{lacks[0].upper()}{lacks[1:]}; the cache of this machine has them.",
            f"{risk} on other machines, and also not here after dvc gc.",
            "remint audit --repair sends them again (dvc push checks only the listing of a folder).",
            damages=version.ref,
            mend=lambda: presence.send(home, found),
        )
    if stage == "snapshot":
        repair = (
            f"Send them from another machine's cache with dvc push; "
            f"remint run {version.name} registers a version on the present data of {data.source or 'the source'}."
        )
    else:
        repair = f"remint run {version.name} prepares them again; remint rebuild {version.ref} needs only the raw data."
    return fault(
        "remote",
        thing,
        f"{lacks[0].upper()}{lacks[1:]}, and the cache of this machine lacks them too.",
        f"{risk}.",
        repair,
        damages=version.ref,
    )
