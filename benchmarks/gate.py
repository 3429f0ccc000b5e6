"""Measure how often the gate promotes equal models, better models, and models that differ only by the seed.

    python -m benchmarks.gate [TRAININGS]

A/A     two measurements of the same model, 200 pairs: at most the stated 5% may be promoted
        likelihood  per-example values of two trainings of digits-flow, each example's two labels exchanged at random
        distance    digits-gan measured with two seeds of its noise
power   a planted improvement, 200 pairs: at least 90% must be promoted
        likelihood  the same two trainings on resampled examples, one better by PLANTED bits/dim on average
        distance    the champion has a share of SPOILT samples whose pixels are shuffled
seeds   trainings of digits-flow (STEPS steps) that differ only by the seed: five of them give the recorded spread, two
        others are champion and challenger, 200 times; at most 5% may be promoted with ``margin: auto``

For comparison, a point comparison of two floats promotes the better value. Writes docs/results/gate.json and gate.png; ends
with status 1 if a bound is missed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import binom, binomtest

from benchmarks.pipelines import ROOT, line, measured, prepared, save_figure, write
from remint.data.arrays import Dataset
from remint.evaluation import distance, drawing, features
from remint.evaluation.context import EvaluationContext, Measurement
from remint.evaluation.evidence import Evidence
from remint.models.bundle import load_model
from remint.models.contract import CanSample
from remint.promotion import comparable, gate
from remint.records import EvaluationReport, Leakage, MetricValue
from remint.settings.judging import PromotionSettings
from remint.settings.params import load_params
from remint.stores.ledger.spreads import SeedSpread

PAIRS = 200
LEVEL, POWER = 0.05, 0.9
PLANTED = 0.01  # bits/dim
SPOILT = 0.03  # of the samples
STEPS = 300  # of each training that differs by its seed
TRAININGS, RECORDED = 30, 5

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """Pairs of challenger and champion, with the least and largest share that may be promoted."""

    name: str
    metric: str
    pairs: list[tuple[Evidence, Evidence, SeedSpread | None]]
    least: float = 0.0
    most: float = 1.0


class Spoilt:
    """A model that draws the samples of another one, with the pixels of a share of them shuffled."""

    def __init__(self, model: CanSample, share: float) -> None:
        self.model, self.share, self.sample_noise = model, share, model.sample_noise

    def sample(self, noise_BN: torch.Tensor, y_B: torch.Tensor | None = None) -> torch.Tensor:
        x_BX = self.model.sample(noise_BN, y_B)
        flat_BP = x_BX.flatten(1)
        shuffled_BX = flat_BP[:, torch.randperm(flat_BP.shape[1], generator=torch.Generator().manual_seed(0))].view_as(x_BX)
        spoilt_B = torch.special.ndtr(noise_BN[:, 0]) < self.share
        return torch.where(spoilt_B.view(-1, *[1] * (x_BX.dim() - 1)), shuffled_BX, x_BX)


def main(trainings: str = str(TRAININGS)) -> int:
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset, extractor = prepared("digits", folder)
        flows = [measured("digits-flow", dataset, extractor, folder / f"flow-{seed}", seed).evidence for seed in (0, 1)]
        measured("digits-gan", dataset, extractor, folder / "gan", 0)
        gan = load_model(folder / "gan/trained")
        assert isinstance(gan, CanSample)
        alike = [_distance(gan, dataset, extractor, seed) for seed in _with_progress(range(2 * PAIRS), "digits-gan measured")]
        spoilt = [
            _distance(Spoilt(gan, SPOILT), dataset, extractor, seed)
            for seed in _with_progress(range(PAIRS), "spoilt samples measured")
        ]
        seeds = [
            measured("digits-flow", dataset, extractor, folder / "seed", seed, training={"steps": STEPS}).evidence
            for seed in _with_progress(range(int(trainings)), "trained")
        ]
    nll = [np.asarray(side.values["nll"]) for side in flows]
    cases = [
        Case("A/A likelihood", "nll", [_exchanged(nll, generator) for _ in range(PAIRS)], most=LEVEL),
        Case("A/A distance", "fd_domain", [(alike[2 * pair], alike[2 * pair + 1], None) for pair in range(PAIRS)], most=LEVEL),
        Case(f"power, {PLANTED} bits/dim", "nll", [_planted(nll, generator) for _ in range(PAIRS)], least=POWER),
        Case(
            f"power, {SPOILT:.0%} spoilt", "fd_domain", [(alike[pair], spoilt[pair], None) for pair in range(PAIRS)], least=POWER
        ),
        Case("seeds, likelihood", "nll", [_of_seeds(seeds, "nll", generator) for _ in range(PAIRS)], most=LEVEL),
        Case("seeds, distance", "fd_domain", [_of_seeds(seeds, "fd_domain", generator) for _ in range(PAIRS)], most=LEVEL),
    ]
    rows = [_row(case) for case in cases]
    print("\n".join(map(line, rows)))
    _picture(ROOT / "docs/results/gate.png", rows)
    print(f"written: {write('gate', rows)}")
    missed = [row["case"] for row in rows if not row["held"]]
    print("\n".join(f"MISSED  {name}" for name in missed) or "every bound is held")
    return int(bool(missed))


def _with_progress(count: range, what: str) -> Iterator[int]:
    for index in count:
        if index % 20 == 0:
            print(f"{what}: {index} of {len(count)}", flush=True)
        yield index


def _distance(model: Any, dataset: Dataset, extractor: Path, seed: int) -> Evidence:
    settings = load_params(ROOT).pipeline("digits-gan").evaluation.model_copy(update={"seed": seed})
    context = EvaluationContext(dataset, {"domain": features.load(extractor)}, settings)
    with torch.no_grad():
        return _evidence("fd_domain", distance.frechet("domain", model, context)["fd_domain"])


def _evidence(metric: str, found: Measurement | Array) -> Evidence:
    """Return evidence as the evaluate step writes it, but without the seed in the fingerprint: two seeds are compared here."""
    if isinstance(found, Measurement):
        value, low, high, n = float(found.values_N.mean()), found.low, found.high, found.n
        values = {metric: found.values_N}
        values |= {} if found.reference_J is None else {comparable.reference_of(metric): found.reference_J}
    else:
        value, low, high, n = float(found.mean()), float(found.min()), float(found.max()), len(found)
        values = {metric: found}
    measured_value = MetricValue(name=metric, value=value, low=low, high=high, n=n, seed=0)
    leakage = Leakage(checked=n, exact=0, near=0, tolerance="equal")
    key = f"{value!r}"
    report = EvaluationReport(
        pipeline="m", model_key=key, weights_sha256=key, dataset="d", metrics={metric: measured_value}, leakage=leakage
    )
    return Evidence(report, values)


def _exchanged(nll: list[Array], generator: np.random.Generator) -> tuple[Evidence, Evidence, None]:
    """Exchange each example's two values with probability 1/2: neither side is better."""
    first_N = generator.integers(2, size=len(nll[0])).astype(bool)
    return _evidence("nll", np.where(first_N, *nll)), _evidence("nll", np.where(first_N, *nll[::-1])), None


def _planted(nll: list[Array], generator: np.random.Generator) -> tuple[Evidence, Evidence, None]:
    """Return the two trainings on as many resampled examples, with a mean difference of PLANTED."""
    drawn_N = generator.integers(len(nll[0]), size=len(nll[0]))
    equal_N = nll[1] - nll[1].mean() + nll[0].mean()
    return _evidence("nll", equal_N[drawn_N] - PLANTED), _evidence("nll", nll[0][drawn_N]), None


def _of_seeds(trained: list[Evidence], metric: str, generator: np.random.Generator) -> tuple[Evidence, Evidence, SeedSpread]:
    """Return two trainings, and the spread recorded from RECORDED others."""
    chosen = [trained[place] for place in generator.permutation(len(trained))[: RECORDED + 2]]
    challenger, champion, *recorded = chosen
    values = tuple(each.report.metrics[metric].value for each in recorded)
    spread = SeedSpread(pipeline="m", recipe="", dataset="d", seeds=tuple(range(RECORDED)), values={metric: values})
    return challenger, champion, spread


def _row(case: Case) -> dict[str, Any]:
    """Return the promoted shares, with 95% binomial intervals, of the gate and of comparing two floats."""
    metric = case.metric
    shares: dict[str, Any] = {}
    for rule, margin in (("gate", 0.0), ("margin auto", "auto")):
        if margin == "auto" and case.pairs[0][2] is None:
            continue
        rules = PromotionSettings.model_validate({"improve": {"metric": metric, "margin": margin, "confidence": 1 - LEVEL}})
        shares[rule] = sum(
            gate.decide("m", ours, 2, theirs, 1, rules, spread=spread).verdict == "promoted"
            for ours, theirs, spread in case.pairs
        )
    shares["point comparison"] = sum(
        ours.report.metrics[metric].value < theirs.report.metrics[metric].value for ours, theirs, _ in case.pairs
    )
    pairs = len(case.pairs)
    judged = shares.get("margin auto", shares["gate"])
    held = judged >= case.least * pairs and (case.most == 1.0 or judged <= binom.ppf(0.975, pairs, case.most))
    intervals = {rule: binomtest(count, pairs).proportion_ci(method="wilson") for rule, count in shares.items()}
    return {
        "case": case.name,
        "pairs": pairs,
        **{rule: count / pairs for rule, count in shares.items()},
        "intervals": {rule: [round(float(ci.low), 4), round(float(ci.high), 4)] for rule, ci in intervals.items()},
        "bound": f"at least {case.least:.0%}" if case.least else f"at most {case.most:.0%}",
        "held": bool(held),
    }


def _picture(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw the share of pairs that each rule promotes, with its 95% interval, and the bound as a tick."""
    rules = {"point comparison": drawing.QUIET, "gate": drawing.OTHER, "margin auto": drawing.MODEL}
    figure = Figure(figsize=(8.0, 0.9 + 0.75 * len(rows)), dpi=drawing.DPI)
    axes = figure.add_subplot()
    for place, row in enumerate(reversed(rows)):
        shown = [rule for rule in rules if rule in row]
        for offset, rule in zip(np.linspace(0.22, -0.22, len(shown)), shown, strict=True):
            low, high = row["intervals"][rule]
            axes.plot([low, high], [place + offset] * 2, color=rules[rule], lw=2.5, solid_capstyle="butt")
            axes.plot([row[rule]], [place + offset], "o", color=rules[rule], ms=5)
        bound = float(row["bound"].split()[-1].rstrip("%")) / 100
        axes.plot([bound] * 2, [place - 0.36, place + 0.36], color=drawing.INK, lw=1.0, ls=(0, (3, 2)))
    axes.set_yticks(range(len(rows)), [f"{row['case']}\n({row['bound']})" for row in reversed(rows)])
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share of pairs that are promoted, 95% interval", size=drawing.SMALL, color=drawing.INK)
    for rule, colour in rules.items():
        axes.plot([], [], color=colour, lw=2.5, label="gate, margin 0" if rule == "gate" else rule)
    axes.legend(frameon=False, fontsize=drawing.SMALL, ncols=3, loc="lower left", bbox_to_anchor=(0.0, 1.0))
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
