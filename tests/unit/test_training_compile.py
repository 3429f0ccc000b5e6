"""Compiled phases: the same loss, resumed and chosen as before, and never for a gradient penalty."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from remint.data.arrays import Dataset
from remint.distributed.machine import deterministic
from remint.distributed.world import SINGLE_PROCESS
from remint.errors import Interrupted, ResourceError
from remint.models.contract import Phase
from remint.models.families import family
from remint.records import TrainedModel
from remint.training import compilation
from remint.training.checkpoint import Checkpoints
from remint.training.step import StepRunner
from remint.training.train import fit
from tests.support import training_cases as cases


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    with deterministic(threads=1):
        yield cases.prepare(tmp_path_factory.mktemp("tiny"))


def trained(case: str, tiny: Dataset, folder: Path, stop: Any = lambda: False, *, dropout: bool = True, **settings: Any) -> Any:
    return fit(cases.recipe(case, dropout=dropout, **settings), tiny, SINGLE_PROCESS, Checkpoints(folder, case), stop)


def weights(state: Any) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in state.model.parameters()])


@pytest.mark.soak
def test_a_compiled_training_is_that_of_the_loop(tiny: Dataset, tmp_path: Path) -> None:
    eager = trained("vae", tiny, tmp_path / "eager", dropout=False)
    compiled = trained("vae", tiny, tmp_path / "compiled", dropout=False, compile="on")
    torch.testing.assert_close(weights(compiled), weights(eager), rtol=1e-4, atol=1e-5)
    assert not torch.equal(weights(compiled), weights(eager)), "it was compiled"
    assert (eager.compiled, compiled.compiled) == (False, True)


@pytest.mark.soak
@pytest.mark.parametrize("case", ["flow", "gan", "vaegan"])
def test_a_compiled_training_resumes_to_the_bit(case: str, tiny: Dataset, tmp_path: Path) -> None:
    whole = trained(case, tiny, tmp_path / "whole", compile="on")
    asked = iter([False, False, True])
    with suppress(Interrupted):
        trained(case, tiny, tmp_path / "pieces", lambda: next(asked), compile="on")
    pieces = trained(case, tiny, tmp_path / "pieces", compile="on")
    assert torch.equal(weights(pieces), weights(whole)) and pieces.rows == whole.rows


def test_no_phase_with_a_gradient_penalty_is_compiled(tiny: Dataset) -> None:
    for case in cases.MODELS:
        recipe = cases.recipe(case)
        chosen = family(recipe.family)
        for phase in chosen.phases(chosen.build(recipe.model, tiny.spec), recipe.model):
            assert phase.compilable == (phase.name != "critic"), (case, phase.name)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Log of what ``choose`` does; a step takes 1 s, or 0.5 s if it is compiled."""
    done: list[str] = []

    def time_steps(runner: StepRunner, count: int) -> float:
        done.append(f"time {count}")
        return 0.5 if "compile" in done else 1.0

    monkeypatch.setattr(StepRunner, "time_steps", time_steps)
    monkeypatch.setattr(Phase, "compile", lambda phase: done.append("compile"))
    return done


@pytest.mark.parametrize(
    ("steps", "settings", "environment", "compiled", "log"),
    [
        (8, {}, None, False, []),
        (8, {"compile": "on"}, None, True, ["compile", "time 2"]),
        (8, {"compile": "auto"}, None, False, ["time 5"]),  # 8 seconds are not worth it
        (700, {"compile": "auto"}, None, True, ["time 5", "compile", "time 2", "time 5"]),
        (8, {"compile": "auto"}, "on", True, ["compile", "time 2"]),  # a rebuild
        (700, {"compile": "auto"}, "off", False, []),
        (8, {"compile": "on"}, "off", True, ["compile", "time 2"]),  # a setting is not changed
    ],
)
def test_auto_measures_once_and_only_a_long_training(
    steps: int,
    settings: dict[str, Any],
    environment: str | None,
    compiled: bool,
    log: list[str],
    measured: list[str],
    tiny: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if environment:
        monkeypatch.setenv(compilation.COMPILE, environment)
    asked = iter([True])
    with pytest.raises(Interrupted):
        trained("vae", tiny, tmp_path, lambda: next(asked), steps=steps, validate_every=1000, **settings)
    assert measured == log
    notes = Checkpoints(tmp_path, "vae").read(1)[1]
    assert notes["compiled"] == compiled
    measured.clear()  # a resumed training does as before, whatever is measured now
    asked = iter([True])
    with pytest.raises(Interrupted):
        trained("vae", tiny, tmp_path, lambda: next(asked), steps=steps, validate_every=1000, **settings)
    assert measured == (["compile", "time 2"] if compiled else [])


def test_a_training_that_is_over_is_not_compiled_again(
    measured: list[str], tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its model was not written: the machine failed between the last checkpoint and the end."""
    trained("vae", tiny, tmp_path, compile="on")
    assert measured == ["compile", "time 2"]
    monkeypatch.setenv("CXX", "no-such-compiler")
    again = trained("vae", tiny, tmp_path, compile="on")
    assert (again.step, again.compiled, measured) == (cases.SHORT["steps"], True, ["compile", "time 2"])


@pytest.mark.soak
def test_nothing_is_compiled_after_the_compilation(tiny: Dataset, tmp_path: Path) -> None:
    """The weight of the KL rises with the progress, so a phase that was compiled for step 0 alone does not fit step 1."""
    torch._dynamo.reset()
    counted: list[int] = []

    def stop() -> bool:
        counted.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        return False

    trained("vae", tiny, tmp_path, stop, compile="on", steps=40)
    assert len(set(counted)) == 1, "the first count is after step 1"


def test_the_record_of_a_training_says_that_it_was_compiled(measured: list[str], tiny: Dataset, tmp_path: Path) -> None:
    on = cases.train_into(cases.recipe("vae", compile="on"), tiny, tmp_path / "on")
    off = cases.train_into(cases.recipe("vae"), tiny, tmp_path / "off")
    assert (on.fingerprint.get("compiled"), off.fingerprint.get("compiled")) == (True, None)
    assert "compile" not in off.recipe["training"], "keys of older versions stay"
    assert TrainedModel.read(tmp_path / "on/out/training.json").recipe["training"]["compile"] == "on"


def test_without_a_compiler_it_is_one_line_and_auto_trains_without(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        ResourceError, match=r"^training.compile: on needs a C\+\+ compiler, and no-such-compiler is not on PATH: "
    ):
        trained("vae", tiny, tmp_path / "on", compile="on")
    assert trained("vae", tiny, tmp_path / "auto", compile="auto").step == cases.SHORT["steps"]


def test_a_compiler_that_fails_is_one_line(tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(runner: StepRunner, count: int) -> float:
        raise RuntimeError("C++ compile error\nCommand: g++ ..")

    monkeypatch.setattr(StepRunner, "time_steps", fails)
    monkeypatch.setattr(Phase, "compile", lambda phase: None)
    expected = r"^training.compile: torch.compile failed \(RuntimeError: C\+\+ compile error\): set compile: off$"
    with pytest.raises(ResourceError, match=expected):
        trained("vae", tiny, tmp_path, compile="on")
