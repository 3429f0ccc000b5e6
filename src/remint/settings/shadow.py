"""Settings of the shadow: a version that the gate would promote answers copies of requests first. The block serving:."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from remint.settings.base import Settings
from remint.settings.judging import PromotionSettings

DURATION = re.compile(r"([1-9]\d{0,4})([smhdw])")
SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
LEVEL = 0.05  # error level of the intervals


class ServingSettings(Settings):
    """Shadow of a server: a version that the gate would promote answers copies of requests first, and nobody sees its answers."""

    shadow: Annotated[float, Field(gt=0.0, le=1.0)] | None = None  # share of the requests that are copied; None: no shadow
    answers: Annotated[int, Field(ge=10, le=100_000)] = 1000  # copies that it answers until the gate judges again
    deadline: str = "2d"  # after which it is refused if there are fewer answers: 90m, 12h, 2d, 1w

    @field_validator("deadline")
    @classmethod
    def _check_deadline(cls, deadline: str) -> str:
        if not DURATION.fullmatch(deadline):
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
        found = DURATION.fullmatch(self.deadline)
        assert found is not None, "it was checked"
        return int(found[1]) * SECONDS[found[2]]

    def check(self, promotion: PromotionSettings) -> None:
        """Raise ValueError if a requirement on the shadow can never hold."""
        for metric in sorted(promotion.shadow):
            if self.shadow is None:
                raise ValueError(f"promotion.require: {metric} needs serving.shadow, the share of the requests to copy")
        most = promotion.shadow["shadow_error_rate"].max if "shadow_error_rate" in promotion.shadow else None
        reached = 1.0 - (LEVEL / 2.0) ** (1.0 / self.answers)  # upper limit of Clopper and Pearson without an error
        if most is not None and reached > most:
            wanted = "" if most <= 0.0 else f": raise it to {math.ceil(math.log(LEVEL / 2.0) / math.log1p(-most)):,}"
            raise ValueError(
                f"promotion.require: {self.answers:,} serving.answers cannot show a shadow_error_rate of at most {most:g}: "
                f"their interval reaches {reached:.2g} without an error{wanted or ': raise the bound'}"
            )
