"""Prefect artifacts for a decision: the gate's table and the pictures. The same files are on disk and in MLflow."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.events import emit_event

from flows import approval
from flows.server.progress import artifact_key
from remint.promotion.decision import Decision
from remint.promotion.page import brief
from remint.runtime.home import Home
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import ModelVersion
from remint.stores.open import open_ledger


def announce(home: Home, version: ModelVersion, decision: Decision, row: LedgerRow, tell: Callable[[str], None]) -> None:
    """Show a decision in Prefect. If it still awaits approval, send an event, start the form, and tell its name."""
    show_decision(home, version, decision)
    if decision.verdict != "awaiting_approval" or row != open_ledger(home).last(row.model):
        return
    tell_awaiting(decision)
    form = approval.ask(row)
    if form is not None:
        tell(f"{version.ref} can also be approved in Prefect: resume the run {form} of approve/{row.model}")


def show_decision(home: Home, version: ModelVersion, decision: Decision) -> None:
    """Create the artifacts of one decision."""
    folder = home.report(version.name, version.version)
    create_markdown_artifact(
        markdown=brief.markdown(version, decision, folder),
        key=artifact_key(version.name, "decision"),
        description=f"{version.ref}: {decision.verdict}",
    )
    for path in sorted(folder.glob("*.png")):
        show_picture(path, version.name, f"{version.ref}: {path.stem}")


def tell_awaiting(decision: Decision) -> None:
    """Send an event that a decision awaits a person. Automations forward it by mail, chat and so on."""
    emit_event(
        event="remint.approval.awaited",
        resource={"prefect.resource.id": f"remint.model.{decision.model}", "prefect.resource.name": decision.model},
        payload=brief.comparison(decision),
    )


def show_picture(path: Path, pipeline: str, description: str) -> None:
    """Create an artifact of the present flow run from one picture."""
    data = base64.b64encode(path.read_bytes()).decode()
    create_image_artifact(
        image_url=f"data:image/png;base64,{data}", key=artifact_key(pipeline, path.stem), description=description
    )
