"""One retraining: commit, workspace, settings, and the records that its steps have written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remint.data import schema, sources
from remint.promotion.durations import Durations
from remint.records import DatasetVersion, EvaluationReport, TrainedModel
from remint.runtime.home import Home
from remint.runtime.jobs import Job
from remint.settings.params import (
    Params,
    PipelineSettings,
    apply_overrides,
    overrides_as_dict,
    read_params,
    validate_params,
    write_params,
)
from remint.settings.split import is_source
from remint.stores import dvc, git, uncommitted
from remint.stores.dvc import Workspace
from remint.stores.git import Commit
from remint.stores.ledger.chain import Ledger
from remint.stores.ledger.leases import Lease
from remint.stores.ledger.spreads import SeedSpread
from remint.stores.mlflow import Tracking
from remint.stores.open import open_ledger, open_spreads, open_tracking

Listener = Callable[[str, str, dict[str, Any]], None]  # receives each event: pipeline, event, fields


@dataclass
class Retraining:
    """Shared state of the steps of one retraining. Records are read from disk at each access."""

    home: Home
    record: Job
    pipeline: str
    params: Params
    overrides: dict[str, str]
    reason: str
    commit: Commit
    dvc: Workspace
    lease: Lease
    listener: Listener
    trained: bool = False
    run_id: str | None = None  # MLflow's, while it is open
    seconds: dict[str, float] = field(default_factory=dict)
    durations: Durations = field(default_factory=Durations)

    @property
    def settings(self) -> PipelineSettings:
        return self.params.pipelines[self.pipeline]

    @property
    def remote_sources(self) -> list[tuple[str, str, str]]:
        """Key in params.yaml, folder below HOME/fetched and address of each source on S3."""
        name = self.settings.dataset
        found = self.params.datasets[name].sources.items()
        return [
            (f"params.yaml: datasets.{name}.{key}", sources.fetched_name(name, key), source)
            for key, source in found
            if source.startswith(sources.REMOTE)
        ]

    def out(self, kind: str, name: str | None = None) -> Path:
        return self.dvc.folder / "outs" / kind / (name or self.pipeline)

    @property
    def dataset(self) -> DatasetVersion:
        return DatasetVersion.read(self.out("prepared", self.settings.dataset) / "dataset.json")

    @property
    def calibrates(self) -> bool:
        """Whether the dataset has a calibration split, and the commit has the step that scores it."""
        return "calibration" in self.dataset.counts and self.dvc.has("calibrate")

    @property
    def model(self) -> TrainedModel:
        return TrainedModel.read(self.out("trained") / "training.json")

    @property
    def report(self) -> EvaluationReport:
        return EvaluationReport.read(self.out("reports") / "report.json")

    @property
    def tracking(self) -> Tracking:
        return open_tracking(self.home)

    @property
    def spread(self) -> SeedSpread | None:
        """Seed-to-seed variation of this pipeline; None if it was not measured, or the gate does not use it."""
        improve = self.settings.promotion.improve
        return open_spreads(self.home).newest(self.pipeline) if improve and improve.margin == "auto" else None

    @property
    def ledger(self) -> Ledger:
        return open_ledger(self.home)

    def finish_run(self) -> None:
        """End the MLflow run of a training whose weights are not registered."""
        if self.run_id is not None:
            self.tracking.end_run(self.run_id, "FINISHED")
            self.run_id = None

    def close_run(self, reason: str, *, stopped: bool) -> None:
        """End the MLflow run if it is still open. ``stopped``: by a signal or a person."""
        if self.run_id is not None:
            self.tracking.end_run(self.run_id, "KILLED" if stopped else "FAILED", reason)
            self.run_id = None

    def tell(self, event: str, **fields: Any) -> None:
        self.listener(self.pipeline, event, fields)


def raw_data(repository: Path) -> list[Path]:
    """Return the files and folders of raw data: the local sources of params.yaml, and what dvc tracks.

    Other settings may be invalid: the sources count all the same. Raises SettingsError if params.yaml is not readable, or if
    a source is the repository itself.
    """
    blocks = read_params(repository).get("datasets")
    found: dict[str, str] = {}
    for name, block in blocks.items() if isinstance(blocks, dict) else ():
        split = block.get("split") if isinstance(block, dict) else None
        if isinstance(block, dict) and isinstance(block.get("source"), str):
            found[f"datasets.{name}.source"] = block["source"]
        if isinstance(split, dict) and is_source(split.get("held_out")):
            found[f"datasets.{name}.split.held_out"] = split["held_out"]
    return [*sources.local_sources(found), *dvc.tracked(repository, git.files(repository, "*.dvc"))]


def check_missing(home: Home, params: Params, pipeline: str) -> None:
    """Raise SettingsError if the schema of an earlier import shows that the pipeline's family cannot take its missing values."""
    name = params.pipeline(pipeline).dataset
    known = schema.read_schema(home.path / "schemas", name, params.dataset(name))
    if known is not None:
        params.check_missing(pipeline, known.spec)


def check_out(
    home: Home,
    record: Job,
    lease: Lease,
    pipeline: str,
    overrides: Sequence[str],
    reason: str,
    branch: str | None,
    listener: Listener,
) -> Retraining:
    """Check out the commit of a retraining, apply the overrides to its settings, and return its state.

    ``branch``: use its head; None: use the files on disk.
    """
    began = time.monotonic()
    commit = (
        git.commit_of(home.repository, branch)
        if branch
        else uncommitted.commit_of_tree(home.repository, raw_data(home.repository))
    )
    record.note(commit=commit.sha)
    folder = git.check_out(home.repository, commit, home.workspaces / record.id)
    content = read_params(folder)
    validate_params(content).pipeline(pipeline)
    if overrides:
        content = apply_overrides(content, pipeline, overrides)
        write_params(content, folder)
    params = validate_params(content)
    check_missing(home, params, pipeline)
    job = Retraining(
        home=home,
        record=record,
        pipeline=pipeline,
        params=params,
        overrides=overrides_as_dict(overrides),
        reason=reason,
        commit=commit,
        dvc=Workspace(folder, home, logs=record.folder),
        lease=lease,
        listener=listener,
    )
    job.seconds["workspace"] = time.monotonic() - began
    job.tell("workspace", commit=commit.sha[:10], dirty=commit.dirty)
    return job


@contextmanager
def timed(job: Retraining, name: str) -> Iterator[None]:
    """Report that a step begins, and record its duration in seconds."""
    job.tell("step", name=name)
    began = time.monotonic()
    yield
    job.seconds[name] = round(time.monotonic() - began, 2)
