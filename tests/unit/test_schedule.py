"""Schedules of params.yaml against the parsers of the pinned Prefect: what one takes, the other takes."""

from __future__ import annotations

import asyncio
import re
import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefect._vendor.croniter import croniter
from prefect.server.schemas.schedules import CronSchedule, RRuleSchedule
from pydantic import ValidationError

from flows.stack import pace
from flows.stack.deploy import Change, describe
from remint.settings import schedule
from remint.settings.schedule import ScheduleSettings

NOW = datetime(2026, 11, 30, tzinfo=UTC)


# A range of days or months with a 0 at one end: croniter takes some of them, with another meaning.
ZERO = re.compile(r"\b0-|-0\b")


def accepts(**values: Any) -> bool:
    try:
        ScheduleSettings(**values)
    except ValidationError:
        return False
    return True


def next_time(prefects: CronSchedule | RRuleSchedule) -> list[Any]:
    return asyncio.run(prefects.get_dates(n=1))


def numbers(low: int, high: int, *names: str) -> st.SearchStrategy[str]:
    """Items of a cron field: right ones, and some that are out of range, backwards or misspelt."""
    value = st.one_of(st.integers(max(low - 1, 0), high + 1).map(str), st.sampled_from(names or ("x",)))
    step = st.sampled_from(("", "", "/1", "/2", "/7", "/0"))
    ranges = st.tuples(value, st.one_of(st.just(""), value.map(lambda last: f"-{last}")), step).map("".join)
    return st.lists(st.one_of(ranges, st.sampled_from(("*/5", "*/x", "-1", "1-", "1//2"))), min_size=1, max_size=3).map(",".join)


FIELDS = st.tuples(
    st.one_of(st.just("*"), numbers(0, 59)),
    st.one_of(st.just("*"), numbers(0, 23)),
    st.one_of(st.sampled_from(("*", "?", "L", "1,L")), numbers(1, 31)),
    st.one_of(st.just("*"), numbers(1, 12, "jan", "DEC", "feb", "mai")),
    st.one_of(st.sampled_from(("*", "?", "L5", "fri#2", "5#6", "fri#2,mon", "mon#1,fri#3")), numbers(0, 7, "sun", "FRI", "frid")),
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(FIELDS)
def test_cron_takes_what_prefect_takes_and_reads_the_same_numbers(fields: tuple[str, ...]) -> None:
    cron = " ".join(fields)
    try:
        taken = croniter.is_valid(cron)
    except ValueError:  # croniter's own fault, for a step of 0
        taken = False
    assert accepts(cron=cron) == (taken and not ZERO.search(f"{fields[2]} {fields[3]}")), cron
    if not accepts(cron=cron):
        return
    expanded, _ = croniter.expand(cron)
    for number, text in enumerate(cron.lower().split()):
        found = schedule._numbers(number, text)
        if found is not None and "l" not in text and "#" not in text and not any(_wraps(item) for item in text.split(",")):
            whole = len(found) == croniter.LEN_MEANS_ALL[number]
            assert set(expanded[number]) == found or (whole and expanded[number] == ["*"]), (cron, number)


def _wraps(item: str) -> bool:
    return "-" in item and "/" in item  # past the end croniter counts steps in its own way


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 31), st.integers(1, 12), st.sampled_from(("*", "?", "1")))
def test_a_cron_can_fire_if_prefect_finds_a_time(day: int, month: int, weekday: str) -> None:
    cron = f"0 0 {day} {month} {weekday}"
    try:
        found = next_time(CronSchedule(cron=cron))
    except Exception as error:
        assert "CroniterBadDateError" in type(error).__name__
        found = []
    assert ScheduleSettings(cron=cron).can_fire() == bool(found)


@pytest.mark.parametrize(
    ("rrule", "taken", "fires"),
    [
        ("FREQ=DAILY", True, True),
        ("RRULE:FREQ=WEEKLY;BYDAY=MO,FR;BYHOUR=3", True, True),
        ("DTSTART:20260101T030000\nRRULE:FREQ=DAILY;INTERVAL=2", True, True),
        ("FREQ=SECONDLY;BYMONTH=2;BYMONTHDAY=30", True, True),  # a search for its first time would take hours
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29", True, True),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", True, False),
        ("FREQ=MONTHLY;BYMONTHDAY=32", True, False),
        ("DTSTART:20200101T000000\nRRULE:FREQ=DAILY;UNTIL=20210101T000000", True, False),
        ("DTSTART:20200101T000000\nRRULE:FREQ=DAILY;COUNT=3", True, False),
        ("DTSTART:20260101T030000Z\nRRULE:FREQ=DAILY", True, True),
        ("DTSTART;TZID=Asia/Tokyo:20260101T030000\nRRULE:FREQ=DAILY", True, True),
        ("DTSTART:20260101T030000Z\nRRULE:FREQ=DAILY\nEXDATE:20260102T030000Z", True, True),
        ("DTSTART:20200101T000000Z\nRRULE:FREQ=DAILY;UNTIL=20210101T000000Z", True, False),
        ("", False, None),
        ("nonsense", False, None),
        ("INTERVAL=2", False, None),
        ("FREQ=DAILY;BYHOUR=25", False, None),
        ("FREQ=WEEKLY;BYDAY=XX", False, None),
        ("FREQ=YEARLY;BYDAY=99MO", False, None),  # an IndexError of dateutil, in Prefect's scheduler
        ("FREQ=DAILY;INTERVAL=0", False, None),
        ("FREQ=DAILY;INTERVAL=-1", False, None),
        ("FREQ=DAILY;UNTIL=20300101T000000Z", False, None),  # taken by Prefect's client, a ValueError in its scheduler
        ("RDATE:" + ",".join(["20300101T000000"] * 500), False, None),
    ],
)
def test_rrules(rrule: str, taken: bool, fires: bool | None) -> None:
    assert accepts(rrule=rrule) == taken
    if not taken:
        with pytest.raises(ValidationError) as caught:
            ScheduleSettings(rrule=rrule)
        (error,) = caught.value.errors()
        assert error["loc"] == ("rrule",) and "FREQ=WEEKLY;BYDAY=MO" in error["msg"] and "\n" not in error["msg"]
        return
    assert ScheduleSettings(rrule=rrule).can_fire(NOW) == fires
    if "SECONDLY" not in rrule:
        assert bool(next_time(RRuleSchedule(rrule=rrule))) == fires


@pytest.mark.slow
def test_each_time_zone_that_is_taken_is_known_to_prefects_scheduler() -> None:
    taken = [zone for zone in sorted(zoneinfo.available_timezones()) if accepts(interval=60, timezone=zone)]
    for index, zone in enumerate(taken):
        if index % 10 == 0 or "/" not in zone:  # asking Prefect's parser takes 30 ms
            assert next_time(CronSchedule(cron="0 3 * * *", timezone=zone)), zone
    assert not any(accepts(interval=60, timezone=zone) for zone in ("", "Factory", "localtime", "Europe/Berlim", "utc "))


@pytest.mark.parametrize(
    ("cron", "words"),
    [
        ("0 25 * * *", "hour: expected 0 to 23, not '25'"),
        ("60 0 * * *", "minute: expected 0 to 59, not '60'"),
        ("0 0 0 * *", "day: expected 1 to 31, not '0'"),
        ("0 0 * 5-13 *", "month: expected 1 to 12 or jan to dec, not '13' in '5-13'"),
        ("0 0 * * frid", "weekday: expected 0 to 7 or sun to sat, not 'frid'"),
        ("*/0 * * * *", "minute: expected a step of at least 1, not '*/0'"),
        ("0 0 * *", "expected five cron fields"),
        ("0 0 3 * * *", "expected five cron fields"),
        ("@daily", "expected five cron fields"),
        ("0 h * * *", "hour: expected 0 to 23, not 'h'"),
        ("0 ² * * *", "hour: expected"),
    ],
)
def test_a_wrong_cron_is_refused_with_field_and_expectation(cron: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ScheduleSettings(cron=cron)
    (error,) = caught.value.errors()
    assert error["loc"] == ("cron",) and words in error["msg"]


DAY = {"cron": "0 3 * * *", "timezone": "UTC"}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            Change("a", "retrain/a", "new", schedule=DAY, branch="main"),
            "+ retrain/a: cron 0 3 * * *, timezone UTC, from the head of main",
        ),
        (
            Change("a", "retrain/a", "unchanged", schedule=DAY, branch="main", paused=True, warning="w"),
            "  retrain/a: cron 0 3 * * *, timezone UTC, from the head of main (paused in Prefect: it stays paused; warning: w)",
        ),
        (
            Change(
                "a", "retrain/a", "changed", schedule=DAY, branch="b", changes={"interval": [60, None], "branch": ["main", "b"]}
            ),
            "~ retrain/a: cron 0 3 * * *, timezone UTC, from the head of b (changed: interval 60 -> None; branch main -> b)",
        ),
        (Change("a", "approve/a", "new"), "+ approve/a: the form for versions that await approval"),
        (Change("a", "retrain/a", "removed"), "- retrain/a: removed, since params.yaml does not ask for it"),
    ],
)
def test_a_change_of_a_deployment_is_one_line(change: Change, line: str) -> None:
    assert describe(change) == line


MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@pytest.mark.parametrize(
    ("settings", "longest_run", "words"),
    [
        ({"cron": "0 0 30 2 *"}, None, pace.NEVER),
        ({"cron": "0 3 * * *"}, 23 * HOUR, None),
        ({"cron": "0 3 * * *"}, 25 * HOUR, "it fires again after 1 day, 0:00:00, and a run has lasted 1 day, 1:00:00"),
        ({"cron": "0 3,4 * * mon"}, HOUR, None),
        ({"cron": "0 3,4 * * mon"}, 61 * MINUTE, "it fires again after 1:00:00, and a run has lasted 1:01:00"),
        ({"interval": 59}, None, "it fires again after 0:00:59, and a run lasts 0:01:00 or more"),
        ({"interval": 59}, timedelta(seconds=5.2), "it fires again after 0:00:59, and a run lasts 0:01:00 or more"),
        ({"interval": 60}, timedelta(seconds=59), None),
        ({"interval": 600}, None, None),
        ({"interval": 600}, timedelta(seconds=601), "it fires again after 0:10:00, and a run has lasted 0:10:01"),
        ({"rrule": "FREQ=SECONDLY"}, None, "it fires again after 0:00:01"),
        ({"rrule": "DTSTART:20200101T000000\nRRULE:FREQ=MINUTELY;INTERVAL=5"}, 6 * MINUTE, "it fires again after 0:05:00"),
        ({"rrule": "FREQ=WEEKLY;BYDAY=MO"}, HOUR, None),
        ({"rrule": "FREQ=DAILY;COUNT=1"}, None, pace.NEVER),
        ({"rrule": "DTSTART:20260101T030000Z\nRRULE:FREQ=DAILY"}, None, None),
        ({"rrule": "DTSTART;TZID=Asia/Tokyo:20260101T030000\nRRULE:FREQ=DAILY"}, None, "Prefect ignores the zone Asia/Tokyo"),
    ],
)
def test_a_schedule_that_fires_faster_than_a_run_lasts_is_a_warning(
    settings: dict[str, Any], longest_run: timedelta | None, words: str | None
) -> None:
    found = pace.warning(ScheduleSettings(**settings), longest_run)
    assert found is None if words is None else found is not None and found.startswith(words)
