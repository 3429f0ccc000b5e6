"""Triggers: flows that start a retraining of a pipeline. `remint deploy` makes them for pipelines with triggers.

watch/NAME      triggers.data_changed: compares a fingerprint of the sources; takes seconds
monitor/NAME    triggers.drift: judges the champion on today's data; takes as long as preparing them and one evaluation
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed

from flows import labels, steps
from flows.job import open_job
from flows.server import place, stopping
from remint.errors import OrchestrationError
from remint.promotion import monitoring, new_data
from remint.promotion.monitoring import Monitoring
from remint.promotion.new_data import Started
from remint.runtime.home import Home
from remint.stores.ledger import leases


@flow(name="watch", flow_run_name=labels.run_name, persist_result=False)
def watch(pipeline: str, branch: str | None = None) -> State[Any]:
    """Start one retraining if the sources changed since the newest one. The final state is Started or Unchanged.

    Two looks at once start one run, by its idempotency key. A start that gave way to another run (Skipped) is repeated.
    """
    home = place.home_of_flow()
    seen = new_data.fingerprint(home, new_data.params_of(home, branch), pipeline)
    if seen == new_data.done(home, pipeline):
        return _unchanged("the sources did not change since the newest retraining")
    before, tries = new_data.started(home, pipeline), 1
    if before is not None and before.fingerprint == seen:
        state = _state_name(before.flow_run)
        if state not in (None, stopping.SKIPPED):
            return _unchanged(f"a retraining on these sources was started already: it is {state}")
        tries = before.tries + 1
    if under_way(home, pipeline):
        return _unchanged("the sources changed, and a retraining is under way: the next look starts another one")
    run = start(home, pipeline, "data changed", f"{seen} {tries}")
    new_data.keep_started(home, pipeline, Started(fingerprint=seen, flow_run=run.id, tries=tries))
    return Completed(name="Started", message=f"the sources changed: {run.name} retrains {pipeline}")


@flow(name="monitor", flow_run_name=labels.run_name, persist_result=False)
def monitor(pipeline: str, branch: str | None = None) -> Monitoring | State[Monitoring]:
    """Hold today's data against those that the champion was trained on. A deployed run starts the retraining of an alarm.

    The name of the final state is that of the answer: Drifted, NoDrift, NoNewData and so on.
    """
    home = place.home_of_flow()
    reign = monitoring.reign(home, pipeline)
    if reign is None:
        return _answered(monitoring.nothing_to_judge(pipeline))
    with open_job(pipeline, [], "drift check", branch, gives_way=False) as job:
        steps.fetch(job)
        steps.version_data(job)
        answer = monitoring.known(job, reign)
        if answer is None:
            steps.learn_features(job)
            answer = steps.check_drift(job, reign)
        settings = job.settings.triggers.drift
    opened = monitoring.open_alarm(home, pipeline)
    if opened is not None and settings is not None and stopping.is_deployed():
        # A retraining that failed is started again once per cooldown, while the alarm is open.
        turn = int((datetime.now(UTC) - datetime.fromisoformat(opened.at)).total_seconds() // settings.rest)
        start(home, pipeline, f"drift: {opened.summary}", f"drift {opened.reign} {opened.number} {turn}")
    return _answered(answer)


def _answered(answer: Monitoring) -> State[Monitoring]:
    return Completed(name=labels.state_name(answer.state), message=answer.text, data=answer)


def under_way(home: Home, pipeline: str) -> bool:
    """Return whether a deployed retraining of the pipeline runs on this machine: another one would give way to it."""
    holder = leases.Leases(home.ledger_url).read(f"schedule of {pipeline}").holder
    return holder is not None and holder.is_over() is False


def start(home: Home, pipeline: str, reason: str, key: str) -> FlowRun:
    """Start a retraining, once for each ``key``. Return its flow run. Raises OrchestrationError if it is not deployed."""
    try:
        run = run_deployment(
            f"retrain/{pipeline}",
            parameters={"reason": reason},
            timeout=0,
            as_subflow=False,
            idempotency_key=f"{home.path} {pipeline} {key}",
        )
    except ObjectNotFound:
        raise OrchestrationError(f"retrain/{pipeline} is not deployed: run remint deploy") from None
    assert isinstance(run, FlowRun), "a coroutine only in asynchronous code"
    return run


def _state_name(flow_run: UUID) -> str | None:
    """Return the name of the state of a flow run; None if it was deleted."""
    with get_client(sync_client=True) as client:
        try:
            return client.read_flow_run(flow_run).state_name
        except ObjectNotFound:
            return None


def _unchanged(why: str) -> State[Any]:
    return Completed(name="Unchanged", message=why)
