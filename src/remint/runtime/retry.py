"""Retry loops: after transient errors, and until a condition holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Result = TypeVar("Result")


def retry(
    work: Callable[[], Result],
    *,
    passes: Callable[[Exception], bool],
    pauses: Iterable[float],
    instead: Callable[[], Result | None] = lambda: None,
) -> Result:
    """Return the result of ``work``. After an error it is tried again after each of the pauses (seconds).

    ``passes`` returns whether an error is transient: any other is raised, and so is the error after the last pause.
    ``instead`` is called before each further try; its result, if not None, is returned.
    """
    left = iter(pauses)
    while True:
        try:
            return work()
        except Exception as error:
            pause = next(left, None) if passes(error) else None
            if pause is None:
                raise
        time.sleep(pause)
        found = instead()
        if found is not None:
            return found


def doubling(first: float, tries: int) -> Iterator[float]:
    """Return the pauses between ``tries`` tries, each twice as long as the one before."""
    return (first * 2**number for number in range(tries - 1))


def within(seconds: float, every: float) -> Iterator[float]:
    """Yield equal pauses while a further try begins within ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() + every < end:
        yield every


def wait_until(is_so: Callable[[], bool], seconds: float, every: float) -> bool:
    """Poll a condition for at most ``seconds``. Return whether it became true."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True
