"""Machines of a training: ``training.nodes``."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from remint.settings.base import Positive, Settings


class NodeRange(Settings):
    """Least and greatest number of machines of a training; a number means both."""

    min: Positive  # the training waits for so many
    max: Positive  # and takes up to so many

    @model_validator(mode="before")
    @classmethod
    def _of_number(cls, given: Any) -> Any:
        if not isinstance(given, dict | NodeRange) and (isinstance(given, bool) or not isinstance(given, int) or given < 1):
            raise ValueError(f"expected a whole number of at least 1, or {{min: .., max: ..}}, not {given!r}")
        return {"min": given, "max": given} if isinstance(given, int) else given

    @model_validator(mode="after")
    def _check_order(self) -> NodeRange:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self
