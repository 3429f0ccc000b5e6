"""Models with known defects, measured by the real evaluation and judged by the real gate: only good models are promoted.

The data are a small table, and the flow is really trained on it. Each bad model is a change of this flow.
"""

from __future__ import annotations

import csv
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from remint.errors import DataError
from remint.evaluation.evidence import Evidence
from remint.records import MetricValue
from remint.stores import uncommitted
from tests.support import gate_cases as cases
from tests.support.gate_cases import COLUMNS, Generator, TrainedFlow, evaluate_flow, gate_verdict
from tests.support.trials import Trial, Trials

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = 20  # variants of each defect


@pytest.fixture(scope="module")
def trained_flow(tmp_path_factory: pytest.TempPathFactory) -> TrainedFlow:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return cases.train_flow(tmp_path_factory.mktemp("good"), seed=1)
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def champion(trained_flow: TrainedFlow, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Evidence of the flow as champion, measured with these data, under another key, like an older version."""
    found = evaluate_flow(trained_flow, tmp_path_factory.mktemp("champion"))
    return Evidence(found.report.model_copy(update={"model_key": "former"}), found.values)


def test_a_likelihood_is_measured_again_where_nothing_is_chosen(trained_flow: TrainedFlow, tmp_path: Path) -> None:
    dataset = trained_flow.dataset
    with_calibration = replace(dataset, calibration=dataset.validation)
    found = evaluate_flow(trained_flow, tmp_path / "both", dataset=with_calibration).report
    there = evaluate_flow(trained_flow, tmp_path / "there", dataset=replace(dataset, held_out=dataset.validation)).report
    unchosen, expected = found.context["nll_calibration"], there.metrics["nll"]
    assert (unchosen.value, unchosen.low, unchosen.high, unchosen.n) == (expected.value, expected.low, expected.high, expected.n)
    assert found.metrics["nll"].value != unchosen.value
    assert "nll_calibration" not in evaluate_flow(trained_flow, tmp_path / "none").report.context


def assert_not_promoted(trial: Trial, verdict: str) -> None:
    assert verdict not in ("promoted", "awaiting_approval", "awaiting_shadow"), verdict
    trial.note(variants=1, promoted=0, ended_before_the_gate=verdict.endswith("Error"))


def opponent(trial: Trial, champion: Evidence) -> Evidence | None:
    """Return the champion for every second trial; the others are first versions, with requirements only."""
    return champion if trial.number % 2 else None


@pytest.mark.case(25)
def test_healthy_runs_pass(trials: Trials, tmp_path: Path) -> None:
    """Each trial has other data and another training; 95% of the full count must pass."""
    failed = 0
    for trial in trials(short=1, full=40):
        folder = tmp_path / str(trial.number)
        found = cases.train_flow(folder, trial.random.randrange(10**6))
        verdict = gate_verdict(lambda: evaluate_flow(found, folder / "report"), None)  # noqa: B023
        failed += verdict != "promoted"
        trial.note(runs=1, passed=verdict == "promoted")
        shutil.rmtree(folder)
    assert failed <= 2


@pytest.mark.case(25)
def test_numbers_that_are_none_are_not_promoted(
    trained_flow: TrainedFlow, champion: Evidence, trials: Trials, tmp_path: Path
) -> None:
    """NaN or infinity in a weight, in samples, in the values of a report, or in the report itself."""
    for trial in trials(short=4, full=FULL):
        folder, dice = tmp_path / str(trial.number), np.random.default_rng(trial.random.randrange(2**32))
        kind, rival = trial.number % 4, opponent(trial, champion)
        if kind == 0:
            verdict = gate_verdict(
                lambda: evaluate_flow(cases.with_nonfinite_weight(trained_flow, folder / "b", dice), folder / "r"),  # noqa: B023
                rival,
            )
            assert verdict == "RunError"
        elif kind == 1:
            wrong = changed_samples(
                lambda x_BD: torch.where(torch.rand(x_BD.shape, generator=seeded_generator(dice)) < 0.01, torch.nan, x_BD)  # noqa: B023
            )
            verdict = gate_verdict(lambda: evaluate_flow(trained_flow, folder / "r", generator=wrong), rival, samples_only=True)  # noqa: B023
        else:
            spoil = with_bad_values if kind == 2 else with_bad_report
            verdict = gate_verdict(lambda: spoil(champion, dice), rival)  # noqa: B023
            assert verdict == "refused"
        assert_not_promoted(trial, verdict)


def seeded_generator(dice: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(dice.integers(2**31)))


def changed_samples(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Generator]:
    return lambda flow: Generator(flow, lambda noise_BN, sample: change(sample(noise_BN)))


def with_bad_values(found: Evidence, dice: np.random.Generator) -> Evidence:
    """Put NaN or infinity into one value behind a metric, in a report that was written with it."""
    name = str(dice.choice(["nll", "fd_domain"]))
    values_N = np.array(found.values[name])
    values_N[dice.integers(len(values_N))] = dice.choice([np.nan, np.inf, -np.inf])
    report = found.report.model_copy(update={"values_sha256": "", "model_key": "new"})
    return Evidence(report, {**found.values, name: values_N})


def with_bad_report(found: Evidence, dice: np.random.Generator) -> Evidence:
    """Put NaN or infinity into a value or limit of the report, without its validation."""
    name, field = str(dice.choice(["nll", "fd_domain"])), str(dice.choice(["value", "low", "high"]))
    spoilt = MetricValue.model_construct(**{**dict(found.report.metrics[name]), field: float(dice.choice([np.nan, -np.inf]))})
    report = found.report.model_copy(update={"metrics": {**found.report.metrics, name: spoilt}, "model_key": "new"})
    return Evidence(report, found.values)


def collapsed_generator(trial: Trial) -> Callable[[Any], Generator]:
    """Return a generator that repeats a few examples, draws near the mean, or draws one of the two clusters."""
    kind, dice = trial.number % 3, trial.random
    few = torch.randn(dice.randrange(1, 13), 4, generator=torch.Generator().manual_seed(dice.randrange(2**31)))
    shrunk, side = dice.uniform(0.0, 0.3), dice.choice([-1.0, 1.0])

    def draw(noise_BN: Tensor, sample: Callable[[Tensor], Tensor]) -> Tensor:
        if kind == 0:
            return sample(few)[torch.arange(len(noise_BN)) % len(few)]
        if kind == 1:
            return sample(noise_BN * shrunk)
        x_BD = sample(noise_BN)
        kept_KD = x_BD[x_BD[:, 0] * side > 0]
        return kept_KD[torch.arange(len(noise_BN)) % len(kept_KD)]

    return lambda flow: Generator(flow, draw)


@pytest.mark.case(25)
def test_a_collapsed_generator_is_not_promoted(
    trained_flow: TrainedFlow, champion: Evidence, trials: Trials, tmp_path: Path
) -> None:
    for trial in trials(short=3, full=FULL):
        made, folder = collapsed_generator(trial), tmp_path / str(trial.number)
        assert_not_promoted(
            trial,
            gate_verdict(
                lambda: evaluate_flow(trained_flow, folder, generator=made),  # noqa: B023
                opponent(trial, champion),
                samples_only=True,
            ),
        )


@pytest.mark.case(25)
def test_a_generator_that_learnt_by_heart_is_not_promoted(
    trained_flow: TrainedFlow, champion: Evidence, trials: Trials, tmp_path: Path
) -> None:
    """It draws training rows, all or some, exact or with little noise. Only the novelty is bad: rows look real, coverage is high."""
    rows_ND = torch.from_numpy(np.array(trained_flow.dataset.train.x_NX))
    for trial in trials(short=2, full=FULL):
        known_KD = rows_ND[: trial.random.choice([400, 600, len(rows_ND)])]
        beside, folder = trial.random.choice([0.0, 0.01, 0.05]), tmp_path / str(trial.number)

        def draw(noise_BN: Tensor, _: object) -> Tensor:
            place_B = (torch.special.ndtr(noise_BN[:, 0].double()) * len(known_KD)).long()  # noqa: B023
            return known_KD[place_B] + beside * noise_BN  # noqa: B023

        found = evaluate_flow(trained_flow, folder, generator=lambda flow: Generator(flow, draw))
        assert found.report.metrics["coverage_domain"].low > 0.75, "else it would be refused for another reason"
        verdict = gate_verdict(lambda: found, opponent(trial, champion), samples_only=True)  # noqa: B023
        assert verdict == "refused"
        assert_not_promoted(trial, verdict)


Table = list[list[str]]


def drop_column(table: Table, dice: random.Random) -> Table:
    gone = dice.randrange(len(COLUMNS))
    return [row[:gone] + row[gone + 1 :] for row in table]


def rename_column(table: Table, dice: random.Random) -> Table:
    head = list(table[0])
    head[dice.randrange(len(head))] = "z"
    return [head, *table[1:]]


def add_column(table: Table, dice: random.Random) -> Table:
    return [[*table[0], "e"], *([*row, str(dice.random())] for row in table[1:])]


def words_in_column(table: Table, dice: random.Random) -> Table:
    at = dice.randrange(len(COLUMNS))
    return [table[0], *([*row[:at], dice.choice(["low", "high"]), *row[at + 1 :]] for row in table[1:])]


def missing_values(table: Table, dice: random.Random) -> Table:
    at = dice.randrange(len(COLUMNS))
    return [table[0], *([*row[:at], "" if dice.random() < 0.2 else row[at], *row[at + 1 :]] for row in table[1:])]


@pytest.mark.case(25)
def test_data_of_another_schema_bring_nothing_into_production(
    trained_flow: TrainedFlow, champion: Evidence, trials: Trials, tmp_path: Path
) -> None:
    """They are refused when they are versioned. If a person allows the new schema, models of the old one are not judged by it."""
    for trial in trials(short=5, full=FULL):
        folder = tmp_path / str(trial.number)
        folder.mkdir()
        cases.write_table(folder / "rows.csv", trial.number, rows=300)
        cases.prepare(folder)  # the first import records the schema
        with (folder / "rows.csv").open(newline="") as stream:
            table = list(csv.reader(stream))
        change = (drop_column, rename_column, add_column, words_in_column, missing_values)[trial.number % 5]
        with (folder / "rows.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(change(table, trial.random))
        with pytest.raises(DataError):
            cases.prepare(folder)
        dataset = cases.prepare(folder, cases.SETTINGS.model_copy(update={"schema_version": 2}))
        verdict = gate_verdict(lambda: evaluate_flow(trained_flow, folder / "report", dataset=dataset), opponent(trial, champion))  # noqa: B023
        assert verdict == "DataError"
        assert_not_promoted(trial, verdict)


def leave_uncommitted_work(folder: Path, trial: Trial) -> None:
    """Make an uncommitted change: edited, new, deleted or staged."""
    kind, name = trial.number % 4, f"src/f{trial.random.randrange(4)}.py"
    if kind == 0:
        (folder / name).write_text(f"x = {trial.random.random()}\n")
    elif kind == 1:
        (folder / f"src/new{trial.random.randrange(1000)}.py").write_text("y = 1\n")
    elif kind == 2:
        (folder / name).unlink()
    else:
        (folder / name).write_text(f"x = {trial.random.random()}\n")
        subprocess.run(["git", "add", name], cwd=folder, check=True)


@pytest.mark.case(25)
def test_uncommitted_work_is_not_promoted(make_repository: Callable[..., Path], champion: Evidence, trials: Trials) -> None:
    """The evidence is good: it is promoted if the tree is clean."""
    fresh = Evidence(champion.report.model_copy(update={"model_key": "new"}), champion.values)
    for trial in trials(short=4, full=FULL):
        folder = make_repository({f"src/f{i}.py": f"x = {i}\n" for i in range(4)}, f"team{trial.number}")
        assert gate_verdict(lambda: fresh, None, dirty=uncommitted.commit_of_tree(folder).reason_dirty) == "promoted"
        leave_uncommitted_work(folder, trial)
        verdict = gate_verdict(lambda: fresh, None, dirty=uncommitted.commit_of_tree(folder).reason_dirty)
        assert verdict == "refused"
        assert_not_promoted(trial, verdict)
