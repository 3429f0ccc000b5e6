"""Progress of an evaluation, as events: the passes done, and the seconds that the present one still takes.

A pass is a loop over blocks of examples or over draws. What is left of it is estimated from the turns done, from the first
one on. Loops inside another loop are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from remint.runtime.events import emit

SHORT = 1.0  # seconds; less than this is not announced, and no event follows another earlier


class Progress:
    """Events of one evaluation; none if ``speaks`` is false. Other ranks do not speak."""

    def __init__(self, steps: int = 0, *, speaks: bool = False) -> None:
        self.steps, self.speaks = steps, speaks
        self.seconds: dict[str, float] = {}  # of each finished pass, by its name
        self._step, self._name = 0, ""
        self._reported, self._inside = 0.0, False

    @contextmanager
    def begin(self, name: str) -> Iterator[None]:
        """Report that a pass begins, and record its seconds at its end."""
        self._name, self._reported = name, 0.0
        began = time.monotonic()
        self._emit(metric=name)
        yield
        self.seconds[name] = time.monotonic() - began
        self._step += 1

    def end(self) -> None:
        """Report that all passes are done, and the seconds of each."""
        self._emit()
        if self.speaks:
            emit("measured", seconds={name: round(seconds, 2) for name, seconds in self.seconds.items()})

    def over(self, items: Sequence[int]) -> Iterator[int]:
        """Yield the items, and report the seconds left after each."""
        with self.loop(len(items)) as tick:
            for item in items:
                yield item
                tick()

    @contextmanager
    def loop(self, turns: int) -> Iterator[Callable[[], None]]:
        """Yield a function to call after each of the turns of a loop."""
        outermost, self._inside, began, done = not self._inside, True, time.monotonic(), 0

        def tick() -> None:
            nonlocal done
            done += 1
            if outermost:
                self._report(time.monotonic() - began, done, turns)

        try:
            yield tick
        finally:
            if outermost:
                self._inside = False

    def _report(self, passed: float, done: int, turns: int) -> None:
        left = passed / done * max(0, turns - done)
        if left > SHORT and time.monotonic() - self._reported > SHORT:
            self._reported = time.monotonic()
            self._emit(metric=self._name, left=left)

    def _emit(self, **fields: str | float) -> None:
        if self.speaks:
            emit("progress", step=self._step, steps=self.steps, **fields)
