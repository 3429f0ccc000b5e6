"""Commands that find anomalies: score and calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from remint.cli import terminal
from remint.cli.app import AsJson, ModelRef, Served, app, here, print_json
from remint.cli.use import Data, SkipBad, load_served


@app.command()
def score(
    model: Served,
    data: Data,
    output: Annotated[Path, typer.Option("-o", help="Name, score, p-value and flag of each example: .csv or .parquet.")],
    false_alarm_rate: Annotated[float, typer.Option(help="Flag this share of normal examples.")] = 0.05,
    fdr: Annotated[
        float | None, typer.Option(help="Flag by Benjamini-Hochberg: at most this share of the flagged examples is normal.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="Score: combined, likelihood, relative, typicality, reconstruction, latent, ..")
    ] = "combined",
    seed: Annotated[int, typer.Option(min=0, help="Breaks ties between scores.")] = 0,
    explain: Annotated[
        Path | None, typer.Option(help="A .png: what each pixel or column adds to the score of the most unusual examples.")
    ] = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Find anomalies: score examples, with p-values from the calibration split.

    Example: remint score digits-vae new/ -o scores.parquet --fdr 0.1
    """
    served = load_served(model)
    from remint.serving.anomalies import scoring

    with terminal.counting("scored") as progress:
        summary = scoring.write(
            served, data, output, false_alarm_rate, fdr, seed=seed, by=by, explain=explain, skip_bad=skip_bad, progress=progress
        )
    if as_json:
        print_json({**summary.to_json(), "path": str(output)})
        return
    at = f"an FDR of {fdr:g}" if fdr is not None else f"a false-alarm rate of {false_alarm_rate:g}"
    terminal.out.print(
        f"{summary.flagged} of {summary.count} examples are flagged at {at}, by {summary.model}: {output}", soft_wrap=True
    )
    for note in summary.notes():
        terminal.out.print(note, soft_wrap=True, markup=False)


@app.command()
def calibrate(model: ModelRef, as_json: AsJson = False) -> None:
    """Score the calibration split for a version that was registered without it, or score it again.

    Example: remint calibrate digits-vae
    """
    home, _ = here()
    from remint.promotion import calibrate as calibration

    found = calibration.calibrate(home, model, terminal.say)
    if as_json:
        print_json(found.to_json())
    else:
        terminal.out.print(f"{found.model} is calibrated with {found.calibrated} examples", soft_wrap=True, markup=False)
