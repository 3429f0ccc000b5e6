"""Templates of the console. All text from outside is escaped."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from remint.runtime.templates import environment
from remint.serving.console import chart

UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60))

_environment = environment(Path(__file__).parent / "templates")


def render(template: str, **content: Any) -> str:
    """Return one page."""
    return _environment.get_template(template).render(**{"problem": None, **content})


def age(moment: datetime | str, now: datetime | None = None) -> str:
    """Return how long a time lies in the past or future: 3 days ago, in 1 hour."""
    then = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    unit, size = next(((name, size) for name, size in UNITS if abs(seconds) >= size), ("", 1))
    if not unit:
        return "just now" if seconds >= 0 else "in a moment"
    count = int(abs(seconds) // size)
    text = f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{text} ago" if seconds > 0 else f"in {text}"


def minute(moment: datetime | str) -> str:
    """Return a time to the minute, in UTC."""
    then = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
    return then.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


_environment.filters |= {"age": age, "minute": minute, "said": chart.said}
_environment.globals["chart"] = chart.draw
