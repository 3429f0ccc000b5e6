"""Retry loops, with the given pauses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remint.runtime.retry import doubling, retry, wait_until, within


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the clock: time passes only in pauses. List the pauses."""
    pauses: list[float] = []
    monkeypatch.setattr("remint.runtime.retry.time.sleep", pauses.append)
    monkeypatch.setattr("remint.runtime.retry.time.monotonic", lambda: sum(pauses))
    return pauses


def failing_work(times: int, error: type[Exception] = OSError) -> Callable[[], int]:
    """Return work that fails this many times and then returns the number of attempts."""
    tries = 0

    def work() -> int:
        nonlocal tries
        tries += 1
        if tries <= times:
            raise error(f"try {tries}")
        return tries

    return work


def is_os_error(error: Exception) -> bool:
    return isinstance(error, OSError)


def test_work_is_retried_after_each_pause(clock: list[float]) -> None:
    assert retry(failing_work(3), passes=is_os_error, pauses=doubling(0.5, 6)) == 4
    assert clock == [0.5, 1.0, 2.0]


def test_the_error_of_the_last_try_is_raised(clock: list[float]) -> None:
    with pytest.raises(OSError, match="try 4"):
        retry(failing_work(9), passes=is_os_error, pauses=doubling(0.05, 4))
    assert clock == [0.05, 0.1, 0.2]
    with pytest.raises(OSError, match="try 1"):
        retry(failing_work(9), passes=is_os_error, pauses=doubling(0.05, 1))


def test_a_permanent_error_is_raised_at_once(clock: list[float]) -> None:
    with pytest.raises(ValueError, match="try 1"):
        retry(failing_work(1, ValueError), passes=is_os_error, pauses=doubling(1.0, 9))
    assert clock == []


def test_a_result_found_after_a_pause_is_returned_instead(clock: list[float]) -> None:
    found = iter([None, 0])
    assert retry(failing_work(9), passes=is_os_error, pauses=doubling(1.0, 9), instead=lambda: next(found)) == 0
    assert clock == [1.0, 2.0]


def test_an_error_of_the_search_for_a_result_is_raised_at_once(clock: list[float]) -> None:
    with pytest.raises(OSError, match="try 1"):
        retry(failing_work(9, LookupError), passes=lambda error: True, pauses=doubling(1.0, 9), instead=failing_work(1))
    assert clock == [1.0]


def test_pauses_that_are_shared_are_counted_together(clock: list[float]) -> None:
    pauses = doubling(1.0, 4)
    retry(failing_work(2), passes=is_os_error, pauses=pauses)
    with pytest.raises(OSError, match="try 2"):
        retry(failing_work(9), passes=is_os_error, pauses=pauses)
    assert clock == [1.0, 2.0, 4.0]


def test_no_attempt_begins_after_the_time_limit(clock: list[float]) -> None:
    with pytest.raises(OSError, match="try 4"):
        retry(failing_work(99), passes=is_os_error, pauses=within(2.0, every=0.5))
    assert clock == [0.5] * 3


def test_wait_until_ends_with_the_condition_or_the_time_limit(clock: list[float]) -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), 10.0, every=1.0)
    assert clock == [1.0, 1.0]
    assert not wait_until(lambda: False, 2.5, every=1.0)
    assert clock == [1.0] * 5
