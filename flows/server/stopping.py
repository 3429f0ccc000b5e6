"""Graceful shutdown of a flow run on SIGTERM.

A cancelled run becomes Cancelled. A deployed run is handed back to Prefect as AwaitingRetry, and a worker resumes it from
the checkpoint. A run started from the command line prints the command that resumes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import Abort, ObjectNotFound, TerminationSignal
from prefect.states import AwaitingRetry

from remint.errors import Interrupted
from remint.runtime.processes import AGAIN
from remint.runtime.retry import retry, within

STOPPED = "stopped by SIGTERM: a worker continues from the checkpoint"
SKIPPED = "Skipped"  # name of the state of a scheduled run that gave way to another
PATIENCE = 10.0  # seconds that a stopping process waits for Prefect's server


def own_run() -> FlowRun | None:
    """Return the flow run of this process, as held by Prefect's engine; None outside of a flow."""
    context = FlowRunContext.get()
    return context.flow_run if context else None


def is_deployed() -> bool:
    """Return whether a worker runs this flow, and so can run it again."""
    run = own_run()
    return run is not None and run.deployment_id is not None


def is_cancelled() -> bool:
    """Return whether a person cancels this flow run, or it has ended. False if Prefect cannot be reached."""
    run = own_run()
    if run is None:
        return False
    try:
        with get_client(httpx_settings={"timeout": PATIENCE}, sync_client=True) as client:
            now = client.read_flow_run(run.id).state
    except (ObjectNotFound, httpx.HTTPError):
        return False
    return now is not None and (now.is_final() or now.is_cancelling())


@contextmanager
def preemptible() -> Iterator[None]:
    """Handle SIGTERM inside the block, after the children had time to stop, as described at the top of this module."""
    try:
        yield
    except TerminationSignal as sign:
        if not is_deployed():
            raise Interrupted(AGAIN) from sign
        end_as(AwaitingRetry(message=STOPPED), otherwise=sign)


def end_as(state: State[Any], otherwise: BaseException) -> NoReturn:
    """End this process with its flow run in ``state``, without a further state from Prefect's engine.

    Raises ``otherwise``, for the engine to handle, if the run was cancelled or has ended, or if Prefect cannot be reached.
    """
    if not _set_state(state):
        raise otherwise
    raise Abort(state.message or "")


def _set_state(state: State[Any]) -> bool:
    run = own_run()
    if run is None:
        return False

    def tell() -> bool:
        with get_client(httpx_settings={"timeout": PATIENCE}, sync_client=True) as client:
            now = client.read_flow_run(run.id).state
            if now is None or now.is_final() or now.is_cancelling():
                return False
            return client.set_flow_run_state(run.id, state).status.value == "ACCEPT"

    try:
        return retry(tell, passes=lambda error: isinstance(error, httpx.HTTPError), pauses=within(PATIENCE, every=0.5))
    except (ObjectNotFound, httpx.HTTPError):
        return False
