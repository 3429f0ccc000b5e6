"""One retraining's own things: its commit, its workspace, its settings, and what it has found out so far."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows import handover, progress
from flows.reconcile import reconcile
from remint import config, jobs, leases, stores, versioning, workspace
from remint.config import Params, PipelineSettings
from remint.errors import Busy, Interrupted
from remint.home import Home
from remint.ledger import Ledger
from remint.records import DatasetVersion, Evidence, SeedSpread, TrainedModel
from remint.tracking import Tracking


@dataclass
class Retraining:
    """What the steps of one retraining share. The records on disk are read when they are asked for."""

    home: Home
    record: jobs.Job
    pipeline: str
    params: Params
    overrides: dict[str, str]
    reason: str
    commit: workspace.Commit
    dvc: versioning.Workspace
    lease: leases.Lease
    trained: bool = False
    run_id: str | None = None  # MLflow's, while it is open
    rival: Path | None = None  # report folder of the champion on this job's data, once it is measured
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def settings(self) -> PipelineSettings:
        return self.params.pipelines[self.pipeline]

    @property
    def source(self) -> str:
        return self.params.datasets[self.settings.dataset].source

    def out(self, kind: str, name: str | None = None) -> Path:
        return self.dvc.folder / "outs" / kind / (name or self.pipeline)

    @property
    def dataset(self) -> DatasetVersion:
        return DatasetVersion.read(self.out("prepared", self.settings.dataset) / "dataset.json")

    @property
    def model(self) -> TrainedModel:
        return TrainedModel.read(self.out("trained") / "training.json")

    @property
    def evidence(self) -> Evidence:
        return Evidence.load(self.out("reports"))

    @property
    def tracking(self) -> Tracking:
        return stores.tracking(self.home)

    @property
    def spread(self) -> SeedSpread | None:
        """What seeds alone make of this pipeline; None where nobody has measured it, or the gate does not ask."""
        improve = self.settings.promotion.improve
        return stores.spreads(self.home).newest(self.pipeline) if improve and improve.margin == "auto" else None

    @property
    def ledger(self) -> Ledger:
        return stores.ledger(self.home)

    def finish_run(self) -> None:
        """Ends the MLflow run of a training that nothing is registered of."""
        if self.run_id is not None:
            self.tracking.end_run(self.run_id, "FINISHED")
            self.run_id = None

    def close_run(self, error: BaseException) -> None:
        """Ends the MLflow run that is still open with the reason why it did not come to its end."""
        if self.run_id is not None:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt | SystemExit | TerminationSignal)
            reason = handover.STOPPED if isinstance(error, TerminationSignal) else str(error) or type(error).__name__
            self.tracking.end_run(self.run_id, "KILLED" if stopped else "FAILED", reason)
            self.run_id = None

    def tell(self, event: str, **fields: Any) -> None:
        progress.tell(self.pipeline, event, **fields)


@contextmanager
def open_job(pipeline: str, overrides: Sequence[str], reason: str, branch: str | None) -> Iterator[Retraining]:
    """A commit, a checkout of it with the overrides applied, a lock that says that the job lives, the pipeline's lease."""
    repository = workspace.repository_of(Path.cwd())
    home = Home.of(repository).ensure()
    if jobs.is_collecting(home):
        progress.tell(pipeline, "notice", text="remint gc is at work: the job begins when it is over")
    with ExitStack() as stack:
        stack.enter_context(handover.preemptible())
        record = stack.enter_context(jobs.live(home, pipeline=pipeline, flow_run=str(flow_run.id or "")))
        lease = stack.enter_context(_alone(home, pipeline, record))
        began = time.monotonic()
        reconcile(home)
        commit = workspace.commit_of(repository, branch) if branch else workspace.commit_of_tree(repository)
        record.note(commit=commit.sha)
        stack.callback(workspace.remove, home.workspaces / record.id)
        folder = workspace.check_out(repository, commit, home.workspaces / record.id)
        content = config.read(folder)
        config.validate(content).pipeline(pipeline)
        if overrides:
            content = config.override(content, pipeline, overrides)
            config.write(content, folder)
        job = Retraining(
            home=home,
            record=record,
            pipeline=pipeline,
            params=config.validate(content),
            overrides=config.overrides_as_dict(overrides),
            reason=reason,
            commit=commit,
            dvc=versioning.Workspace(folder, home, logs=record.folder),
            lease=lease,
        )
        job.seconds["workspace"] = time.monotonic() - began
        job.tell("workspace", commit=commit.sha[:10], dirty=commit.dirty)
        try:
            yield job
        except BaseException as error:
            job.close_run(error)
            raise


@contextmanager
def _alone(home: Home, pipeline: str, record: jobs.Job) -> Iterator[leases.Lease]:
    """The lease of the pipeline, waited for; but no two scheduled runs of it queue up: the later leaves as Skipped."""
    holder = leases.Holder.of(pipeline, record)

    def say(text: str) -> None:
        progress.tell(pipeline, "notice", text=text)

    with ExitStack() as stack:
        if handover.is_deployed():
            try:  # a process of this very flow run is on its way out, or was thought dead
                mine = leases.held(
                    home, f"schedule of {pipeline}", holder, say, waits=lambda other: other.flow_run == holder.flow_run
                )
                stack.enter_context(mine)
            except Busy as busy:
                handover.end_as(Cancelled(name=handover.SKIPPED, message=str(busy)), otherwise=busy)
        yield stack.enter_context(leases.held(home, pipeline, holder, say))
