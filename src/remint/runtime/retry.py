"""The loops that try again: after errors that may pass, and until something is so."""

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
    """Return the result of ``work``, which is tried again after each of the pauses (seconds).

    ``passes`` tells whether an error may pass by itself: any other is raised, and so is the one after the last pause.
    ``instead`` is called before each further try; a result of it, other than None, ends the loop.
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
    """The pauses between so many tries, each twice the one before."""
    return (first * 2**number for number in range(tries - 1))


def within(seconds: float, every: float) -> Iterator[float]:
    """Equal pauses for as long as a further try begins within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() + every < end:
        yield every


def wait_until(is_so: Callable[[], bool], seconds: float, every: float) -> bool:
    """Ask again and again for so many seconds; whether it was so in the end."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(every)
    return True
