"""Write report.html of one version: the decision and its evidence, for people. Kept on disk and in MLflow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from remint.data.schema import SCHEMA, Schema
from remint.promotion.decision import Decision
from remint.promotion.retraining import Retraining
from remint.records import DataSpec, Drift
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import ModelVersion

if TYPE_CHECKING:  # numpy and matplotlib are imported only when there is a decision
    from remint.promotion.judge import Judgement
    from remint.promotion.page.story import Story

NAME = "report.html"

# Picture of both sides (against_NAME.png) -> picture of the version alone, used if the first is missing.
PICTURES = {"curves": "curve", "likelihood": "likelihood", "columns": "samples", "drift": "drift", "leakage": "leakage"}


def write(job: Retraining, version: ModelVersion, judgement: Judgement, row: LedgerRow, folder: Path) -> Path:
    """Write the page and the pictures of both sides into ``folder``, the report of the version. Return its path."""
    import numpy as np

    from remint.promotion.page.render import render
    from remint.promotion.page.story import Side, Story

    decision, measured = judgement.decision, judgement.champion.folder
    _draw_intervals(decision, folder)
    itself = decision.champion == version.version
    champion_version = job.tracking.version(f"{version.name}/{decision.champion}") if decision.champion and not itself else None
    challenger = Side.read(version, folder)
    champion = Side.read(champion_version, measured) if champion_version and measured else None
    story = Story(
        decision=decision,
        rules=job.settings.promotion,
        row=row,
        spec=DataSpec.read(folder / "spec.json"),
        real_NX=np.load(folder / "real.npy", allow_pickle=False),
        challenger=challenger,
        champion=champion,
        champion_version=champion_version,
        drift=Drift.read(folder / "drift.json") if (folder / "drift.json").exists() else None,
        read_as=Schema.read(job.out("raw", job.settings.dataset) / SCHEMA).decisions,
    )
    if champion is not None and measured is not None:
        _draw_both(story, folder, measured)
    drawn = {name: next((path for path in _candidates(folder, name) if path.exists()), None) for name in PICTURES}
    pictures = {name: path.read_bytes() for name, path in drawn.items() if path is not None}
    page = folder / NAME
    page.write_text(render(replace(story, pictures=pictures)))
    return page


def _candidates(folder: Path, name: str) -> list[Path]:
    """Return the possible paths of a picture: of both sides, then of the version alone."""
    return [folder / f"against_{name}.png", folder / f"{PICTURES[name]}.png"]


def _draw_intervals(decision: Decision, folder: Path) -> None:
    """Draw each metric's interval beside the champion's, if they were compared."""
    compared = {rule.metric: rule for rule in decision.rules if rule.metric and rule.challenger and rule.champion}
    if not compared:
        return
    from remint.evaluation import plots

    challenger = {name: rule.challenger for name, rule in compared.items() if rule.challenger}
    champion = {name: rule.champion for name, rule in compared.items() if rule.champion}
    plots.metric_intervals(folder / "against_champion.png", challenger, champion)


def _draw_both(story: Story, folder: Path, measured: Path) -> None:
    """Draw the challenger beside the champion, whose report is in ``measured``."""
    import numpy as np

    from remint.evaluation import drawing, exhibits, plots
    from remint.evaluation.report import read_curve

    assert story.champion is not None
    both = {story.challenger.version.ref: (story.challenger, folder), story.champion.version.ref: (story.champion, measured)}
    curves = {name: (read_curve(place / "curve.csv"), side.trained.best_step) for name, (side, place) in both.items()}
    if any(curve["step"] for curve, _ in curves.values()):
        plots.curves(folder / "against_curves.png", curves)
    for metric in exhibits.LIKELIHOODS:
        values = {name: np.asarray(side.values[metric]) for name, (side, _) in both.items() if metric in side.values}
        if len({value_N.shape for value_N in values.values()}) == 1 < len(values):
            plots.likelihoods(folder / "against_likelihood.png", story.challenger.report.metrics[metric], values)
            break
    drawn = {name: side.samples_NX for name, (side, _) in both.items() if side.samples_NX is not None}
    if story.spec.is_table and drawn:
        title = f"{story.decision.model}: samples among held-out rows"
        inks = (drawing.MODEL, drawing.INK)
        plots.table_columns(folder / "against_columns.png", story.real_NX, drawn, story.spec.columns, title, inks)
