"""DVC against the versions that need it: the dvc.lock that each carries, and every file that building it again needs."""

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

# What a rebuild needs, by stage of dvc.lock: what it is, and what is lost with it.
NEEDED = {
    "snapshot": ("raw data", "No version of it can be built again"),
    "prepare": ("prepared data", "What changed since it was trained, and whether its data leak into today's, cannot be told"),
}

Outputs = dict[str, list[tuple[ModelVersion, str]]]  # by MD5: the versions that need it, each with the stage that made it


def locks(store: Tracking, roots: Sequence[ModelVersion]) -> tuple[Outputs, list[Fault]]:
    """The outputs that the dvc.lock of these versions name, and what is wrong with those files themselves."""
    outputs: Outputs = defaultdict(list)
    found: list[Fault] = []
    for version in roots:
        with scratch.folder() as temporary:
            try:
                lock = store.attachment(version, "dvc.lock", temporary)
                if manifest.sha256_file(lock) != version.tags.dvc_lock_sha256:
                    raise IntegrityError("the dvc.lock that it carries is not the one that it was registered with")
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
        "Which data it was trained on is lost: it cannot be built again.",
        f"remint run {version.name} registers what is trained now, with a dvc.lock of its own.",
        damages=version.ref,
    )


def missing(home: Home, outputs: Outputs, *, read: bool) -> Iterator[Fault]:
    """Files that the remote lacks, or the cache too. ``read``: the bytes on the remote are held against their MD5."""
    if not outputs:
        return
    for found in presence.look(home, sorted(outputs), read=read):
        if found.remote_lacks or found.damaged:
            yield _missing(home, found, [version for version, _ in outputs[found.md5]], outputs[found.md5][0][1])


def _missing(home: Home, found: Presence, needing: Sequence[ModelVersion], stage: str) -> Fault:
    what, risk = NEEDED[stage]
    version = needing[-1]
    data = version.tags.origin
    thing = f"{what} {data.name} {found.md5[:10]} of {', '.join(each.ref for each in needing)}"
    lacks = f"the remote lacks {len(found.remote_lacks)} of its {found.files} files"
    if found.damaged:
        lacks += f", and {len(found.damaged)} have other bytes than their MD5 says"
    if not found.lost:
        return fault(
            "remote",
            thing,
            f"{lacks[0].upper()}{lacks[1:]}; the cache of this machine has them.",
            f"{risk} from anywhere else, nor here once dvc gc has run.",
            "remint audit --repair sends them again (dvc push takes a folder for whole whose listing is there).",
            damages=version.ref,
            mend=lambda: presence.send(home, found),
        )
    if stage == "snapshot":
        repair = (
            f"Bring them from another machine's cache with dvc push; "
            f"remint run {version.name} registers a version on the data that {data.source or 'the source'} holds now."
        )
    else:
        repair = f"remint run {version.name} prepares them again; remint rebuild {version.ref} needs the raw data only."
    return fault(
        "remote",
        thing,
        f"{lacks[0].upper()}{lacks[1:]}, and the cache of this machine has them not either.",
        f"{risk}.",
        repair,
        damages=version.ref,
    )
