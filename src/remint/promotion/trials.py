"""Tries of the gate over the life of a model: what each cost of the error level, and the evidence of all nights.

A comparison with the champion is a try. It can promote by two kinds of luck, and each has a budget of 1 - confidence:

    seeds     One budget for the life of the model, whatever the data: each try and each new recipe takes a share of it, that
              falls slowly (evaluation/levels.py). ``nights.evidence`` of the gains over one champion must reach 1 / level.
    examples  Each new recipe is one more question to the same held-out examples, and tonight's gain must be shown at the share
              of this question. An earlier question counts by the share of tonight's examples that were seen by then. With a
              number as the margin, seeds' luck is wanted, and each try is a question.

A replay of the same weights costs nothing. A person's decisions are no tries. Several metrics share both budgets.
A row of the ledger holds its Trial, so that the budget cannot be reset unseen, and ``check`` computes each again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from remint.errors import LedgerError
from remint.evaluation.levels import share
from remint.promotion.nights import Draws, evidence, nights_needed
from remint.records import Record
from remint.stores.ledger.chain import Ledger
from remint.stores.ledger.row import LedgerRow
from remint.stores.ledger.seen import SeenExamples, sha256
from remint.stores.ledger.spreads import SeedSpread

TOLD = (4, 2, 1)  # gains in standard deviations of seeds, for which the number of nights is told
Values = tuple[float, ...]
Ages = tuple[tuple[int, float], ...]  # place of a trial, from 1 (0: before all), and the share of the examples that it saw first
FEW, FAR = 5, 8.0  # nights from which one can be an outlier, and standard deviations that it is worse
PART = 0.5  # of the budget for seeds that is for new recipes; the other part is for tries


@dataclass(frozen=True)
class Past:
    """Circumstances of tonight's comparison: the earlier trials, the champion, and the held-out examples."""

    trials: tuple[Trial, ...] = ()  # of the model, oldest first
    champion_recipe: str = ""  # digest of the champion's recipe without its seed
    champion_dataset: str = ""  # digest of the DatasetVersion that it was trained on
    champion_seed: int | None = None
    champion_values: Mapping[str, float] = field(default_factory=dict)  # its metrics there
    champion_key: str = ""  # of its weights
    ages: Ages = ()  # of tonight's held-out examples
    seen_first: str = ""  # those in the sample, as stores/ledger/seen.py has them

    def seeds(self, spread: SeedSpread | None, metric: str, better: Literal["lower", "higher"]) -> tuple[Values, Values]:
        """Return the gains of further seeds of the champion's recipe, and the values of seeds that tell the spread only."""
        if spread is None or metric not in spread.values:
            return (), ()
        values, own = spread.values[metric], self.champion_values.get(metric)
        same = (spread.recipe, spread.dataset) == (self.champion_recipe, self.champion_dataset)
        place = spread.seeds.index(self.champion_seed) if same and self.champion_seed in spread.seeds else None
        if place is None or own is None or not np.isclose(values[place], own, rtol=1e-9):
            return (), values
        sign = 1.0 if better == "lower" else -1.0
        return tuple(sign * (own - value) for other, value in enumerate(values) if other != place), ()


class Night(Record):
    """One decision's comparison, as it was measured."""

    key: str  # of the challenger's weights
    recipe: str  # digest of the challenger's recipe without its seed
    champion: int | None
    champion_recipe: str
    champion_key: str = ""
    confidence: float
    auto: bool  # whether the margin is the luck of seeds
    ages: Ages = ()  # of the held-out examples; no decision had seen the rest
    metrics: int  # of promotion.improve, which share the budgets
    # By metric: how much better than the champion, and the standard error over examples. Empty: no try, it only saw examples.
    gains: dict[str, tuple[float, float]] = {}
    seeds: dict[str, tuple[float, ...]] = {}  # by metric: gains of further seeds of the champion's recipe on its data
    other_seeds: dict[str, tuple[float, ...]] = {}  # by metric: values of seeds of another recipe or other data
    sample: str = ""  # SHA-256 of the examples that this decision saw first (stores/ledger/seen.py)


class Trial(Record):
    """A night with its place in the life of the model."""

    night: Night
    number: int  # tries of the model so far; a replay is none
    recipes: int  # recipes other than the champion's that were tried so far
    weight: float  # share of the seeds' budget that it took
    spent: float  # by all tries so far
    question: bool  # whether tonight asks the held-out examples something new
    asked: float  # questions to these held-out examples, each by the share of them that it can have been asked of
    level: float  # error level of tonight's question, for each metric
    needed: float  # evidence that is enough, for each metric
    evidence: dict[str, float]  # by metric


def of_rows(rows: Sequence[LedgerRow]) -> list[Trial]:
    """Return the trials of one model's rows, oldest first. Raises LedgerError if one is damaged."""
    try:
        return [Trial.model_validate_json(row.trial) for row in rows if row.trial]
    except ValueError as error:
        raise LedgerError(f"a trial of {rows[0].model} is damaged: run remint history {rows[0].model} --verify") from error


def checked(model: str, rows: Sequence[LedgerRow]) -> list[Trial]:
    """Return the trials of rows. Raises LedgerError if the newest does not follow from those before it."""
    trials = of_rows(rows)
    if trials and not _equal(following(trials[:-1], trials[-1].night), trials[-1]):
        raise LedgerError(f"the newest try of {model} does not follow from those before it: run remint history {model} --verify")
    return trials


def seen_is_intact(trials: Sequence[Trial], rows: Sequence[LedgerRow], seen: Mapping[int, str]) -> bool:
    """Return whether the examples that decisions saw are as they were. ``trials``: of the rows that have one."""
    written = [row.sequence for row in rows if row.trial]
    return all(each.night.sample == sha256(seen.get(at, "")) for each, at in zip(trials, written, strict=True))


def following(earlier: Sequence[Trial], night: Night) -> Trial:
    """Return the trial of tonight after the earlier ones of the model, oldest first."""
    last = earlier[-1] if earlier else None
    free = not night.gains or any(trial.night.key == night.key for trial in earlier if trial.night.gains)
    known = {trial.night.recipe for trial in _against(earlier, night) if trial.weight} | {night.champion_recipe}
    new_recipe = not free and night.recipe not in known
    number = (last.number if last else 0) + (not free)
    recipes = (last.recipes if last else 0) + new_recipe
    weight = (0.0 if free else (1 - PART) * share(number)) + (PART * share(recipes) if new_recipe else 0.0)
    question = new_recipe or not (night.auto or free)
    asked = question + sum(trial.question * _seen(night.ages, place) for place, trial in enumerate(earlier, start=1))
    all_together = 1.0 - night.confidence
    trial = Trial(
        night=night,
        number=number,
        recipes=recipes,
        weight=weight,
        spent=(last.spent if last else 0.0) + weight,
        question=question,
        asked=asked,
        level=all_together / night.metrics * share(max(1.0, asked)),
        needed=night.metrics / all_together,
        evidence={},
    )
    found = {metric: evidence(draws(earlier, trial, metric)) for metric in night.gains}
    return trial.model_copy(update={"evidence": found})


def draws(earlier: Sequence[Trial], trial: Trial, metric: str) -> Draws:
    """Return the gains over tonight's champion of its own recipe and of tonight's, once for each weights."""
    night = trial.night
    compared = [each for each in (*_against(earlier, night), trial) if metric in each.night.gains]
    first = {each.night.key: each for each in reversed(compared)}
    series = [each for each in compared if first[each.night.key] is each]  # each weights once
    own = [each for each in series if each.night.recipe == night.champion_recipe]
    nights = own if night.recipe == night.champion_recipe else [each for each in series if each.night.recipe == night.recipe]
    own, nights = _without_outliers(own, metric), _without_outliers(nights, metric)
    before = (0.0, *night.seeds.get(metric, ()))
    if night.recipe != night.champion_recipe:
        before = (*before, *(each.night.gains[metric][0] for each in own))
    errors = [each.night.gains[metric][1] for each in series]
    return Draws(
        before_A=before,
        nights_N=tuple(each.night.gains[metric][0] for each in nights),
        weights_N=tuple(each.weight for each in nights),
        error=float(np.sqrt(np.mean(np.square(errors)))),
        moved=1.0 - _seen(night.ages, _measured_at(earlier, night)),
        other_seeds=night.other_seeds.get(metric, ()),
    )


def _without_outliers(nights: list[Trial], metric: str) -> list[Trial]:
    """Return the nights without those that are far worse than the others: broken data or a failed training, and no draw."""
    gain_N = np.array([each.night.gains[metric][0] for each in nights])
    if gain_N.size < FEW:
        return nights
    middle = np.median(gain_N)
    least = middle - FAR * 1.4826 * np.median(np.abs(gain_N - middle))  # a normal law's standard deviation
    return [each for each, gain in zip(nights, gain_N, strict=True) if gain >= least]


def _seen(ages: Ages, place: int) -> float:
    """Return the share of the examples that were seen at this trial or before."""
    return min(1.0, sum(share for first, share in ages if first <= place))


def _measured_at(earlier: Sequence[Trial], night: Night) -> int:
    """Return the place of the decision on the champion, or of the first against it: its examples are those of the seeds."""
    own = [place for place, trial in enumerate(earlier, start=1) if trial.night.key == night.champion_key]
    against = [place for place, trial in enumerate(earlier, start=1) if trial.night.champion == night.champion]
    return min([*own, *against], default=0)


def _against(earlier: Sequence[Trial], night: Night) -> list[Trial]:
    """Return the trials against tonight's champion."""
    return [trial for trial in earlier if trial.night.champion == night.champion]


def told(model: str, earlier: Sequence[Trial], trial: Trial | None) -> list[str]:
    """Return a sentence if this was a try: which, its cost, the rest, and the nights that a gain would take to be shown."""
    if trial is None or not trial.night.gains:
        return []
    cost = f"cost {trial.weight:.2%} of the error level, {1.0 - trial.spent:.1%} is left"
    parts = [f"try {trial.number} of {model}: {cost if trial.weight else 'a replay of the same weights costs nothing'}"]
    if trial.night.auto:
        parts += [_outlook(earlier, trial, metric) for metric in trial.night.gains]
    return ["; ".join(parts)]


def _outlook(earlier: Sequence[Trial], trial: Trial, metric: str) -> str:
    known = draws(earlier, trial, metric)
    spread = known.spread
    if not spread:
        return f"the spread of {metric} over seeds is not known yet"
    weight = PART * share(trial.recipes + 1) + (1 - PART) * share(trial.number + 1)
    found = {times: nights_needed(known, times * spread, weight, trial.needed) for times in TOLD}
    first, *others = [
        f"{times}{{}} in {'more than a year' if count is None else f'{count} nights'}" for times, count in found.items()
    ]
    clauses = [first.format(f" spreads of seeds ({spread:.2g} each)"), *(f"of {each.format('')}" for each in others)]
    return f"a new recipe's gain in {metric} of {', '.join(clauses)} would be shown"


def faults(ledger: Ledger, seen: SeenExamples, model: str) -> list[str]:
    """Return a line for each trial of a model that does not follow from those before it, computed again from its night.

    [] if a row is damaged: the chain's verification names it.
    """
    with suppress(LedgerError):
        return [f"{model}: row {sequence}: {text}" for sequence, text in check(ledger.rows(model), seen.of(model))]
    return []


def check(rows: Sequence[LedgerRow], seen: Mapping[int, str]) -> list[tuple[int, str]]:
    """Return the sequence of each row whose trial does not follow from those before it, and what is wrong.

    ``seen``: what each row saw first, by its sequence.
    """
    found: list[tuple[int, str]] = []
    earlier: list[Trial] = []
    for row in rows:
        if not row.trial:
            continue
        try:
            trial = Trial.model_validate_json(row.trial)
        except ValueError:
            found.append((row.sequence, "its trial is damaged"))
            continue
        if not _equal(following(earlier, trial.night), trial):
            found.append((row.sequence, "its trial does not follow from those before it: the budget was changed"))
        if trial.night.sample != sha256(seen.get(row.sequence, "")):
            found.append((row.sequence, "the held-out examples that it saw were changed or removed"))
        earlier.append(trial)
    return found


def _equal(computed: Trial, stored: Trial) -> bool:
    """Return whether two trials are equal but for rounding, which differs between machines."""
    ours, theirs = (each.model_dump(exclude={"night"}) for each in (computed, stored))
    flat = [{**each.pop("evidence"), **each} for each in (ours, theirs)]
    return flat[0].keys() == flat[1].keys() and all(
        np.isclose(flat[0][key], flat[1][key], rtol=1e-6, atol=1e-9) for key in flat[0]
    )
