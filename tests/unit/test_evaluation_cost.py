"""Cost of a model: measured with a clock that the tests set, on a model built at every size. No test measures real speed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy.stats import binom

from remint.evaluation import cost
from remint.evaluation.cost import Task
from remint.models.contract import CanSample, HasElbo, HasLogProb
from tests.support.models_cases import CASES, MIXED, SQUARE, Case


class Clock:
    """Clock that advances only by the durations of the tasks."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[tuple[str, int]] = []

    def task(self, name: str, seconds: Callable[[int], float], count: int = 128, threads: int = 1) -> Task:
        """Return a task. ``seconds``: duration of the n-th call."""
        calls = iter(range(1000))

        def run(examples: int) -> None:
            assert torch.get_num_threads() == threads
            self.order.append((name, examples))
            self.now += seconds(next(calls))

        return Task(run, count, threads, {"what": name})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock.now)
    return clock


def test_the_interval_of_the_median_comes_from_order_statistics(clock: Clock) -> None:
    times = [9.0, 9.0, *[float(n) for n in (5, 1, 15, 3, 2, 14, 4, 6, 13, 7, 8, 12, 9, 10, 11)]]
    found = cost.measure_seconds({"a": clock.task("a", lambda n: times[n], threads=2)}, 15, print)["a"]
    assert found is not None
    assert (found.value, found.low, found.high, found.n, found.unit) == (8.0, 4.0, 12.0, 15, "s")
    assert 2 * binom.cdf(3, 15, 0.5) <= 0.05 < 2 * binom.cdf(4, 15, 0.5), "the 4th of 15 is the last with 95%"
    assert found.fingerprint["machine"]["threads"] == 2 and found.fingerprint["interval"].startswith("of the median")
    few = cost.measure_seconds({"a": clock.task("a", lambda n: times[n])}, 5, print)["a"]
    assert few is not None and (few.low, few.high, few.fingerprint["interval"]) == (1.0, 15.0, "least to greatest")


def test_repeats_are_interleaved_after_a_warm_up_block(clock: Clock) -> None:
    threads = torch.get_num_threads()
    tasks = {name: clock.task(name, lambda n: 0.5, count=300) for name in "ab"}
    cost.measure_seconds(tasks, 2, print)
    first, whole = 128, 300
    assert clock.order == [("a", first)] * 2 + [("b", first)] * 2 + [("a", whole), ("b", whole)] * 2
    assert torch.get_num_threads() == threads


def test_a_measurement_that_would_take_too_long_is_skipped(clock: Clock) -> None:
    slow = clock.task("slow", lambda n: 1.0, count=128 * 31)
    assert cost.measure_seconds({"slow": slow, "quick": clock.task("quick", lambda n: 1.0)}, 3, print).keys() == {"slow", "quick"}
    assert cost.measure_seconds({"slow": slow}, 3, print)["slow"] is None and ("slow", 128 * 31) not in clock.order


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_family_is_timed_at_every_size_for_what_it_can_do(case: Case) -> None:
    small = cost.scaled_model(case.family, case.settings, case.spec, 1)
    large = cost.scaled_model(case.family, case.settings, case.spec, 2)
    assert small.model is not None and large.model is not None and small.parameters is not None
    assert large.spec.dims == case.spec.dims * (2 if case.spec.is_table else 4)
    assert small.parameters <= (large.parameters or 0)
    for each in (small, large):
        assert each.model is not None
        tasks = {
            "draw": cost.sampling_task(each.model, 3, 1),
            "score": cost.scoring_task(each.model, each.spec, 3, 1),
        }
        assert (tasks["draw"] is not None) == isinstance(each.model, CanSample)
        assert (tasks["score"] is not None) == isinstance(each.model, HasLogProb | HasElbo)
        for found in cost.measure_seconds({name: task for name, task in tasks.items() if task}, 1, print).values():
            assert found is not None and found.fingerprint["examples"] == 3


def test_a_size_that_a_family_does_not_support_is_reported_with_the_reason() -> None:
    case = CASES["flow-multiscale"]
    odd = SQUARE.model_copy(update={"shape": (1, 5, 5)})
    found = cost.scaled_model(case.family, case.settings, odd, 1)
    assert found.model is None and found.parameters is None and "5" in found.unavailable_reason
    assert cost.scaled_model(case.family, case.settings, odd, 4).model is not None


def test_a_wider_table_has_new_column_names_and_the_global_generator_is_unchanged() -> None:
    wider = cost.scaled_spec(MIXED, 3)
    assert len({column.name for column in wider.columns}) == 12 == wider.dims
    assert [column.categories for column in wider.columns[:4]] == [column.categories for column in wider.columns[8:]]
    state = torch.get_rng_state()
    cost.scaled_model("vae", CASES["vae-table"].settings, MIXED, 2)
    assert torch.equal(state, torch.get_rng_state())
