"""Build a version again in a separate workspace, from its commit, settings and data. Every step really runs.

Only the snapshot step does not run: the source may have changed or be gone. The data come from the DVC remote, by the
version's dvc.lock. Cache, checkpoints and fetched files are in the workspace and removed with it: so a rebuild uses no files
of this machine's other work, and leaves none.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remint.data.schema import SNAPSHOT
from remint.errors import IntegrityError, RepositoryError, ResourceError, VersioningError
from remint.evaluation.evidence import Evidence
from remint.maintenance.rebuild.compare import Facts
from remint.maintenance.rebuild.record import BUNDLE, VersionRecords
from remint.records import TrainedModel
from remint.runtime import manifest
from remint.runtime.events import COMPILE
from remint.runtime.home import Home
from remint.settings.params import PARAMS, read_params, validate_params
from remint.stores import git, s3, uncommitted
from remint.stores.dvc import OnEvent, Workspace, locked
from remint.stores.mlflow import Tracking

Listener = Callable[[str, str, dict[str, Any]], None]  # version, event, fields of the event
SCRATCH = ".remint"  # folder of the workspace that replaces the home


@dataclass
class Build:
    """One rebuild: its folders and its progress."""

    home: Home
    recorded: VersionRecords
    folder: Path  # the workspace
    logs: Path
    listener: Listener
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str, doing: str) -> Iterator[None]:
        self.tell("notice", text=doing)
        began = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - began, 2)

    def tell(self, event: str, **fields: Any) -> None:
        self.listener(self.recorded.version.ref, event, fields)

    def out(self, kind: str, name: str) -> Path:
        return self.folder / "outs" / kind / name


def check_machine(recorded: VersionRecords, tell: Callable[[str], None]) -> None:
    """Raise ResourceError if this machine has too few devices. Report it if the version had a GPU and this machine has none."""
    made_on, ranks = recorded.facts.fingerprint, int(recorded.version.tags.world_size or 1)
    if ranks == 1 and made_on.get("device") != "cuda":
        return
    import torch

    from remint.distributed import machine

    if ranks > machine.devices():
        raise ResourceError(
            f"{recorded.version.ref} was trained by {ranks} processes, this machine has devices for {machine.devices()}: "
            f"rebuild it on a machine with {ranks} GPUs or CPU cores"
        )
    if made_on.get("device") == "cuda" and not torch.cuda.is_available():
        tell(
            f"it was made on a GPU ({made_on.get('device_name')}) and this machine has none: training on the CPU may take many "
            "times as long, and metrics are compared within their tolerances"
        )


def check_out(build: Build, store: Tracking) -> None:
    """Check out the version's commit into the workspace, with the version's params.yaml and dvc.lock.

    Raises RepositoryError if neither this clone nor its origin nor the version has the commit.
    """
    recorded, repository = build.recorded, build.home.repository
    version = recorded.version
    bundled = None
    if version.dirty and not git.holds(repository, version.commit):
        bundled = store.attachment(version, BUNDLE, build.logs)
    for sha in uncommitted.prerequisites(bundled) if bundled else [version.commit]:
        if not git.obtain(repository, sha):
            source = f"uncommitted work on {sha}" if bundled else f"commit {sha}"
            raise RepositoryError(
                f"{version.ref} was built from {source} of {recorded.repository}, and neither this clone ({repository}) nor its"
                " origin has that commit: rebuild it in a clone that has it, or git fetch it"
            )
    git.check_out(repository, git.Commit(version.commit, version.dirty), build.folder, bundled)
    shutil.copyfile(recorded.params, build.folder / PARAMS)
    shutil.copyfile(recorded.lock, build.folder / "dvc.lock")


def run_steps(build: Build) -> Facts:
    """Fetch the data and run prepare, features, train and evaluate. Return the facts of the result.

    Raises VersioningError if the data cannot be fetched, IntegrityError if they are not the registered ones, and the errors
    of the steps.
    """
    recorded = build.recorded
    dataset, pipeline = recorded.dataset, recorded.pipeline
    dvc = Workspace(build.folder, build.home, build.logs, scratch=build.folder / SCRATCH)
    with build.timed("pull", "fetches its data from the DVC remote"):
        try:
            dvc.pull(f"snapshot@{dataset}")
        except VersioningError as error:
            raise VersioningError(f"{recorded.version.ref}: its data cannot be fetched: {error}") from error
        snapshot = build.out("raw", dataset) / SNAPSHOT
        if not snapshot.exists() or manifest.sha256_file(snapshot) != recorded.raw_sha256:
            raise IntegrityError(f"{recorded.version.ref}: the DVC remote returned other data than it was trained on")
        _fetch_feature_files(build, dvc.home)
    features = recorded.features
    dvc.resolve()
    env = {COMPILE: "on" if recorded.facts.fingerprint.get("compiled") else "off"}
    for step, name in (("prepare", dataset), ("features", features), ("train", pipeline), ("evaluate", pipeline)):
        build.tell("step", name=step)
        began = time.monotonic()
        dvc.run_uncached(step, name, _reporter(build, step), env)
        build.seconds[step] = round(time.monotonic() - began, 2)
    bundle = build.out("trained", pipeline)
    manifest.verify(bundle)
    trained, report = TrainedModel.read(bundle / "training.json"), Evidence.load(build.out("reports", pipeline)).report
    return Facts(
        weights_sha256=trained.weights_sha256,
        dataset=trained.dataset,
        features=locked(build.folder / "dvc.lock", f"features@{features}")["md5"],
        report_sha256=report.digest,
        manifest_sha256=manifest.sha256_file(bundle / manifest.NAME),
        settings=trained.recipe,
        metrics=report.metrics,
        fingerprint=trained.fingerprint,
    )


def _reporter(build: Build, step: str) -> OnEvent:
    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            build.tell("progress", name=step, **{key: value for key, value in event.items() if key not in ("event", "at")})

    return on_event


def _fetch_feature_files(build: Build, home: Home) -> None:
    """Fetch files of feature extractors with an s3:// address to the folder where the steps look for them."""
    content = read_params(build.folder)
    block = content["pipelines"][build.recorded.pipeline]["evaluation"]
    if not any(isinstance(file, dict) and str(file.get("path")).startswith(s3.SCHEME) for file in block.values()):
        return  # params.yaml may be older than today's settings: validate it only if that is needed
    settings = validate_params(content).pipeline(build.recorded.pipeline)
    for name, (file, sha256) in settings.evaluation.feature_files(settings.metrics()).items():
        if file.path.startswith(s3.SCHEME):
            key = f"{build.recorded.version.ref}: pipelines.{build.recorded.pipeline}.evaluation.{name}.path"
            s3.fetch_file(home, key, file.path, sha256, _reporter(build, "fetch"))
