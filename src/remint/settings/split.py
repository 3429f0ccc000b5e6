"""Settings of a dataset's split: which examples train, validate, judge and calibrate (data/splits.py)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import Field, field_validator, model_validator

from remint.settings.base import SECONDS, Settings, seconds_of

PART = re.compile(r"[\w-]+")  # of a source, in split.held_out; the path of a source has a dot, a slash or a colon


def is_source(held_out: Any) -> TypeGuard[str]:
    """Return whether a value of ``held_out`` is a source of its own."""
    return isinstance(held_out, str) and not PART.fullmatch(held_out)


def check_source(source: str) -> str:
    """Return the source. Raises ValueError if it can be no path or address."""
    if not source.strip() or not source.isprintable() or any(len(part.encode()) > 255 for part in source.split("/")):
        raise ValueError(f"expected a path or an address, not {source[:100]!r}")
    return source


class SplitSettings(Settings):
    """Shares of the examples; the rest is the training split. A hash assigns each example to a split.

    With ``time`` the newest rows are held out, and the shares of validation and calibration are those of the older rows.
    """

    by: Literal["content", "occurrence"] | None = None  # of its content, or of that and how often it came before; None: by schema
    group: str | None = None  # no group in two splits: a table's column, or a pattern with one (group) over the paths of images
    time: str | None = None  # tables: a column of dates or numbers; the newest rows are held out
    stratify: bool = False  # the shares hold in each class
    validation: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    held_out: float | str = 0.2  # a share; with time also the newest 12h, 30d, 8w; a part of the source, as test; another source
    calibration: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0  # kept to calibrate scores: not trained on, not judged by; 0: none
    seed: int = 0

    @field_validator("held_out", mode="before")
    @classmethod
    def _check_held_out(cls, held_out: Any) -> float | str:
        if isinstance(held_out, str):
            return check_source(held_out)
        if isinstance(held_out, bool) or not isinstance(held_out, int | float) or not 0.0 < held_out < 0.5:
            raise ValueError(f"expected a share above 0 and below 0.5, or a text, not {str(held_out)[:100]}")
        return float(held_out)

    @model_validator(mode="after")
    def _check_rest(self) -> SplitSettings:
        if self.training <= 0.0:
            raise ValueError("validation, held_out and calibration leave nothing for training: lower one of them")
        return self

    @model_validator(mode="after")
    def _check_rules(self) -> SplitSettings:
        rules = [key for key in ("group", "time", "stratify") if getattr(self, key)] + ["by"] * bool(self.group and self.by)
        if len(rules) > 1:
            raise ValueError(f"{' and '.join(rules)} cannot both divide the examples: remove one of them")
        if self.newest_hours is not None and not self.time:
            raise ValueError(f"held_out: {self.held_out} is a duration: name the column of dates in time, or give a share")
        if isinstance(self.held_out, str) and self.newest_hours is None:
            if self.time:
                raise ValueError(f"held_out: with time, give a share or a duration (12h, 30d, 8w), not {self.held_out[:100]!r}")
            if self.stratify:
                raise ValueError(f"held_out: stratify divides by shares: remove it, or give a share, not {self.held_out[:100]!r}")
        return self

    @property
    def training(self) -> float:
        """Share of the training split."""
        return 1.0 - self.validation - (self.held_out if isinstance(self.held_out, float) else 0.0) - self.calibration

    @property
    def limits(self) -> list[float]:
        """Limits in [0, 1] of an example's hash: held out below the first, validation below the second, calibration above."""
        held_out = self.held_out if isinstance(self.held_out, float) and not self.time else 0.0
        return [held_out, held_out + self.validation, *([1.0 - self.calibration] if self.calibration else [])]

    @property
    def part(self) -> str | None:
        """Part of the dataset's source that is held out."""
        is_part = isinstance(self.held_out, str) and PART.fullmatch(self.held_out) and self.newest_hours is None
        return self.held_out if is_part else None  # type: ignore[return-value]  # is_part: it is text

    @property
    def source(self) -> str | None:
        """Source that is held out."""
        return self.held_out if is_source(self.held_out) else None

    @property
    def newest_hours(self) -> int | None:
        """Duration of ``held_out`` in hours; None: it is a share."""
        seconds = seconds_of(self.held_out, "hdw") if isinstance(self.held_out, str) else None
        return None if seconds is None else seconds // SECONDS["h"]
