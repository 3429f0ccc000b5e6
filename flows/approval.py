"""Prefect's own form for a version that awaits approval. No process waits: the run is suspended until a person answers.

`remint deploy` makes the deployment approve/NAME of each pipeline with ``approval: manual``, and a retraining that ends in
awaiting_approval starts a run of it. Its page in Prefect has a button "Resume", which shows the comparison and the form.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from prefect import flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.states import Failed

from remint.errors import RemintError, SettingsError
from remint.promotion import decide, queries
from remint.promotion.page import brief
from remint.promotion.projection import current_version
from remint.records import LedgerRow
from remint.runtime.home import Home
from remint.stores import git


class Answer(RunInput):
    """What a person fills in."""

    decision: Literal["promote", "reject"]
    reason: str
    your_name: str


@flow(name="approve", persist_result=False)
def approve(model: str, version: int) -> LedgerRow | State[Any]:
    """Waits for a person's word on a version, and does it: the ledger's row, which says who answered.

    Where the answer comes too late (another champion stands, or the data changed), or names nobody or no reason, the run
    fails with that one line, and nothing was written.
    """
    home, ref = Home.of(git.repository_of(Path.cwd())).ensure(), f"{model}/{version}"
    answer = suspend_flow_run(wait_for_input=Answer.with_initial_data(description=_question(home, ref)))
    try:
        return _obey(home, ref, answer)
    except RemintError as error:
        return Failed(message=str(error))


def ask(row: LedgerRow) -> str | None:
    """Starts the form for what a row of the ledger leaves to a person; the name of its run, None where it is not deployed.

    The same row is asked about once.
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
    assert isinstance(run, FlowRun), "outside of asynchronous code it is no coroutine"
    return run.name


def _question(home: Home, ref: str) -> str:
    """The comparison, in Markdown, with what to do."""
    version = current_version(home, ref)
    decision = queries.kept_decision(home, version)
    if decision is None:
        return f"{ref} awaits approval. Nothing is kept of how it was judged: remint why {ref}"
    return brief.markdown(version, decision, home.report(version.name, version.version))


def _obey(home: Home, ref: str, answer: Answer) -> LedgerRow:
    name, reason = answer.your_name.strip(), answer.reason.strip()
    if not name or not reason:
        raise SettingsError(f"{ref}: an answer needs your_name and a reason, both go into the ledger: start approve again")
    act = decide.promote if answer.decision == "promote" else decide.reject
    return act(home, ref, reason, who=f"{name} via Prefect")
