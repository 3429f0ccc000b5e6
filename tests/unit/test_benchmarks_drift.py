"""The benchmark of drift alarms: its fast statistics are those of remint monitor, and planted drifts are found."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.drift_alarms import first_alarms
from benchmarks.drift_days import PLANTS, WINDOW, Plant, daily, judged, table


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("plant", [None, *[plant for make, plant in PLANTS.values() if make is table]])
def test_fast_statistics_are_those_of_the_evaluation(window: int | None, plant: Plant | None) -> None:
    stream = table(np.random.default_rng(5), plant, 20)
    fast = list(daily(stream, window))
    assert len(fast) == 365
    for day in (1, 2, 3, 29, 30, 31, 32, 100, 365):
        slow = judged(stream, day, window)
        assert fast[day - 1] == pytest.approx(slow, rel=5e-3), day
    assert list(daily(stream, window, start=360)) == fast[359:]


def test_a_large_drift_is_found_soon_and_the_levels_are_those_of_the_day() -> None:
    _, plant = PLANTS["mean + 1 spread"]
    first = first_alarms(table(np.random.default_rng(6), plant), None, rival=True, stop=True)
    assert first["alarm"] is not None and first["alarm"] <= 10 and first["5% a day"] <= first["alarm"]  # type: ignore[operator]
    later = first_alarms(table(np.random.default_rng(6), plant, 181), None, start=181)
    assert later["alarm"] is not None and later["alarm"] >= 181
