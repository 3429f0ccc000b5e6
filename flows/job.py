"""Opens the job of one retraining: its lease, its checkout, and the end of what it leaves open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.server import progress, stopping
from flows.server.reconcile import reconcile
from remint.errors import Busy, Interrupted
from remint.promotion.retraining import Retraining, check_out
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores import git
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
        reconcile(home)
        stack.callback(git.remove, home.workspaces / record.id)
        job = check_out(home, record, lease, pipeline, overrides, reason, branch, _listener)
        try:
            yield job
        except BaseException as error:
            preempted = isinstance(error, TerminationSignal)
            stopped = preempted or isinstance(error, Interrupted | KeyboardInterrupt | SystemExit)
            job.close_run(stopping.STOPPED if preempted else str(error) or type(error).__name__, stopped=stopped)
            raise


def _listener(pipeline: str, event: str, fields: dict[str, Any]) -> None:
    progress.tell(pipeline, event, **fields)


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
