"""Schedule of a pipeline, checked as Prefect will read it: an error at deployment would leave later pipelines without theirs.

Prefect reads cron by its own copy of croniter, and rrule by dateutil. This room may not import Prefect, so cron's grammar is
written here; tests/unit/test_schedule.py holds it against Prefect's parser.
"""

from __future__ import annotations

import re
import zoneinfo
from datetime import UTC, datetime
from typing import Any

from pydantic import field_validator, model_validator

from remint.settings.base import Positive, Settings

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# Name, first and last number, and names of numbers. Cron's Sunday is 0 and 7.
FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(MONTHS, 1)}),
    ("weekday", 0, 7, {name: number for number, name in enumerate(WEEKDAYS)}),
)
LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # days, in a leap year
ITEM = re.compile(r"(?P<first>\*|\w+)(-(?P<last>\w+))?(/(?P<step>\d+))?", re.ASCII)
ORDINAL = re.compile(r"\w+#[1-5]|l[0-7]", re.ASCII)  # the second Friday: fri#2; the last one: L5
LONGEST_INTERVAL = 10 * 366 * 86400  # seconds
LONGEST_RRULE = 6500  # characters, Prefect's limit
UNSUPPORTED_ZONES = ("Factory", "localtime")  # names of files, which Prefect's scheduler does not know
PREFECTS_START = datetime(2020, 1, 1)  # of a rule without DTSTART
ZONE = re.compile(r";TZID=(?P<zone>[^:;\s]+)|(?<=\d)(?P<utc>Z)(?![^;,\s])", re.IGNORECASE)  # of a time; Prefect drops it
PROBE = datetime(9950, 1, 1)  # dateutil searches until the year 9999, so a search from here is short


class ScheduleSettings(Settings):
    """Schedule of a pipeline. Give exactly one of cron, interval and rrule."""

    cron: str | None = None  # five fields: minute, hour, day, month, weekday
    interval: Positive | None = None  # seconds
    rrule: str | None = None  # as in RFC 5545: FREQ=WEEKLY;BYDAY=MO
    timezone: str = "UTC"  # a name of the IANA database, such as Europe/Berlin

    @field_validator("cron")
    @classmethod
    def _check_cron(cls, cron: str | None) -> str | None:
        if cron is not None:
            if len(cron.split()) != len(FIELDS):
                raise ValueError(f"expected five cron fields, as in '0 3 * * *', not '{cron}'")
            for number, text in enumerate(cron.lower().split()):
                _numbers(number, text)
        return cron

    @field_validator("interval")
    @classmethod
    def _check_interval(cls, interval: int | None) -> int | None:
        if interval is not None and interval > LONGEST_INTERVAL:
            raise ValueError(f"expected at most {LONGEST_INTERVAL} seconds (ten years), not {interval}")
        return interval

    @field_validator("rrule")
    @classmethod
    def _check_rrule(cls, rrule: str | None) -> str | None:
        if rrule is not None:
            try:
                _parsed(rrule)
                _fires_at_all(rrule)
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
                why = " ".join(str(error).split())[:200]
                raise ValueError(f"expected a rule as in 'FREQ=WEEKLY;BYDAY=MO', not {rrule[:100]!r} ({why})") from None
        return rrule

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, timezone: str) -> str:
        if timezone not in zoneinfo.available_timezones() or timezone in UNSUPPORTED_ZONES:
            raise ValueError(f"expected an IANA time zone, such as UTC or Europe/Berlin, not '{timezone}'")
        return timezone

    @model_validator(mode="after")
    def _check_exactly_one(self) -> ScheduleSettings:
        if sum(value is not None for value in (self.cron, self.interval, self.rrule)) != 1:
            raise ValueError("give exactly one of cron, interval (seconds) and rrule")
        return self

    def can_fire(self, now: datetime | None = None) -> bool:
        """Return whether a time comes at which this schedule fires. Of rules that fire several times a day True is returned."""
        if self.cron is not None:
            days, months = (_numbers(number, text) for number, text in list(enumerate(self.cron.lower().split()))[2:4])
            if days is None:
                return True
            # Also with a weekday, which cron takes as an alternative: Prefect's parser gives up at the impossible day.
            return any(min(days) <= LONGEST_MONTH[month - 1] for month in months or range(1, 13))
        if self.rrule is not None:
            now = (now or datetime.now(UTC)).replace(tzinfo=None)
            prefects = ZONE.sub("", self.rrule)
            return _fires_at_all(prefects) and (not _is_rare(prefects) or _parsed(prefects).after(now) is not None)
        return True

    @property
    def other_zone(self) -> str | None:
        """The first zone in ``rrule`` that is not ``timezone``, or None. Prefect reads all times in ``timezone``."""
        found = [match["zone"] or "UTC" for match in ZONE.finditer(self.rrule or "")]
        return next((zone for zone in found if zone != self.timezone), None)


def _numbers(number: int, text: str) -> set[int] | None:
    """Return the numbers of one cron field, or None for any number. Raises ValueError with the field's name."""
    name = FIELDS[number][0]
    if text == "*" or (text == "?" and name in ("day", "weekday")):
        return None
    items = text.split(",")
    ordinals = [name == "weekday" and ORDINAL.fullmatch(item) is not None for item in items]
    if any(ordinals) and not all(ordinals):
        raise ValueError(f"{name}: '{text}' mixes weekdays with and without a place in the month: give one kind")
    found: set[int] = set()
    for item, is_ordinal in zip(items, ordinals, strict=True):
        if name == "day" and item == "l":
            found.add(28)  # the last day of the month; each month has this one
        elif is_ordinal:
            found.add(_number(number, item.partition("#")[0] if "#" in item else item[1:], text))
        else:
            found |= _range(number, item, text)
    return found


def _range(number: int, item: str, text: str) -> set[int]:
    """Return the numbers of one item between commas. A range may pass the end, as fri-mon does."""
    name, low, high, _ = FIELDS[number]
    every = range(low, high + (name != "weekday"))
    parts = ITEM.fullmatch(item)
    if parts is None or (parts["first"] == "*" and (parts["last"] or not parts["step"])):
        raise ValueError(f"{name}: expected *, a number, a range or a list of these, as 1-5 or */2, not '{text}'")
    step = int(parts["step"] or 1)
    if step < 1:
        raise ValueError(f"{name}: expected a step of at least 1, not '{text}'")
    if parts["first"] == "*":
        return set(every[::step])
    first = _number(number, parts["first"], text)
    if not parts["last"] and not parts["step"]:
        return {first}
    last = _number(number, parts["last"], text) if parts["last"] else every[-1]
    if first == last:  # Prefect takes this for the whole cycle
        return set(every[::step])
    turn = range(first, last + 1) if first < last else (*range(first, every[-1] + 1), *range(low, last + 1))
    return set(turn[::step])


def _number(number: int, text: str, whole: str) -> int:
    name, low, high, names = FIELDS[number]
    value = names.get(text, int(text) if text.isdigit() else -1)
    if not low <= value <= high:
        also = f" or {next(iter(names))} to {list(names)[-1]}" if names else ""
        raise ValueError(f"{name}: expected {low} to {high}{also}, not '{text}'{f' in {whole!r}' if text != whole else ''}")
    return 0 if name == "weekday" and value == high else value


def _parsed(rrule: str) -> Any:
    """Return a rule as Prefect reads it: its client parses the text alone, and its scheduler with a start that has no zone."""
    from dateutil.rrule import rrulestr

    if len(rrule) > LONGEST_RRULE:
        raise ValueError(f"it has {len(rrule)} characters, Prefect takes {LONGEST_RRULE}")
    if re.search(r"INTERVAL=([-+]?0+(?!\d)|-)", rrule, re.IGNORECASE):
        raise ValueError("INTERVAL must be at least 1")
    rrulestr(rrule)
    return rrulestr(rrule, dtstart=PREFECTS_START)


def _is_rare(rrule: str) -> bool:
    """Return whether a rule fires once a day at most, so that a search for its times is short."""
    return (
        re.fullmatch(r"(DAILY|WEEKLY|MONTHLY|YEARLY)", "".join(re.findall(r"FREQ=(\w+)", rrule, re.IGNORECASE)).upper())
        is not None
    )


def _fires_at_all(rrule: str) -> bool:
    """Return whether a rule has a time in any fifty years."""
    from dateutil.rrule import rrule as Rule

    parsed = _parsed(rrule)
    if not isinstance(parsed, Rule) or not _is_rare(rrule):
        return True
    return next(iter(parsed.replace(dtstart=PROBE, until=None, count=None)), None) is not None
