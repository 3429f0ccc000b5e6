"""Base class of all settings, and types of their values."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0.0)]
LONGEST_COMPARED = 200  # characters of a name to compare with others: the time is quadratic in the length


SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def seconds_of(duration: str, units: str) -> int | None:
    """Return a duration, such as 90m or 2d, in seconds; None if it is none in these ``units``."""
    found = re.fullmatch(rf"([1-9]\d{{0,4}})([{units}])", duration)
    return int(found[1]) * SECONDS[found[2]] if found else None


class Settings(BaseModel):
    """Frozen settings with strict types. An unknown key is refused with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, block: Any) -> Any:
        if isinstance(block, dict):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for key in block:
                if key not in known:
                    raise ValueError(did_you_mean(f"key '{key}'", str(key), known))
        return block


def did_you_mean(what: str, name: str, known: set[str] | list[str]) -> str:
    """Return a clause that refuses a name and suggests the nearest known one, or lists all known ones."""
    near = difflib.get_close_matches(name[:LONGEST_COMPARED], sorted(known), n=1, cutoff=0.5)
    return f"unknown {what}: " + (f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(sorted(known))}")
