"""What a person sees of a decision in Prefect: the gate's table and the pictures. The same files lie on disk and in MLflow."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from prefect.artifacts import create_image_artifact, create_markdown_artifact
from prefect.events import emit_event

from flows.server.progress import artifact_key
from remint.promotion.page import write
from remint.promotion.retraining import Retraining
from remint.records import Decision, ModelVersion


def decision(job: Retraining, version: ModelVersion, verdict: Decision, folder: Path) -> None:
    """Artifacts of one decision: ``folder`` holds the version's report and pictures."""
    create_markdown_artifact(
        markdown=decision_markdown(version, verdict, folder),
        key=artifact_key(job.pipeline, "decision"),
        description=f"{version.ref}: {verdict.verdict}",
    )
    for path in sorted(folder.glob("*.png")):
        picture(path, job.pipeline, f"{version.ref}: {path.stem}")


def awaiting(verdict: Decision) -> None:
    """An event for those who are to be told that a person is waited for: automations take it to mail, chat and so on."""
    emit_event(
        event="remint.approval.awaited",
        resource={"prefect.resource.id": f"remint.model.{verdict.model}", "prefect.resource.name": verdict.model},
        payload=comparison(verdict),
    )


def comparison(verdict: Decision) -> dict[str, Any]:
    """Challenger beside champion, with intervals, and what to type."""
    ref = f"{verdict.model}/{verdict.challenger}"
    metrics: dict[str, dict[str, Any]] = {}
    for rule in verdict.rules:
        if rule.metric is None:
            continue
        sides = {"challenger": rule.challenger, "champion": rule.champion}
        said: dict[str, Any] = {side: value.to_json() for side, value in sides.items() if value is not None}
        said |= {"difference": rule.difference} if rule.difference else {}
        metrics[rule.metric] = {**metrics.get(rule.metric, {}), **said}
    return {
        "verdict": verdict.verdict,
        "version": ref,
        "champion": f"{verdict.model}/{verdict.champion}" if verdict.champion is not None else None,
        "reasons": list(verdict.reasons),
        "metrics": metrics,
        "promote": f'remint promote {ref} --reason ".."',
        "reject": f'remint reject {ref} --reason ".."',
    }


def picture(path: Path, pipeline: str, description: str) -> None:
    """One picture as an artifact of the flow that runs."""
    data = base64.b64encode(path.read_bytes()).decode()
    create_image_artifact(
        image_url=f"data:image/png;base64,{data}", key=artifact_key(pipeline, path.stem), description=description
    )


def against_champion(verdict: Decision, folder: Path) -> None:
    """The picture of the comparison, where there was one: each metric's interval beside the champion's."""
    compared = {rule.metric: rule for rule in verdict.rules if rule.metric and rule.challenger and rule.champion}
    if not compared:
        return
    from remint.evaluation import plots

    challenger = {name: rule.challenger for name, rule in compared.items() if rule.challenger}
    champion = {name: rule.champion for name, rule in compared.items() if rule.champion}
    plots.metric_intervals(folder / "against_champion.png", challenger, champion)


def decision_markdown(version: ModelVersion, verdict: Decision, folder: Path) -> str:
    """The gate's table: each rule, both numbers, their intervals; and where the page with everything else lies."""
    against = f"champion {verdict.model}/{verdict.champion}" if verdict.champion is not None else "no champion yet"
    lines = [f"## {version.ref}: {verdict.verdict}", "", f"Held against {against}.", ""]
    lines += ["| rule | metric | challenger | champion | passed | why |", "|---|---|---|---|---|---|"]
    for rule in verdict.rules:
        numbers = [value.text() if value else "" for value in (rule.challenger, rule.champion)]
        cells = [rule.rule, rule.metric or "", *numbers, "yes" if rule.passed else "**no**", rule.reason]
        lines.append(f"| {' | '.join(cells)} |")
    place = folder / write.NAME
    lines += ["", f"The report with pictures: [{place}]({place.as_uri()}), and {write.NAME} of MLflow's run {version.run_id}."]
    return "\n".join(lines) + "\n"
