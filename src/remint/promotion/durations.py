"""Time of an evaluation beside that of its training, from the events of both steps.

Files of a training hold no time, because the same training gives the same bytes. So the two are compared where both ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from remint.settings import plugins

SHARE = 0.1  # of the training's time: an evaluation of a default pipeline should not take more
LEAST = 10.0  # seconds; a shorter evaluation is not worth a line
OTHER = "the search for leaked examples, and the pictures"


@dataclass
class Durations:
    """Seconds of a training and of its evaluation."""

    training: float | None = None  # None: it was restored, or resumed from a checkpoint
    evaluation: float | None = None  # None: it was restored
    passes: dict[str, float] = field(default_factory=dict)  # of the evaluation, by metric or baseline
    steps_per_second: float | None = None  # of the training, between the last two rows of its curve
    _resumed: bool = False
    _row: tuple[float, int] | None = None  # time and step of the last row

    def hear_training(self, event: dict[str, Any]) -> None:
        """Take the seconds from an event of the step train."""
        self._resumed = self._resumed or event["event"] in ("resumed", "restarted")
        if event["event"] == "metrics":
            before, self._row = self._row, (event["at"], event["step"])
            seconds, steps = (now - then for now, then in zip(self._row, before or self._row, strict=True))
            self.steps_per_second = steps / seconds if seconds > 0 and steps > 0 else None  # the training went back
        if event["event"] == "progress" and "seconds" in event:
            self.training = None if self._resumed else float(event["seconds"])

    def hear_evaluation(self, event: dict[str, Any]) -> None:
        """Take the seconds from an event of the step evaluate."""
        if event["event"] == "measured":
            self.passes = dict(event["seconds"])
        elif event["event"] == "evaluated":
            self.evaluation = float(event["seconds"])

    def note(self, metrics: Sequence[str]) -> str | None:
        """Return a sentence if the evaluation of these metrics took more than SHARE of the training's time, else None."""
        if self.training is None or self.evaluation is None or self.evaluation <= max(LEAST, SHARE * self.training):
            return None
        passes = {**self.passes, OTHER: self.evaluation - sum(self.passes.values())}
        slowest = max(passes, key=lambda name: passes[name])
        setting = _setting(slowest, metrics)
        cheaper = f": a smaller evaluation.{setting} makes it cheaper" if setting else ""
        return (
            f"the evaluation took {self.evaluation:.0f} s, {self.evaluation / self.training:.0%} of the {self.training:.0f} s of "
            f"the training, where {SHARE:.0%} is usual; {passes[slowest]:.0f} s were for {slowest}{cheaper}"
        )


def _setting(slowest: str, metrics: Sequence[str]) -> str:
    """Return the setting below ``evaluation`` that the time of a pass is proportional to; "": there is none."""
    metric = slowest.removesuffix("_floor")
    if metric not in metrics:
        return ""
    if metric in ("elbo", "iwae") and "iwae" in metrics:  # measured in one pass
        return "importance_samples"
    return "examples" if plugins.facts_of(metric).needs in ("log_prob", "elbo") else "draws"
