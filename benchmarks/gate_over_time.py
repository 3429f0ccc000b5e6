"""Measure how often a year of nights has a false promotion, and after how many nights a planted gain is promoted.

    python -m benchmarks.gate_over_time [YEARS] [TRAININGS]

simulated    years of 365 retrainings of one recipe whose seeds spread by SPREAD bits/dim, on held-out sets that give a paired
             standard error of ERRORS; the set stays the same, grows by 1% a night, or is a window of the newest WINDOW nights
real         TRAININGS trainings of digits-flow (STEPS steps) that differ by the seed, drawn into 200 sequences of NIGHTS nights
false        a promotion without a planted gain; at most 5% of years and sequences may have one
planted      from one night on the recipe is another, and better by 1, 2 or 4 spreads: at once, or after IDLE nights
             without a gain; a gain of 4 must be promoted within 7 nights in 90% of sequences

Beside the gate: the rule before it (``fixed``), the same level each night, and a margin from the recorded seeds alone.
Writes docs/results/gate_over_time.json and .png; ends with status 1 if a bound is missed.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import ndtri
from scipy.stats import binomtest

from benchmarks.pipelines import ROOT, prepared, save_figure, train_into, write
from remint.data import arrays
from remint.evaluation import drawing, evaluate
from remint.evaluation.context import EvaluationContext
from remint.evaluation.levels import share
from remint.promotion.nights import Draws, evidence
from remint.promotion.paired import difference, error, seed_margin
from remint.promotion.trials import PART, Night, Trial, following
from remint.settings.params import load_params

LEVEL = 0.05
YEAR, IDLE, NIGHTS, WINDOW = 365, 180, 60, 30
SPREAD, ERRORS = 0.003, (0.006, 0.002, 0.0005)  # bits/dim
SEEDS = 5  # recorded, the champion's own among them
GAINS = (1, 2, 4)  # spreads
PLANTED = 200  # sequences of each planted gain
STEPS = 50
SETS = ("fixed", "grows", "window")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Sequence:
    """Nights against one champion: gains, their standard errors, and the share of examples that are new since it was made."""

    seeds: tuple[float, ...]  # gains of the other recorded seeds
    gain_T: Array
    error_T: Array
    moved_T: Array
    start: int | None = None  # night of a new recipe, counted from 0


def simulate(dice: np.random.Generator, kind: str, paired: float, nights: int, gain: float, start: int | None) -> Sequence:
    """Return a sequence of nights. A model's value is its quality and an error of the held-out set, half of the paired one."""
    night_T = np.arange(nights, dtype=float)
    size_T = 1.01**night_T if kind == "grows" else np.ones(nights)
    error_T = paired / np.sqrt(size_T)
    if kind == "grows":
        common_TT = np.sqrt(np.minimum.outer(size_T, size_T) / np.maximum.outer(size_T, size_T))
        moved_T = 1.0 - 1.0 / size_T
    else:
        moved_T = np.minimum(1.0, night_T / WINDOW) if kind == "window" else np.zeros(nights)
        common_TT = np.maximum(0.0, 1.0 - np.abs(np.subtract.outer(night_T, night_T)) / WINDOW) if kind == "window" else 1.0
    half_T = error_T / np.sqrt(2.0)
    if kind == "fixed":
        champion_T = half_T * dice.normal()
    else:  # its error is another on another set, and correlated as far as the sets overlap
        champion_T = half_T * (np.linalg.cholesky(common_TT + 1e-9 * np.eye(nights)) @ dice.normal(size=nights))
    quality = SPREAD * dice.normal()
    value_T = SPREAD * dice.normal(size=nights) + half_T * dice.normal(size=nights)
    if start is not None:
        value_T[start:] -= gain * SPREAD
    others = SPREAD * dice.normal(size=SEEDS - 1) + half_T[0] * dice.normal(size=SEEDS - 1)
    return Sequence(tuple(quality + champion_T[0] - others), quality + champion_T - value_T, error_T, moved_T, start)


def promoted_on(sequence: Sequence) -> int | None:
    """Return the first night on which the gate promotes; None if it never does. The numbers are those of promotion/trials.py."""
    nights, start = len(sequence.gain_T), sequence.start
    weights = [(1 - PART) * share(number) for number in range(1, nights + 1)]
    if start is not None:
        weights[start] += PART * share(1)
    gains, bound_T = tuple(sequence.gain_T), -ndtri(LEVEL * share(1)) * sequence.error_T
    for night in range(start or 0, nights):
        if sequence.gain_T[night] <= bound_T[night]:
            continue
        since = start or 0  # the nights before are those of the champion's recipe
        spread = float(np.sqrt(np.mean(sequence.error_T[: night + 1] ** 2)))
        told = Draws(
            (0.0, *sequence.seeds, *gains[:since]),
            gains[since : night + 1],
            tuple(weights[since : night + 1]),
            spread,
            float(sequence.moved_T[night]),
        )
        if evidence(told) >= 1.0 / LEVEL:
            return night
    return None


def fixed_promoted_on(sequence: Sequence) -> int | None:
    """Return the first night on which the rule of one decision, with the margin of the recorded seeds, promotes."""
    margin = seed_margin((0.0, *sequence.seeds), 1.0 - LEVEL)
    beyond_T = sequence.gain_T + ndtri(LEVEL) * sequence.error_T > margin
    beyond_T[: sequence.start or 0] = False
    return int(beyond_T.argmax()) if beyond_T.any() else None


Rule = Callable[[Sequence], int | None]
RULES: dict[str, Rule] = {"gate": promoted_on, "fixed": fixed_promoted_on}


def simulated_row(kind: str, paired: float, gain: float, start: int | None, count: int) -> dict[str, Any]:
    nights = YEAR if start is None else start + NIGHTS
    name = f"{kind} {paired} {gain} {start}"
    dice = np.random.default_rng(list(name.encode()))
    sequences = [simulate(dice, kind, paired, nights, gain, start) for _ in range(count)]
    row: dict[str, Any] = {"held_out": kind, "paired_error": paired, "spread": SPREAD}
    return row | _of_rules(sequences, gain, start)


def _of_rules(sequences: list[Sequence], gain: float, start: int | None) -> dict[str, Any]:
    """Return for each rule the share of sequences with a promotion, or the nights until a planted gain is promoted."""
    row: dict[str, Any] = {"gain": gain, "idle": start, "sequences": len(sequences)}
    for name, rule in RULES.items():
        found = [rule(sequence) for sequence in sequences]
        if start is None:
            wrong = sum(night is not None for night in found)
            low, high = binomtest(wrong, len(found)).proportion_ci(method="wilson")
            row[name] = {"false": wrong / len(found), "interval": [round(float(low), 4), round(float(high), 4)]}
        else:
            nights = np.array([np.inf if night is None else night - start + 1 for night in found])
            curve = [round(float(np.mean(nights <= within)), 4) for within in range(1, NIGHTS + 1)]
            row[name] = {"within_7": curve[6], "median": float(np.median(nights)) if curve[-1] >= 0.5 else None, "curve": curve}
    return row


def real_values(trainings: int, pool: ProcessPoolExecutor) -> Array:
    """Return the per-example likelihood of trainings of digits-flow that differ by the seed, (trainings, examples)."""
    values = []
    with tempfile.TemporaryDirectory() as name:
        prepared("digits", Path(name))
        for seed, value_N in enumerate(pool.map(_real_value, repeat(name), range(trainings)), start=1):
            values.append(value_N)
            if seed % 10 == 0:
                print(f"trained {seed} of {trainings}", flush=True)
    return np.stack(values)


def _real_value(name: str, seed: int) -> Array:
    torch.set_num_threads(1)
    os.environ["REMINT_EVENTS"] = os.devnull  # this script prints its own progress
    settings, folder = load_params(ROOT).pipeline("digits-flow"), Path(name)
    dataset = arrays.load(folder / "prepared")
    training = settings.training.model_copy(
        update={"steps": STEPS, "validate_every": STEPS, "checkpoint_every": STEPS, "seed": seed}
    )
    recipe, out = settings.model_copy(update={"training": training}).recipe, folder / f"trained-{seed}"
    train_into(out, recipe, "digits-flow", dataset)
    context = EvaluationContext(dataset, {}, settings.evaluation)
    measured, _ = evaluate.measure(evaluate.load(out, dataset), ["nll"], context, "digits-flow")
    return measured["nll"].values_N


def real_rows(value_TN: Array) -> Iterator[dict[str, Any]]:
    """Yield the rows of sequences of real trainings, drawn without repetition within each, judged by the gate's own trials."""
    spread = float(value_TN.mean(axis=1).std(ddof=1))
    for gain, start in ((0, None), *((gain, start) for gain in GAINS for start in (0, NIGHTS // 2))):
        dice = np.random.default_rng(1000 * gain + (start or 0))
        nights = [_real_sequence(value_TN, dice, gain * spread, start) for _ in range(200)]
        row: dict[str, Any] = {"held_out": "real trainings", "spread": spread, "gain": gain, "idle": start, "sequences": 200}
        found = np.array([np.inf if night is None else night - (start or 0) + 1 for night in nights])
        if start is None:
            low, high = binomtest(int(np.isfinite(found).sum()), 200).proportion_ci(method="wilson")
            told = {"false": float(np.isfinite(found).mean()), "interval": [round(float(low), 4), round(float(high), 4)]}
        else:
            curve = [float(np.mean(found <= within)) for within in range(1, NIGHTS + 1 - start)]
            told = {"within_7": curve[6], "median": float(np.median(found)) if curve[-1] >= 0.5 else None, "curve": curve}
        yield row | {"gate": told}


def _real_sequence(value_TN: Array, dice: np.random.Generator, gain: float, start: int | None) -> int | None:
    """Return the night on which the gate promotes one of a sequence of real trainings."""
    drawn = dice.choice(len(value_TN), size=SEEDS + NIGHTS, replace=False)
    champion_N = value_TN[drawn[0]]
    seeds = tuple(float((champion_N - value_TN[place]).mean()) for place in drawn[1:SEEDS])
    earlier: list[Trial] = []
    for night, place in enumerate(drawn[SEEDS:]):
        new = start is not None and night >= start
        gain_N = champion_N - value_TN[place] + (gain if new else 0.0)
        told = Night(
            key=str(place),
            recipe="new" if new else "old",
            champion=1,
            champion_recipe="old",
            confidence=1.0 - LEVEL,
            auto=True,
            ages=((0, 1.0),),
            metrics=1,
            gains={"nll": (float(gain_N.mean()), error(gain_N))},
            seeds={"nll": seeds},
        )
        trial = following(earlier, told)
        earlier.append(trial)
        shown = trial.evidence["nll"] >= trial.needed
        if (new or start is None) and shown and difference(gain_N, 1.0 - trial.level, 1.0 - LEVEL).low > 0.0:
            return night
    return None


def main(years: str = "1000", trainings: str = "200") -> int:
    rows: list[dict[str, Any]] = []
    cases: list[tuple[str, float, float, int | None, int]] = [
        (kind, paired, 0.0, None, int(years)) for kind in SETS for paired in ERRORS
    ]
    cases += [(kind, paired, gain, start, PLANTED) for kind in SETS for paired in ERRORS for gain in GAINS for start in (0, IDLE)]
    with ProcessPoolExecutor(2) as pool:
        for place, row in enumerate(pool.map(simulated_row, *zip(*cases, strict=True)), start=1):
            rows.append(row)
            print(f"{place} of {len(cases)}: {_line(row)}", flush=True)
        values = real_values(int(trainings), pool)
    for row in real_rows(values):
        rows.append(row)
        print(_line(row), flush=True)
    _picture(ROOT / "docs/results/gate_over_time.png", rows)
    print(f"written: {write('gate_over_time', rows)}")
    missed = [_line(row) for row in rows if not _held(row)]
    print("\n".join(f"MISSED  {each}" for each in missed) or "every bound is held")
    return int(bool(missed))


def _held(row: dict[str, Any]) -> bool:
    return bool(row["gate"]["false"] <= LEVEL) if row["idle"] is None else row["gain"] < 4 or row["gate"]["within_7"] >= 0.9


def _line(row: dict[str, Any]) -> str:
    where = f"{row['held_out']}, paired error {row['paired_error']}" if "paired_error" in row else row["held_out"]
    told = {name: {key: value for key, value in row[name].items() if key != "curve"} for name in RULES if name in row}
    return f"{where}, gain {row['gain']:g} after {row['idle']} nights: {told}"


def _picture(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw the share of years with a false promotion, and the curves of nights until a gain is promoted."""
    figure = Figure(figsize=(11.0, 7.6), dpi=drawing.DPI)
    grid = figure.add_gridspec(2, 3, hspace=0.42, wspace=0.28)
    axes = figure.add_subplot(grid[0, :])
    years = [row for row in rows if row["idle"] is None]
    for place, row in enumerate(years):
        for name, colour, offset in (("fixed", drawing.QUIET, -0.14), ("gate", drawing.MODEL, 0.14)):
            if name in row:
                low, high = row[name]["interval"]
                axes.plot([place + offset] * 2, [low, high], color=colour, lw=2.5, solid_capstyle="butt")
                axes.plot([place + offset], [row[name]["false"]], "o", color=colour, ms=5)
    axes.axhline(LEVEL, color=drawing.INK, lw=1.0, ls=(0, (3, 2)))
    names = [f"{row['held_out']}\n{row.get('paired_error', 'digits-flow')}" for row in years]
    axes.set_xticks(range(len(years)), names, size=drawing.SMALL)
    axes.set_ylim(-0.02, 1.0)
    axes.set_ylabel("years with a false promotion", size=drawing.SMALL, color=drawing.INK)
    for label, colour in (("one level each night", drawing.QUIET), ("one budget for the life of the model", drawing.MODEL)):
        axes.plot([], [], color=colour, lw=2.5, label=label)
    axes.legend(frameon=False, fontsize=drawing.SMALL)
    for column, paired in enumerate(ERRORS):
        axes = figure.add_subplot(grid[1, column])
        for row in rows:
            if row["held_out"] != "fixed" or row["paired_error"] != paired or row["idle"] is None:
                continue
            style = "-" if row["idle"] else (0, (3, 1.5))
            for name, colour in (("fixed", drawing.QUIET), ("gate", drawing.MODEL)):
                axes.plot(range(1, NIGHTS + 1), row[name]["curve"], color=colour, ls=style, lw=0.8 + 0.5 * row["gain"])
        axes.set_title(f"same held-out set, paired error {paired}", size=drawing.SMALL, color=drawing.INK)
        axes.set_xlabel("nights after the gain (wide: 4 spreads)", size=drawing.SMALL, color=drawing.INK)
        axes.set_ylim(-0.02, 1.02)
        if not column:
            axes.set_ylabel("promoted (dashed: at once)", size=drawing.SMALL, color=drawing.INK)
    save_figure(figure, path, grid="y")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
