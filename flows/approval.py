"""Approval of a version by a form in Prefect. The run is suspended until a person answers: no process waits.

`remint deploy` creates the deployment approve/NAME for each pipeline with ``approval: manual``. A retraining that ends in
awaiting_approval starts a run of it. The button "Resume" on its page in Prefect shows the comparison and the form.
"""

from __future__ import annotations

from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.states import Failed

from flows.server import place, progress
from remint.errors import RemintError, SettingsError
from remint.promotion import decide, publishing, queries
from remint.promotion.page import brief
from remint.promotion.projection import current_version
from remint.runtime.home import Home
from remint.stores.ledger.row import LedgerRow, is_visible


class Answer(RunInput):
    """Fields of the form."""

    decision: Literal["promote", "reject"]
    reason: str
    your_name: str


@flow(name="approve", persist_result=False)
def approve(model: str, version: int) -> LedgerRow | State[Any]:
    """Wait for a person's decision on a version and carry it out. Return the ledger row, which names the person.

    If the answer is too late (another champion, or changed data) or lacks a name or a reason, the run fails with that one
    line, and nothing was written.
    """
    home, ref = place.home_of_flow(), f"{model}/{version}"
    answer = suspend_flow_run(wait_for_input=Answer.with_initial_data(description=_question(home, ref)))
    try:
        return _carry_out(home, ref, answer)
    except RemintError as error:
        return Failed(message=str(error))


def ask(row: LedgerRow) -> str | None:
    """Start the form for a row that awaits approval. Return the name of its run; None if the form is not deployed.

    Each row starts one form only.
    """
    try:
        run = run_deployment(
            f"approve/{row.model}",
            parameters={"model": row.model, "version": row.version},
            flow_run_name=f"{row.model}-{row.version}",
            timeout=0,
            as_subflow=False,
            idempotency_key=row.hash,
        )
    except ObjectNotFound:
        return None
    assert isinstance(run, FlowRun), "a coroutine only in asynchronous code"
    return run.name


def _question(home: Home, ref: str) -> str:
    """Return the comparison in Markdown."""
    version = current_version(home, ref)
    decision = queries.kept_decision(home, version)
    if decision is None:
        return f"{ref} awaits approval. Its decision was not kept: see `remint why {ref}`"
    return brief.markdown(version, decision, home.report(version.name, version.version))


def _carry_out(home: Home, ref: str, answer: Answer) -> LedgerRow:
    name, reason = answer.your_name.strip(), answer.reason.strip()
    if not is_visible(name) or not is_visible(reason):
        raise SettingsError(f"{ref}: an answer needs your_name and a reason for the ledger: start approve again")
    if answer.decision == "reject":
        return decide.reject(home, ref, reason, who=f"{name} via Prefect")
    row = decide.promote(home, ref, reason, who=f"{name} via Prefect")
    publishing.publish_decided(home, row.model, lambda text: progress.tell(row.model, "notice", text=text))
    return row
