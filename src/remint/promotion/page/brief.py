"""Summary of a decision without the page: as Markdown, and as the payload of an event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from remint.promotion.decision import Decision
from remint.promotion.page import write
from remint.stores.mlflow import ModelVersion


def markdown(version: ModelVersion, decision: Decision, folder: Path) -> str:
    """Return the gate's table (each rule with both numbers and intervals) and the place of the full page."""
    against = f"champion {decision.model}/{decision.champion}" if decision.champion is not None else "no champion yet"
    lines = [f"## {version.ref}: {decision.verdict}", "", f"Compared with {against}.", ""]
    lines += ["| rule | metric | challenger | champion | passed | why |", "|---|---|---|---|---|---|"]
    for rule in decision.rules:
        numbers = [value.text() if value else "" for value in (rule.challenger, rule.champion)]
        cells = [rule.rule, rule.metric or "", *numbers, "yes" if rule.passed else "**no**", rule.reason]
        lines.append(f"| {' | '.join(cells)} |")
    place = folder / write.NAME
    lines += ["", f"The report with pictures: [{place}]({place.as_uri()}), and {write.NAME} of MLflow's run {version.run_id}."]
    return "\n".join(lines) + "\n"


def comparison(decision: Decision) -> dict[str, Any]:
    """Return challenger and champion with intervals, and the commands that promote or reject."""
    ref = f"{decision.model}/{decision.challenger}"
    metrics: dict[str, dict[str, Any]] = {}
    for rule in decision.rules:
        if rule.metric is None:
            continue
        sides = {"challenger": rule.challenger, "champion": rule.champion}
        said: dict[str, Any] = {side: value.to_json() for side, value in sides.items() if value is not None}
        said |= {"difference": rule.difference} if rule.difference else {}
        metrics[rule.metric] = {**metrics.get(rule.metric, {}), **said}
    return {
        "verdict": decision.verdict,
        "version": ref,
        "champion": f"{decision.model}/{decision.champion}" if decision.champion is not None else None,
        "reasons": list(decision.reasons),
        "metrics": metrics,
        "promote": f'remint promote {ref} --reason ".."',
        "reject": f'remint reject {ref} --reason ".."',
    }
