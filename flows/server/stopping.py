"""How a flow's process leaves off what is not its own to end: when it is told to stop, and when another is at work on it.

SIGTERM comes where a machine is taken away, a worker stops, or a person cancels in Prefect. A person's word stays: Prefect
makes it Cancelled. Else a deployed run is handed back to Prefect as AwaitingRetry, for a worker to go on with from the
checkpoint, and a run that was typed says what to type.
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

STOPPED = "stopped by SIGTERM: a worker goes on from the checkpoint"
SKIPPED = "Skipped"  # the name of the state of a scheduled run that left the field to another
PATIENCE = 10.0  # seconds that Prefect's server has to answer a process that is to go


def own_run() -> FlowRun | None:
    """The flow run that this is the process of, as Prefect's engine holds it."""
    context = FlowRunContext.get()
    return context.flow_run if context else None


def is_deployed() -> bool:
    """Whether a worker runs this flow, and would run it again."""
    run = own_run()
    return run is not None and run.deployment_id is not None


@contextmanager
def preemptible() -> Iterator[None]:
    """Around a flow's work: SIGTERM in it, once the children have had their grace, ends as the page's top says."""
    try:
        yield
    except TerminationSignal as sign:
        if not is_deployed():
            raise Interrupted(AGAIN) from sign
        end_as(AwaitingRetry(message=STOPPED), otherwise=sign)


def end_as(state: State[Any], otherwise: BaseException) -> NoReturn:
    """Ends this process with its flow run in a state of our choice, and Prefect's engine without a word of its own.

    Raises ``otherwise``, of which the engine makes what it makes of it, where a person has cancelled the run, it has ended,
    or Prefect cannot be told.
    """
    if not _told(state):
        raise otherwise
    raise Abort(state.message or "")


def _told(state: State[Any]) -> bool:
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
