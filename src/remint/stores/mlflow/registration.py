"""Registration: one version per key, made only after its stored bytes were loaded successfully."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from remint.errors import IntegrityError, RemintError
from remint.records import TrainedModel, canonical
from remint.runtime import manifest, scratch
from remint.stores.mlflow import package
from remint.stores.mlflow.door import PREFIX, create_once, door
from remint.stores.mlflow.records import ModelVersion, VersionTags
from remint.stores.mlflow.versions import CALIBRATION, Registry, record_of

CURVE = "curve.csv"  # in a bundle
KEY, VERSION = PREFIX + "key", PREFIX + "version"  # tags of a run: key of the model, and the version that was registered

Verify = Callable[[Path], str]  # loads a bundle in another process and describes the result; raises if it does not load


class Tracking(Registry):
    """All of MLflow: runs, models, and registration."""

    def register(
        self,
        bundle: Path,  # sealed folder of the trained model
        trained: TrainedModel,
        name: str,  # of the registered model
        run_id: str | None,  # open run that trained it; None: it was restored, and a run is opened for the registration
        tags: VersionTags,  # of the job: commit and dirty at least
        attachments: Mapping[str, Path],  # files and folders to keep with the run, by name
        verify: Verify,  # called with the bundle that was read back from the store
    ) -> ModelVersion:
        """Return the version of ``trained.key``: the existing one, or a new one. Close the run as FINISHED.

        The bytes are uploaded, read back, compared and verified before the version is made. If anything fails, there is no
        version and the run stays open. An existing version is read back too, and files that its run has lost are uploaded
        again. A version from uncommitted work gets the new tags and becomes clean when a clean commit gives the same key.

        Raises IntegrityError if the bundle or the stored bytes are damaged, StorageError if the store is full, and the errors
        of ``verify``.
        """
        sealed = manifest.verify(bundle)
        if sealed["files"].get(package.WEIGHTS) != trained.weights_sha256:
            raise IntegrityError(f"{bundle}/{package.WEIGHTS} does not match training.json: train again")
        with door(f"register {name}"), self.exclusive_lock(f"model {name}"):
            version = self._by_key(name, trained.key)
            if version is None:
                lineage = _facts(trained, bundle).updated(tags)
                with self._run_of(run_id, trained) as open_run:
                    version = self._make(bundle, trained, name, open_run, lineage, attachments, verify)
                run_id = open_run
            else:
                self._repair(version, bundle, trained, verify, attachments.get(CALIBRATION))
                if self._has_better_lineage(version, tags, attachments):
                    # ``dirty`` changes last: if this process dies before, the next one does all three again.
                    self.set_tags(version, tags.model_copy(update={"dirty": None}))
                    self.attach(version, attachments)
                    self.set_tags(version, VersionTags(dirty=tags.dirty or "true"))
                version = self.version(version.ref)
            if run_id:
                self._client.set_tag(run_id, VERSION, version.ref)
                self.end_run(run_id, "FINISHED")
        return version

    @contextmanager
    def _run_of(self, run_id: str | None, trained: TrainedModel) -> Iterator[str]:
        """Yield the run that trained the model, or the run of a registration that died, or a new run.

        The latter two are closed if the block fails.
        """
        if run_id is not None:
            yield run_id
            return
        run_id = self._unfinished_run(trained)
        if run_id is not None:
            self.reopen_run(run_id)
        else:
            run_id = self.start_run(trained.pipeline, {"restored": "true"}, trained.recipe)
        try:
            yield run_id
        except BaseException as error:
            with suppress(RemintError):  # the first error is the one to report
                self.end_run(run_id, "FAILED" if isinstance(error, RemintError) else "KILLED", str(error) or type(error).__name__)
            raise

    def _unfinished_run(self, trained: TrainedModel) -> str | None:
        """Return the run of an unfinished registration of this model, None if there is none."""
        closed = f"tags.`{KEY}` = '{trained.key}' and attributes.status != 'RUNNING'"
        found = self._client.search_runs([self._experiment(trained.pipeline)], closed)
        return next((run.info.run_id for run in found if VERSION not in run.data.tags), None)

    def _make(
        self,
        bundle: Path,
        trained: TrainedModel,
        name: str,
        run_id: str,
        lineage: VersionTags,
        attachments: Mapping[str, Path],
        verify: Verify,
    ) -> ModelVersion:
        """Upload, read back, verify, and then make the version with all its tags in one request."""
        client = self._client
        client.set_tag(run_id, KEY, trained.key)  # first: if this process dies, the next one continues with this run
        self._complete_curves(run_id, bundle / CURVE)
        uploaded = self._upload(bundle, trained, name, run_id, lineage, verify, attachments.get(CALIBRATION))
        with door(f"upload {name}"):
            for attachment, path in attachments.items():
                self.log_file(run_id, path, attachment)
            source = self._source(run_id)
        with door(f"register {name}"):
            self._ensure_model(name)
            made = create_once(
                lambda: client.create_model_version(
                    name, source, run_id, tags=lineage.updated(uploaded).to_mlflow(), await_creation_for=0
                ),
                lambda: self._find(name, trained.key),
            )
            first = self._find(name, trained.key)
            if (
                first is not None and first.version != made.version
            ):  # the lock was lost with PostgreSQL, and another host was faster
                client.delete_model_version(name, made.version)
                made = first
            return record_of(made)

    def _complete_curves(self, run_id: str, curve: Path) -> None:
        """Add the rows that the run lacks: other processes may have trained a part, or all."""
        with curve.open(newline="") as stream:
            rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]
        if rows:
            first = next(name for name in rows[0] if name != "step")
            known = {point.step for point in self._client.get_metric_history(run_id, first)}
            self.log_metrics(run_id, [row for row in rows if int(row["step"]) not in known])

    def _upload(
        self,
        bundle: Path,
        trained: TrainedModel,
        name: str,
        run_id: str,
        lineage: VersionTags,
        verify: Verify,
        calibration: Path | None = None,
    ) -> VersionTags:
        """Upload the bundle to the run's model folder and read it back. Return the tags about the stored bytes."""
        with door(f"upload {name}"), scratch.folder() as temporary:
            remint = package.requirement(self.place, lineage)
            packed = package.pack(bundle, trained.spec, remint, temporary / package.FOLDER, calibration)
            self._client.log_artifacts(run_id, str(packed), package.FOLDER)
            (temporary / "back").mkdir()
            back = self._download(self._source(run_id), temporary / "back")
            (back / package.MARK).unlink(missing_ok=True)
            others = _others(packed, back)
            if others:
                raise IntegrityError(
                    f"{name}: the store returned other bytes than were uploaded to run {run_id} ({', '.join(others)}): nothing "
                    "was registered. Remove other programs' files from that folder and run again."
                )
            try:
                return VersionTags(verified=verify(package.unpack(back)), package_sha256=package.sha256(back))
            except IntegrityError as error:
                raise IntegrityError(f"{name}: {error}; nothing was registered") from error

    def _source(self, run_id: str) -> str:
        """Return the address of the run's model folder."""
        return f"{self._client.get_run(run_id).info.artifact_uri}/{package.FOLDER}"

    def _repair(
        self, version: ModelVersion, bundle: Path, trained: TrainedModel, verify: Verify, calibration: Path | None
    ) -> None:
        """Make an existing version loadable again from the same weights.

        A run that is still open belongs to a process that died after it made the version: it is closed. A deleted run is
        restored, because `mlflow gc` would remove the bytes. Raises IntegrityError if both the bytes and their run are gone.
        """
        run = self._run(version)
        if run is not None:
            if run.info.lifecycle_stage == "deleted":
                with door(f"restore the run of {version.ref}"):
                    self._client.restore_run(version.run_id)
            self.end_run(version.run_id, "FINISHED")
        with scratch.folder() as temporary:
            try:
                self.fetch(version, temporary / "bundle")
                return
            except IntegrityError as lost:
                if run is None:
                    raise IntegrityError(
                        f"{lost}; its MLflow run {version.run_id} is gone too, so the files cannot be uploaded again: "
                        "delete the version in MLflow and run again, which registers these weights as a new version"
                    ) from lost
        uploaded = self._upload(bundle, trained, version.name, version.run_id, version.tags, verify, calibration)
        self.set_tags(version, _facts(trained, bundle).updated(uploaded).changes(version.tags))
        with scratch.folder() as temporary:
            self.fetch(self.version(version.ref), temporary / "bundle")

    def _has_better_lineage(self, version: ModelVersion, tags: VersionTags, attachments: Mapping[str, Path]) -> bool:
        """Return whether this registration's lineage replaces the version's: it is clean, or has files that were lost."""
        if self._run(version) is None:
            return False  # without a run no files can be kept
        dirty = tags.dirty != "false"
        if version.dirty != dirty:
            return version.dirty
        kept = {item.path for item in self._client.list_artifacts(version.run_id)}
        return not kept >= {name.partition("/")[0] for name in attachments}

    def _ensure_model(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            create_once(lambda: self._client.create_registered_model(name), lambda: None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _others(packed: Path, back: Path) -> list[str]:
    """Return the files, at most three, that differ between the folders."""
    ours, theirs = ({str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()} for root in (packed, back))
    names = sorted({*ours, *theirs})
    same = {name for name in names if name in ours and name in theirs and _equal(ours[name], theirs[name])}
    return [name for name in names if name not in same][:3]


def _equal(path: Path, other: Path) -> bool:
    return manifest.sha256_file(path) == manifest.sha256_file(other)


def _facts(trained: TrainedModel, bundle: Path) -> VersionTags:
    """Return the tags of a version that come from the training itself."""
    return VersionTags(
        key=trained.key,
        weights_sha256=trained.weights_sha256,
        manifest_sha256=manifest.sha256_file(bundle / manifest.NAME),
        dataset=trained.dataset,
        pipeline=trained.pipeline,
        recipe=canonical(trained.recipe),
        seed=str(trained.recipe.get("training", {}).get("seed", "")),
        world_size=str(trained.world_size),
        best_step=str(trained.best_step),
        fingerprint=canonical(trained.fingerprint),
    )
