"""Opens the job of one retraining: its lease, its checkout, and the end of what it leaves open."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.server import progress, stopping
from flows.server.reconcile import reconcile
from remint.errors import Busy, Interrupted
from remint.promotion.retraining import Retraining
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.settings.params import (
    apply_overrides,
    overrides_as_dict,
    read_params,
    validate_params,
    write_params,
)
from remint.stores import git
from remint.stores.dvc import Workspace
from remint.stores.ledger import leases


@contextmanager
def open_job(pipeline: str, overrides: Sequence[str], reason: str, branch: str | None) -> Iterator[Retraining]:
    """A commit, a checkout of it with the overrides applied, a lock that says that the job lives, the pipeline's lease."""
    repository = git.repository_of(Path.cwd())
    home = Home.of(repository).ensure()
    if jobs.is_collecting(home):
        progress.tell(pipeline, "notice", text="remint gc is at work: the job begins when it is over")
    with ExitStack() as stack:
        stack.enter_context(stopping.preemptible())
        record = stack.enter_context(jobs.live(home, pipeline=pipeline, flow_run=str(flow_run.id or "")))
        lease = stack.enter_context(_alone(home, pipeline, record))
        began = time.monotonic()
        reconcile(home)
        commit = git.commit_of(repository, branch) if branch else git.commit_of_tree(repository)
        record.note(commit=commit.sha)
        stack.callback(git.remove, home.workspaces / record.id)
        folder = git.check_out(repository, commit, home.workspaces / record.id)
        content = read_params(folder)
        validate_params(content).pipeline(pipeline)
        if overrides:
            content = apply_overrides(content, pipeline, overrides)
            write_params(content, folder)
        job = Retraining(
            home=home,
            record=record,
            pipeline=pipeline,
            params=validate_params(content),
            overrides=overrides_as_dict(overrides),
            reason=reason,
            commit=commit,
            dvc=Workspace(folder, home, logs=record.folder),
            lease=lease,
            listener=lambda name, event, fields: progress.tell(name, event, **fields),
        )
        job.seconds["workspace"] = time.monotonic() - began
        job.tell("workspace", commit=commit.sha[:10], dirty=commit.dirty)
        try:
            yield job
        except BaseException as error:
            preempted = isinstance(error, TerminationSignal)
            stopped = preempted or isinstance(error, Interrupted | KeyboardInterrupt | SystemExit)
            job.close_run(stopping.STOPPED if preempted else str(error) or type(error).__name__, stopped=stopped)
            raise


@contextmanager
def _alone(home: Home, pipeline: str, record: jobs.Job) -> Iterator[leases.Lease]:
    """The lease of the pipeline, waited for; but no two scheduled runs of it queue up: the later leaves as Skipped."""
    holder = leases.Holder.of(pipeline, record)

    def say(text: str) -> None:
        progress.tell(pipeline, "notice", text=text)

    with ExitStack() as stack:
        if stopping.is_deployed():
            try:  # a process of this very flow run is on its way out, or was thought dead
                mine = leases.held(
                    home, f"schedule of {pipeline}", holder, say, waits=lambda other: other.flow_run == holder.flow_run
                )
                stack.enter_context(mine)
            except Busy as busy:
                stopping.end_as(Cancelled(name=stopping.SKIPPED, message=str(busy)), otherwise=busy)
        yield stack.enter_context(leases.held(home, pipeline, holder, say))
