"""Judge the versions of a pipeline that await shadow, on schedule. `remint deploy` makes it for pipelines with serving.shadow.

A retraining does the same first. This flow trains nothing, and takes seconds.
"""

from __future__ import annotations

from typing import Any

from prefect import State, flow
from prefect.states import Completed

from flows import artifacts, labels
from flows.server import place, progress
from remint.promotion import publishing
from remint.promotion.shadow import judge_waiting
from remint.stores.ledger.row import LedgerRow


@flow(name="shadow", flow_run_name=labels.run_name, persist_result=False)
def judge_shadow(pipeline: str) -> list[LedgerRow] | State[Any]:
    """Judge each version that awaits shadow, if its answers are there or its deadline has passed. Return the new ledger rows.

    The final state has the name of the newest verdict; it is Unchanged if nothing was judged.
    """
    home = place.home_of_flow()
    said: list[str] = []

    def tell(text: str) -> None:
        said.append(text)
        progress.tell(pipeline, "notice", text=text)

    rows = judge_waiting(home, pipeline, tell, artifacts.announce)
    publishing.publish_decided(home, pipeline, tell)
    name = labels.state_name(rows[-1].action) if rows else "Unchanged"
    return Completed(name=name, message="; ".join(said) or "no version awaits shadow", data=rows)
