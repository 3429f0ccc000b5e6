"""Calibration of a registered version, from the dataset version that it was trained on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from remint.errors import DataError, IntegrityError
from remint.records import DatasetVersion, Record
from remint.runtime import jobs, manifest
from remint.runtime.home import Home
from remint.stores import git
from remint.stores.dvc import Workspace
from remint.stores.mlflow import CALIBRATION, ModelVersion, VersionTags
from remint.stores.open import fetch_bundle, open_tracking, resolve


class CalibratedVersion(Record):
    """A version that has a calibration now."""

    model: str  # NAME/7
    calibrated: int  # examples
    scores: tuple[str, ...]
    calibration: str  # SHA-256 of its manifest: the version's tag


def calibrate(home: Home, ref: str, say: Callable[[str], None]) -> CalibratedVersion:
    """Score the calibration split of a version's own data, keep the result with the version, and name it in its tags.

    Raises NotFoundError for an unknown version, DataError if its dataset has no calibration split, VersioningError if its data
    is neither in the cache nor on the DVC remote.
    """
    version, store = resolve(home, ref), open_tracking(home)
    _check_has_split(version)
    from remint.data import arrays  # torch takes seconds to import
    from remint.distributed.machine import deterministic
    from remint.serving.anomalies import calibration

    with ExitStack() as stack:
        job = stack.enter_context(jobs.live(home, pipeline=version.name, commit="", calibrate=version.ref))
        folder = home.workspaces / job.id
        stack.callback(git.remove, folder)
        git.check_out(home.repository, git.commit_of(home.repository, "HEAD"), folder)  # for dvc only
        lock = store.attachment(version, "dvc.lock", job.folder / "version")
        if manifest.sha256_file(lock) != version.tags.dvc_lock_sha256:
            raise IntegrityError(f"the dvc.lock of {version.ref} in MLflow differs from the registered one")
        name = version.tags.origin.name
        say(f"fetches {name}, on which {version.ref} was trained")
        prepared = Workspace(folder, home, job.folder).fetch_output(lock, f"prepare@{name}")
        if DatasetVersion.read(prepared / arrays.VERSION).digest != version.dataset:
            raise IntegrityError(f"dvc restored another dataset version than {version.ref} was trained on")
        say("scores the calibration split")
        threads = int(version.tags.made_on.get("threads", 1))
        with deterministic(threads):
            made = calibration.calibrate(fetch_bundle(home, version), arrays.load(prepared), folder / "calibration")
        sha256 = manifest.sha256_file(folder / "calibration" / manifest.NAME)
        store.attach(version, {CALIBRATION: folder / "calibration"})
        store.set_tags(version, VersionTags(calibration=sha256))  # last: until then the tag names the former files
    return CalibratedVersion(model=version.ref, calibrated=made.calibrated, scores=made.scores, calibration=sha256)


def _check_has_split(version: ModelVersion) -> None:
    origin = version.tags.origin
    if "calibration" not in origin.counts:
        raise DataError(
            f"{version.ref} was trained on a version of {origin.name} without a calibration split: set "
            f"datasets.{origin.name}.split.calibration in params.yaml, such as 0.1, and run remint run {version.name}"
        )
