"""Job of one retraining: lease, checkout, and clean-up at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from opentelemetry import trace
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.states import Cancelled

from flows.server import place, progress, stopping
from flows.server.reconcile import reconcile
from remint.errors import Busy, Interrupted
from remint.promotion.retraining import Retraining, check_out
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores import git
from remint.stores.ledger import leases


@contextmanager
def open_job(
    pipeline: str, overrides: Sequence[str], reason: str, branch: str | None, *, gives_way: bool = True
) -> Iterator[Retraining]:
    """Open a job: a lock that shows that it lives, the pipeline's lease, and a checkout with the overrides applied.

    ``gives_way``: a scheduled run gives way to another one. A check of the champion waits, and no retraining gives way to it.
    """
    home = place.home_of_flow()
    if jobs.is_collecting(home):
        progress.tell(pipeline, "notice", text="waiting for remint gc to finish")
    with ExitStack() as stack:
        stack.enter_context(stopping.preemptible())
        record = stack.enter_context(jobs.live(home, pipeline=pipeline, flow_run=str(flow_run.id or "")))
        lease = stack.enter_context(_pipeline_lease(home, pipeline, record, gives_way))
        trace.get_current_span().set_attributes({"remint.pipeline": pipeline, "remint.job": record.id})
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
def _pipeline_lease(home: Home, pipeline: str, record: jobs.Job, gives_way: bool) -> Iterator[leases.Lease]:
    """Wait for the lease of the pipeline. A scheduled run does not wait for another scheduled run: it ends as Skipped."""
    holder = leases.Holder.of(pipeline, record)

    def say(text: str) -> None:
        progress.tell(pipeline, "notice", text=text)

    with ExitStack() as stack:
        if gives_way and stopping.is_deployed():
            try:  # wait only for an older process of this same flow run
                own_schedule = leases.held(
                    home, f"schedule of {pipeline}", holder, say, waits=lambda other: other.flow_run == holder.flow_run
                )
                stack.enter_context(own_schedule)
            except Busy as busy:
                stopping.end_as(Cancelled(name=stopping.SKIPPED, message=str(busy)), otherwise=busy)
        yield stack.enter_context(leases.held(home, pipeline, holder, say))
