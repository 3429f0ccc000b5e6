"""Settings of the shadow: a version that the gate would promote answers copies of requests first. The block serving:."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

from pydantic import Field, field_validator, model_validator

from remint.settings.base import Settings, seconds_of
from remint.settings.judging import PromotionSettings

UNITS = "smhdw"  # of the deadline
LEVEL = 0.05  # error level of the intervals
MOST_ANSWERS = 100_000  # as serving.answers allows: the settings page shows the number


class ServingSettings(Settings):
    """Shadow of a server: a version that the gate would promote answers copies of requests first, and nobody sees its answers."""

    shadow: Annotated[float, Field(gt=0.0, le=1.0)] | None = None  # share of the requests that are copied; None: no shadow
    answers: Annotated[int, Field(ge=10, le=100_000)] = 1000  # copies that it answers until the gate judges again
    deadline: str = "2d"  # after which it is refused if there are fewer answers: 90m, 12h, 2d, 1w

    @field_validator("deadline")
    @classmethod
    def _check_deadline(cls, deadline: str) -> str:
        if seconds_of(deadline, UNITS) is None:
            raise ValueError(f"expected a duration, such as 90m, 12h or 2d, not {deadline[:100]!r}")
        return deadline

    @model_validator(mode="after")
    def _check_shadow(self) -> ServingSettings:
        if self.shadow is None and any(getattr(self, key) != field.default for key, field in type(self).model_fields.items()):
            raise ValueError("shadow: missing: give the share of the requests to copy, such as 0.1")
        return self

    @property
    def seconds(self) -> int:
        """Seconds until the deadline."""
        seconds = seconds_of(self.deadline, UNITS)
        assert seconds is not None, "it was checked"
        return seconds

    def check(self, promotion: PromotionSettings) -> None:
        """Raise ValueError if a requirement on the shadow can never hold."""
        for metric in sorted(promotion.shadow):
            if self.shadow is None:
                raise ValueError(f"promotion.require: {metric} needs serving.shadow, the share of the requests to copy")
            most = promotion.shadow[metric].max
            if most is None or promotion.shadow[metric].min is not None:
                raise ValueError(f"promotion.require: {metric} is better when it is lower: give max only")
            if metric == "shadow_latency" and most <= 0.0:
                raise ValueError("promotion.require: shadow_latency is the version's seconds over the champion's: max is above 0")
            if metric in BEST:
                self._check_reach(metric, most)

    def _check_reach(self, metric: str, most: float) -> None:
        """Raise ValueError if the interval of a metric passes a bound even after the best answers."""
        best = BEST[metric]
        reached = min(1.0, best.reach(self.answers))
        if reached > most:
            do = f"raise it to {best.answers(most):,}" if best.reach(MOST_ANSWERS) <= most else "raise the bound"
            raise ValueError(
                f"promotion.require: {self.answers:,} serving.answers cannot show a {metric} of at most {most:g}: "
                f"their interval reaches {reached:.2g} {best.when}: {do}"
            )


class Best(NamedTuple):
    """Far limit of a metric's interval after the best answers, and the fewest answers that keep it within a bound."""

    reach: Callable[[int], float]
    answers: Callable[[float], int]
    when: str


def distance_reach(n: int) -> float:
    """Return how far the interval of shadow_score_distance reaches: two bands of n values, each at half the level."""
    return 2.0 * math.sqrt(math.log(4.0 / LEVEL) / (2.0 * n))


BEST = {
    "shadow_error_rate": Best(
        lambda n: 1.0 - (LEVEL / 2.0) ** (1.0 / n),  # upper limit of Clopper and Pearson
        lambda most: math.ceil(math.log(LEVEL / 2.0) / math.log1p(-most)),
        "without an error",
    ),
    "shadow_score_distance": Best(
        distance_reach, lambda most: math.ceil(2.0 * math.log(4.0 / LEVEL) / most**2), "without a difference"
    ),
}
