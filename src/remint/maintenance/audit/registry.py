"""Audit of MLflow: versions without bytes, bytes without versions, two versions of one key, edited tags."""

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
from remint.runtime.addresses import local_path
from remint.runtime.home import Home
from remint.serving import fresh
from remint.stores.mlflow import ModelVersion, Tracking, inventory, package
from remint.stores.mlflow.inventory import Run, StoredVersion

PARALLEL = 8  # versions whose files are listed at the same time
NEEDED = ("manifest.json", package.WEIGHTS)
CHAMPION = "champion of the ledger"  # a reason of roots.root_reasons


def lost_roots(why: Mapping[str, str], versions: Sequence[StoredVersion]) -> Iterator[Fault]:
    """Find roots that MLflow no longer has. Versions that remint gc removed are not roots."""
    present = {held.version.ref for held in versions}
    for ref, reason in why.items():
        if ref not in present:
            name = ref.partition("/")[0]
            yield fault(
                "version",
                ref,
                f"It is {reason}; MLflow does not have this version.",
                "It cannot be loaded, built again or restored by a rollback.",
                f"remint rollback {name} --reason .. restores the last champion that loads; remint run {name} makes a new one.",
                damages=ref,
            )


def check_bytes(home: Home, store: Tracking, held: StoredVersion, why: str, *, load: bool) -> Iterator[Fault]:
    """Check a root: fetch its bytes from the store and compare them with its digests.

    ``why``: the reason why it is a root (Root.why); ``load``: also load it in a new process.
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
            lacks = _missing_files(store, held)
            if isinstance(lacks, IntegrityError):
                lacks = []  # the first error is reported
            if isinstance(lacks, RemintError):
                raise lacks from error  # the store is out of reach: nothing is known about the bytes
            message = re.sub(rf"{re.escape(str(place))}/(\S*/)?", "", str(error)).removeprefix(f"{ref}: ")
            yield _bytes(home, store, held, _describe_missing(held, lacks) if lacks else message, why)


def check_calibration(store: Tracking, version: ModelVersion) -> Iterator[Fault]:
    """Check that the calibration of a root is the one that its tag names, if it has one."""
    if version.tags.calibration is None:
        return
    try:
        with scratch.folder() as place:
            store.fetch_calibration(version, place)
    except IntegrityError as error:
        message = re.sub(r"/\S*/", "", str(error)).removeprefix(f"{version.ref}: ")
        yield fault(
            "calibration",
            version.ref,
            f"Its calibration: {message}.",
            "Examples cannot be scored with p-values.",
            f"remint calibrate {version.ref} makes it again.",
            damages=version.ref,
        )


def check_listing(home: Home, store: Tracking, versions: Sequence[StoredVersion]) -> Iterator[Fault]:
    """Check that the store lists the files of the other versions. Their bytes are not read."""
    with ThreadPoolExecutor(PARALLEL) as pool:
        for held, lacks in zip(versions, pool.map(lambda held: _missing_files(store, held), versions), strict=True):
            if isinstance(lacks, IntegrityError):
                yield _bytes(home, store, held, str(lacks), "")
            elif isinstance(lacks, RemintError):
                yield unreachable(f"the files of {held.version.ref}", lacks)
                return  # all versions are in the same store: one finding is enough
            elif lacks:
                yield _bytes(home, store, held, _describe_missing(held, lacks), "")


def _missing_files(store: Tracking, held: StoredVersion) -> list[str] | RemintError:
    try:
        files = inventory.files(store, held)
    except RemintError as error:
        return error
    return [name for name in NEEDED if not files.get(name)]


def _describe_missing(held: StoredVersion, lacks: Sequence[str]) -> str:
    return f"{local_path(held.source) or held.source} lacks {' and '.join(lacks)}"


def _bytes(home: Home, store: Tracking, held: StoredVersion, what: str, why: str) -> Fault:
    """Make the fault of a version whose bytes are gone, damaged, or not the registered ones."""
    version, copy = held.version, home.path / "models" / held.version.key
    ref = version.ref
    risk = f"It is {why}: loading it is an error." if why else "It cannot be loaded or promoted."
    if _is_copy(copy, held):
        mend = partial(inventory.restore_files, store, held, copy)
        repair = f"remint audit --repair writes it again from {copy}, whose digests match the registered ones."
    else:
        mend = None
        repair = f"remint rebuild {ref} makes the same weights again, for comparison."
        if CHAMPION in why:
            repair = f"remint rollback {version.name} --reason .. restores the last champion that loads; {repair}"
        elif not why:
            repair = f"remint gc removes it; {repair}"
    return fault("bytes", ref, f"{what}.", risk, repair, damages=ref if why else None, mend=mend)


def _is_copy(copy: Path, held: StoredVersion) -> bool:
    try:
        package.check(copy, held.version)
    except IntegrityError:
        return False
    return True


def runs_of(
    store: Tracking, versions: Sequence[StoredVersion], runs: Mapping[str, Run], why: Mapping[str, str]
) -> Iterator[Fault]:
    """Find versions whose run was deleted: `mlflow gc` removes their files, report and dvc.lock without a warning."""
    for held in versions:
        version, root = held.version, why.get(held.version.ref, "")
        damages = version.ref if root else None
        run = runs.get(version.run_id)
        if run is None and not inventory.has_run(store, version.run_id):  # it may have been opened after the list was made
            yield fault(
                "run",
                version.ref,
                f"Its run {version.run_id} is no longer in MLflow.",
                "Its dvc.lock, settings and report are lost: it cannot be built again.",
                f"remint run {version.name} registers a new version; remint rollback {version.name} --reason .. restores another."
                if root
                else f"No repair is needed; remint gc removes {version.ref}.",
                damages=damages,
            )
        elif run is not None and run.deleted:
            restore = f"mlflow runs restore --run-id {run.id}"
            yield fault(
                "run",
                version.ref,
                f"Its run {run.id} is marked as deleted.",
                "The next mlflow gc removes the run with the version's files, report and dvc.lock.",
                f"remint audit --repair restores the run ({restore})." if root else f"{restore}; or remint gc removes both.",
                damages=damages,
                mend=partial(inventory.restore_run, store, run.id) if root else None,
            )


def keys(versions: Sequence[StoredVersion], why: Mapping[str, str]) -> Iterator[Fault]:
    """Find versions of one model that share a key, and versions whose key does not match their tags."""
    same: dict[tuple[str, str], list[str]] = defaultdict(list)
    for held in versions:
        version = held.version
        same[version.name, version.key].append(version.ref)
        damages = version.ref if version.ref in why else None
        risk = "Its lineage differs from the registered one: the record of its training can no longer be trusted."
        if _key(held) != version.key:
            yield fault(
                "tags",
                version.ref,
                "Its key is not the digest of the weights, data and settings in its tags: a tag was edited.",
                risk,
                "Restore the tag in MLflow; training.json in its files holds the right value.",
                damages=damages,
            )
    for refs in same.values():
        if len(refs) > 1:
            yield fault(
                "version",
                refs[-1],
                f"It has the key of {refs[0]}: {' and '.join(refs)} are the same model.",
                "It was registered without remint's lock; a promotion of one does not apply to the other.",
                f"Delete {refs[-1]} on MLflow's page of the model, if the ledger does not name it.",
            )


def _key(held: StoredVersion) -> str:
    """Return the key that follows from the version's tags; "" if they are incomplete."""
    tags = held.version.tags
    if tags.missing(("recipe", "weights_sha256", "dataset")):
        return ""
    try:
        return digest({"weights": tags.weights_sha256, "dataset": tags.dataset, "recipe": tags.settings})
    except (IntegrityError, ValueError):
        return ""


def orphans(
    store: Tracking, folders: Sequence[tuple[str, str]], runs: Mapping[str, Run], versions: Sequence[StoredVersion]
) -> Iterator[Fault]:
    """Find files without a run, and models without a version."""
    risk = "These files are not used and take space."
    for run_id, place in folders:
        if run_id not in runs and inventory.has_files(store, place) and not inventory.has_run(store, run_id):
            yield fault(
                "orphan",
                str(local_path(place) or place),
                "No run of MLflow has these files.",
                risk,
                "remint gc lists it, remint gc --apply removes it.",
            )
    named = {held.version.run_id for held in versions}
    ended = [run for run in runs.values() if run.ours and run.id not in named and run.status != "RUNNING"]
    for run in ended:
        if (run.version or run.status != "FINISHED") and inventory.keeps_model(store, run):
            what = f"{run.version} is no longer registered" if run.version else "its registration was not completed"
            yield fault(
                "orphan",
                f"run {run.id}",
                f"It keeps the files of a model, and {what}.",
                risk,
                "remint gc lists it, remint gc --apply removes it.",
            )
