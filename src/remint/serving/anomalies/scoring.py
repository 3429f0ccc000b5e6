"""Anomaly scores of a person's examples, with calibrated p-values.

Shapes: n calibration examples, N examples to score, B examples of one block, V views of one (shift.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from remint.data.blocks import Blocks
from remint.data.identity import digests
from remint.data.sampler import spaced_indices
from remint.errors import SettingsError, UserError
from remint.models.scores import DEFAULT, Scorer
from remint.records import Record
from remint.serving import inputs, outputs
from remint.serving.anomalies import calibration, conformal, shift
from remint.serving.anomalies.calibration import Calibrated
from remint.serving.blocks import Progress, silent
from remint.serving.inputs import Examples
from remint.settings.base import did_you_mean

if TYPE_CHECKING:
    from remint.serving.model import ServedModel

Array = np.ndarray[Any, Any]


class Summary(Record):
    """How a batch was scored, and what a reader of its p-values has to know."""

    model: str  # NAME/7
    by: str  # name of the score (models/scores.py)
    count: int
    calibrated: int  # n
    false_alarm_rate: float | None  # None: an FDR was asked for
    fdr: float | None
    flagged: int
    reach: str = ""  # why the batch cannot be flagged as asked for; "": it can
    shifts: tuple[shift.Shift, ...] = ()  # what differs from the calibration examples
    ignored: tuple[str, ...] = ()  # columns of the input that the model does not know
    set_aside: dict[str, str] = {}  # file or row of the input -> reason

    def notes(self) -> list[str]:
        """Return the sentences that belong beside the p-values."""
        found = [f"{self.reach[0].upper()}{self.reach[1:]}."] if self.reach else []
        if self.shifts:
            named = ", ".join(each.text() for each in self.shifts[:3]) + (", .." if len(self.shifts) > 3 else "")
            found.append(f"The input differs from the calibration data: {named}. Its p-values may not hold.")
        return found


@dataclass(frozen=True)
class Scores:
    """Score, p-value and flag of each example, in the order of the input."""

    score: Array  # float64 (N,): higher is more unusual
    p_value: Array  # float64 (N,)
    flagged: Array  # bool (N,)
    names: Array  # file of each image, number of each row from 0
    summary: Summary

    def to_arrow(self) -> pa.Table:
        return pa.table({"name": self.names, "score": self.score, "p_value": self.p_value, "flagged": self.flagged})

    def to_pandas(self) -> Any:
        """Return a DataFrame with the columns name, score, p_value and flagged."""
        return self.to_arrow().to_pandas()


def score(
    served: ServedModel,
    data: Any,
    false_alarm_rate: float = 0.05,
    fdr: float | None = None,
    seed: int = 0,
    by: str = DEFAULT,
    skip_bad: bool = False,
    explain: str | Path | None = None,
    progress: Progress = silent,
) -> Scores:
    """Return the scores of an input, and its flagged examples.

    ``false_alarm_rate``: share of normal examples that are flagged. ``fdr``: flag by Benjamini-Hochberg instead, so that the
    expected share of normal examples among the flagged ones is at most this. ``seed``: breaks ties. ``by``: name of the score.
    ``explain``: a .png for the contributions to the score of the most unusual examples (explain.py).

    Raises UserError if the model has no calibration, SettingsError for a rate outside (0, 1) or an unknown score.
    """
    explain = None if explain is None else Path(explain)
    if explain is not None:
        outputs.check_picture(explain)
    check_rates(false_alarm_rate, fdr)
    with inputs.read(served.spec, data, skip_bad=skip_bad, labels=False) as examples:
        return of_examples(served, examples, false_alarm_rate, fdr, seed, by, explain, progress)


def check_rates(false_alarm_rate: float, fdr: float | None) -> None:
    """Raise SettingsError for a rate outside (0, 1)."""
    for name, rate in (("false_alarm_rate", false_alarm_rate), ("fdr", fdr)):
        if rate is not None and not 0.0 < rate < 1.0:
            raise SettingsError(f"{name} {rate}: expected a number above 0 and below 1")


def of_examples(
    served: ServedModel,
    examples: Examples,
    false_alarm_rate: float = 0.05,
    fdr: float | None = None,
    seed: int = 0,
    by: str = DEFAULT,
    explain: Path | None = None,
    progress: Progress = silent,
) -> Scores:
    """Return ``score`` of examples in the model's form."""
    calibrated = read_calibration(served)
    scorer = scorer_of(served, calibrated, by)
    part = calibration.part_scores(scorer, examples.x_NX, scorer.needs(by), served.device, progress)
    tie_N, view_MV = _ties_and_views(examples.x_NX, seed, served)
    names = np.array(examples.names) if examples.names else _row_numbers(examples)
    old_n, new_N = scorer.score(by, calibrated.part).numpy(), scorer.score(by, part).numpy()
    if explain is not None:
        _explain(explain, scorer, by, examples.x_NX, new_N, names, served.device)
    p_N = conformal.p_values(old_n, new_N, tie_N)
    flagged_N = p_N <= false_alarm_rate if fdr is None else conformal.benjamini_hochberg(p_N, fdr)
    tested_M = new_N[spaced_indices(len(new_N), shift.MOST)]
    summary = Summary(
        model=served.ref,
        by=by,
        count=len(new_N),
        calibrated=len(old_n),
        false_alarm_rate=false_alarm_rate if fdr is None else None,
        fdr=fdr,
        flagged=int(flagged_N.sum()),
        reach=_reach(len(new_N), len(old_n), false_alarm_rate, fdr),
        shifts=shift.shifts(old_n, tested_M, calibrated.view_NV, view_MV, served.spec),
        ignored=examples.ignored,
        set_aside=dict(examples.set_aside),
    )
    return Scores(new_N, p_N, flagged_N, names, summary)


def write(served: ServedModel, data: Any, output: Path, false_alarm_rate: float, fdr: float | None, **options: Any) -> Summary:
    """Score an input and write name, score, p-value and flag of each example to ``output``."""
    outputs.check_table(output)
    found = score(served, data, false_alarm_rate, fdr, **options)
    outputs.write_table(output, found.to_arrow())
    return found.summary


def read_calibration(served: ServedModel) -> Calibrated:
    """Return the calibration of a model. Raises UserError if it has none, IntegrityError if it is not the registered one."""
    if served.calibration is None:
        raise UserError(
            f"{served.ref} has no calibration, which scores need: run remint calibrate, and load the version by its name"
        )
    return served.calibration()


def scorer_of(served: ServedModel, calibrated: Calibrated, by: str) -> Scorer:
    """Return the scores of a model. Raises SettingsError, with the nearest name, if it has no score of this name."""
    reference = {name: tensor.to(served.device) for name, tensor in calibrated.reference.items()}
    scorer = Scorer(served.model, served.spec, reference)
    if by not in scorer.names:
        raise SettingsError(did_you_mean(f"score '{by}' of {served.ref}", by, list(scorer.names)))
    return scorer


def _reach(count: int, calibrated: int, false_alarm_rate: float, fdr: float | None) -> str:
    """Return why so small a calibration split cannot flag what was asked for; "" if it can."""
    least, level = 1 / (calibrated + 1), f"{false_alarm_rate:g}" if fdr is None else f"an FDR of {fdr:g}"
    fewest = int(least <= false_alarm_rate) if fdr is None else conformal.fewest_flagged(count, calibrated, fdr)
    if not fewest:
        return f"nothing can be flagged at {level}: the least p-value of {calibrated} calibration examples is {least:.2g}"
    if fewest == 1:
        return ""
    return (
        f"with {calibrated} calibration examples and {level}, fewer than {fewest} anomalies in a batch of {count} "
        "cannot be flagged: calibrate with more examples, or score smaller batches"
    )


def _ties_and_views(x_NX: Blocks, seed: int, served: ServedModel) -> tuple[Array, Array]:
    """Return a number in [0, 1) of each example, keyed by its content, and the views of at most MOST, evenly spaced ones."""
    word = int.from_bytes(hashlib.sha256(f"tie {seed}".encode()).digest())  # not the numbers that divide a dataset
    tie, view, at = [], [], 0
    chosen_M = spaced_indices(len(x_NX), shift.MOST)
    for x_BX in x_NX:
        tie.append((digests(x_BX, word, occurrences=False) >> np.uint64(11)).astype(np.float64) * 2.0**-53)
        inside_M = chosen_M[(chosen_M >= at) & (chosen_M < at + len(x_BX))] - at
        view.append(shift.views(x_BX[inside_M], served.spec))
        at += len(x_BX)
    return np.concatenate(tie), np.concatenate(view)


def _explain(path: Path, scorer: Scorer, by: str, x_NX: Blocks, score_N: Array, names: Array, device: str) -> None:
    from remint.serving.anomalies import explain  # matplotlib takes a second to import

    chosen = np.argsort(-score_N, kind="stable")[: explain.MOST]
    kept = {place: np.array(x_X) for place, x_X in enumerate(x_NX.examples()) if place in chosen}
    titles = [f"{names[place]}: score {score_N[place]:.2f}" for place in chosen]
    with outputs.whole(path) as temporary:
        explain.draw(temporary, scorer, by, np.stack([kept[place] for place in chosen]), titles, device)


def _row_numbers(examples: Examples) -> Array:
    return np.arange(len(examples)) if examples.row_N is None else examples.row_N
