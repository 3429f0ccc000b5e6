"""MLflow against its own files: versions without bytes, bytes without versions, two versions of one key, edited tags."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from remint.errors import IntegrityError, RemintError, RunError, StorageError, TrackingError
from remint.maintenance.audit.fault import Fault, fault, unreachable
from remint.records import digest
from remint.runtime import scratch
from remint.runtime.home import Home
from remint.serving import fresh
from remint.stores.mlflow import Tracking, inventory, package
from remint.stores.mlflow.inventory import Held, Run

ABREAST = 8  # versions whose files are listed at a time
NEEDED = ("manifest.json", package.WEIGHTS)
CHAMPION = "champion of the ledger"  # as roots.named says it


def lost(why: Mapping[str, str], versions: Sequence[Held]) -> Iterator[Fault]:
    """Roots that MLflow no longer has. Those that remint gc removed are none."""
    present = {held.version.ref for held in versions}
    for ref, reason in why.items():
        if ref not in present:
            name = ref.partition("/")[0]
            yield fault(
                "version",
                ref,
                f"It is {reason}; MLflow has no such version.",
                "It cannot be loaded, built again or gone back to.",
                f"remint rollback {name} --reason .. goes back to the last champion that loads; remint run {name} makes another.",
                damages=ref,
            )


def whole(home: Home, store: Tracking, held: Held, why: str, *, load: bool) -> Iterator[Fault]:
    """A version that is served or gone back to: its bytes come from the store and are held against its digests.

    ``why`` it is one of those (Root.why); ``load``: it is loaded in a fresh process, too.
    """
    ref = held.version.ref
    with scratch.folder() as place:
        try:
            bundle = store.fetch(held.version, place / "bundle")
            if load:
                fresh.check(bundle, place / "log")
        except (TrackingError, StorageError):
            raise
        except RunError as error:
            lacks = _lacks(store, held)
            if isinstance(lacks, IntegrityError):
                lacks = []  # what was said of the bytes stands
            if isinstance(lacks, RemintError):
                raise lacks from error  # the store is out of reach, which says nothing of the bytes
            said = re.sub(rf"{re.escape(str(place))}/(\S*/)?", "", str(error)).removeprefix(f"{ref}: ")
            yield _bytes(home, store, held, _without(held, lacks) if lacks else said, why)


def listed(home: Home, store: Tracking, versions: Sequence[Held]) -> Iterator[Fault]:
    """Any other version: whether the store lists its files. Their bytes are not read."""
    with ThreadPoolExecutor(ABREAST) as pool:
        for held, lacks in zip(versions, pool.map(lambda held: _lacks(store, held), versions), strict=True):
            if isinstance(lacks, IntegrityError):
                yield _bytes(home, store, held, str(lacks), "")
            elif isinstance(lacks, RemintError):
                yield unreachable(f"the files of {held.version.ref}", lacks)
                return  # one store holds them all: it is asked once
            elif lacks:
                yield _bytes(home, store, held, _without(held, lacks), "")


def _lacks(store: Tracking, held: Held) -> list[str] | RemintError:
    try:
        files = inventory.files(store, held)
    except RemintError as error:
        return error
    return [name for name in NEEDED if not files.get(name)]


def _without(held: Held, lacks: Sequence[str]) -> str:
    return f"{held.source} lacks {' and '.join(lacks)}"


def _bytes(home: Home, store: Tracking, held: Held, what: str, why: str) -> Fault:
    """A version whose bytes are gone, damaged, or not what was registered."""
    version, copy = held.version, home.path / "models" / held.version.key
    ref = version.ref
    risk = f"It is {why}: who loads it gets an error." if why else "It cannot be loaded, and is not promoted."
    if _is_copy(copy, held):
        mend = partial(inventory.restore_files, store, held, copy)
        repair = f"remint audit --repair writes it again from {copy}, whose digests are those that were registered."
    else:
        mend = None
        repair = f"remint rebuild {ref} makes the same weights again, to compare with."
        if CHAMPION in why:
            repair = f"remint rollback {version.name} --reason .. goes back to the last champion that loads; {repair}"
        elif not why:
            repair = f"remint gc takes it away; {repair}"
    return fault("bytes", ref, f"{what}.", risk, repair, damages=ref if why else None, mend=mend)


def _is_copy(copy: Path, held: Held) -> bool:
    try:
        package.check(copy, held.version)
    except IntegrityError:
        return False
    return True


def runs_of(store: Tracking, versions: Sequence[Held], runs: Mapping[str, Run], why: Mapping[str, str]) -> Iterator[Fault]:
    """Versions whose run was deleted: `mlflow gc` then takes their files, report and dvc.lock, and asks nobody."""
    for held in versions:
        version, root = held.version, why.get(held.version.ref, "")
        damages = version.ref if root else None
        run = runs.get(version.run_id)
        if run is None and not inventory.has_run(store, version.run_id):  # not one that was opened meanwhile
            yield fault(
                "run",
                version.ref,
                f"Its run {version.run_id} is no longer in MLflow.",
                "Its dvc.lock, settings and report cannot be had: it cannot be built again.",
                f"remint run {version.name} registers what is trained now; remint rollback {version.name} --reason .. goes back."
                if root
                else f"None is needed to go on; remint gc takes {version.ref} away.",
                damages=damages,
            )
        elif run is not None and run.deleted:
            restore = f"mlflow runs restore --run-id {run.id}"
            yield fault(
                "run",
                version.ref,
                f"Its run {run.id} is marked as deleted.",
                "The next mlflow gc removes the run with the version's files, report and dvc.lock.",
                f"remint audit --repair restores the run ({restore})." if root else f"{restore}; or remint gc takes both away.",
                damages=damages,
                mend=partial(inventory.restore_run, store, run.id) if root else None,
            )


def keys(versions: Sequence[Held], why: Mapping[str, str]) -> Iterator[Fault]:
    """Versions of one key, and those whose key is not that of what their tags say."""
    same: dict[str, list[str]] = defaultdict(list)
    for held in versions:
        version = held.version
        same[version.key].append(version.ref)
        damages = version.ref if version.ref in why else None
        risk = "Its lineage is not what it was registered with: what it was trained on can no longer be believed."
        if _key(held) != version.key:
            yield fault(
                "tags",
                version.ref,
                "Its key is not the digest of the weights, data and settings in its tags: a tag was edited.",
                risk,
                "Put the tag back in MLflow; training.json in its files says what it was.",
                damages=damages,
            )
    for refs in same.values():
        if len(refs) > 1:
            yield fault(
                "version",
                refs[-1],
                f"It has the key of {refs[0]}: {' and '.join(refs)} are one and the same model.",
                "It was registered past remint's lock; a promotion of one says nothing of the other.",
                f"Delete {refs[-1]} in MLflow's page of the model, where the ledger does not name it.",
            )


def _key(held: Held) -> str:
    """The key by the version's tags; "" where they hold none."""
    tags = held.version.tags
    if tags.missing(("recipe", "weights_sha256", "dataset")):
        return ""
    try:
        return digest({"weights": tags.weights_sha256, "dataset": tags.dataset, "recipe": tags.settings})
    except (IntegrityError, ValueError):
        return ""


def orphans(
    store: Tracking, folders: Sequence[tuple[str, str]], runs: Mapping[str, Run], versions: Sequence[Held]
) -> Iterator[Fault]:
    """Files of no run, and models of no version."""
    risk = "Nothing reaches these bytes: they take room."
    for run_id, place in folders:
        if run_id not in runs and inventory.has_files(store, place) and not inventory.has_run(store, run_id):
            yield fault(
                "orphan", place, "No run of MLflow has these files.", risk, "remint gc lists it, remint gc --apply removes it."
            )
    named = {held.version.run_id for held in versions}
    ended = [run for run in runs.values() if run.ours and run.id not in named and run.status != "RUNNING"]
    for run in ended:
        if (run.version or run.status != "FINISHED") and inventory.keeps_model(store, run):
            what = f"{run.version} is no longer registered" if run.version else "its registration did not come to its end"
            yield fault(
                "orphan",
                f"run {run.id}",
                f"It keeps the files of a model, and {what}.",
                risk,
                "remint gc lists it, remint gc --apply removes it.",
            )
