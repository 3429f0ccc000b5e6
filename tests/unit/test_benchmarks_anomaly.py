"""Benchmarks of anomaly scores: their data, and the bounds that they check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks import anomaly, calibration
from remint.models.scores import DEFAULT


@pytest.mark.parametrize(("make", "width"), [(anomaly.events, 8), (anomaly.sensors, 96)])
def test_made_tables_are_rows_of_the_spec_and_the_same_each_time(make: Any, width: int) -> None:
    ((_, (usual, other, spec)),), ((_, (again, _, _)),) = make(), make()
    assert usual.shape[1] == other.shape[1] == width == len(spec.columns) and usual.dtype == np.float32
    np.testing.assert_array_equal(usual, again)
    for place, column in enumerate(spec.columns):
        both = np.concatenate([usual[:, place], other[:, place]])
        if column.categories:
            assert set(np.unique(both)) <= set(range(len(column.categories)))
        else:
            assert abs(usual[:, place].mean()) < 1e-3 and abs(usual[:, place].std() - 1) < 1e-3


def rows(combined: float, worst: float, forest: float) -> list[dict[str, Any]]:
    found = [
        {"data": f"digit {digit}", "model": "", "score": peer, "auroc": 0.8}
        for digit in (0, 1)
        for peer in (anomaly.FOREST, anomaly.COMPONENTS)
    ]
    found += [{"data": "events", "model": "", "score": peer, "auroc": forest} for peer in (anomaly.FOREST, anomaly.CODES)]
    for family in anomaly.MODELS:
        found += [
            {"data": f"digit {digit}", "model": family, "score": DEFAULT, "auroc": value}
            for digit, value in ((0, combined), (1, worst))
        ]
        found.append({"data": "events", "model": family, "score": DEFAULT, "auroc": 0.9})
    return found


def test_each_missed_bound_is_a_sentence() -> None:
    assert list(anomaly.missed(rows(0.99, 0.97, 0.6))) == []
    assert [miss.split(",")[1].split(":")[0].strip() for miss in anomaly.missed(rows(0.93, 0.95, 0.6))] == ["vae"]
    assert sum("for one digit" in miss for miss in anomaly.missed(rows(1.0, 0.7, 0.6))) == 2
    assert sum("isolation forest 0.950" in miss for miss in anomaly.missed(rows(0.99, 0.97, 0.95))) == 2


def test_a_calibration_off_its_rates_is_missed() -> None:
    held = {
        "family": "f",
        "false_alarms": 0.05,
        "deviation_of_a_half": 0.01,
        "uniform": 97,
        "false_ones": 0.1,
        "standard_error": 0.01,
    }
    assert calibration.missed(held) == []
    for key, value in {"false_alarms": 0.08, "uniform": 96, "false_ones": 0.13}.items():
        assert len(calibration.missed({**held, key: value})) == 1


def test_replaced_pixels_are_a_quarter() -> None:
    _, x = calibration.digits()
    changed = (calibration.with_noise(x, 0) != x).mean()
    assert abs(changed - calibration.REPLACED * 16 / 17) < 0.02, "one of 17 levels is the old one"
