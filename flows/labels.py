"""Labels of a retraining in Prefect: the name of its flow run, and its final state."""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from remint.promotion.outcome import Outcome


def run_name() -> str:
    """Return pipeline and day, as in "digits-vae 2026-11-30": the day when the run was due, in this machine's time zone."""
    return f"{flow_run.parameters['pipeline']} {flow_run.scheduled_start_time.astimezone():%Y-%m-%d}"


def state_name(verdict: str) -> str:
    """Return the name of the state of a run that ends with a verdict: AwaitingApproval."""
    return verdict.title().replace("_", "")


def completed(outcome: Outcome) -> Outcome | State[Outcome]:
    """Return the state Completed, named by the verdict: Promoted, Kept, Refused, AwaitingShadow or AwaitingApproval.

    Its result is ``outcome``.

    A run with the same weights, evidence and rules as before decides nothing and ends as Unchanged. So an automation that
    waits for Promoted acts once per promotion.
    """
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
    if state is not None and state.is_cancelling():
        return outcome  # Prefect does not complete such a run, and its caller would get no result
    verdict = outcome.decision.verdict
    name = "Unchanged" if outcome.unchanged else state_name(verdict)
    champion = f"champion: {outcome.champion_ref}" if outcome.champion else "no champion"
    return Completed(name=name, message=f"{outcome.ref}: {verdict}; {champion}", data=outcome)
