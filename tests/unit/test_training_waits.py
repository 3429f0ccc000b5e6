"""The host waits for nothing within a step: no family's step reads a value from the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from remint.data.arrays import Dataset
from remint.distributed.machine import deterministic
from remint.distributed.world import SINGLE_PROCESS
from remint.training import step as training_step
from remint.training.checkpoint import Checkpoints
from remint.training.train import fit
from tests.support import training_cases as cases

READS = {"item", "tolist", "numpy", "cpu", "nonzero", "is_nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__"}


class Reads(TorchFunctionMode):
    """List of the functions that wait for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function.__name__ in READS:
            self.names.append(function.__name__)
        return function(*arguments, **(named or {}))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    with deterministic(threads=1):
        yield cases.prepare(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("case", cases.MODELS)
def test_a_step_reads_nothing_from_the_device(case: str, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    run = training_step.StepRunner.run

    def watched(runner: Any, **how: bool) -> Any:
        with Reads() as reads:
            nonfinite = run(runner, **how)
        seen.append(reads.names)
        return nonfinite

    monkeypatch.setattr(training_step.StepRunner, "run", watched)
    fit(cases.recipe(case, gradient_clip=1.0), tiny, SINGLE_PROCESS, Checkpoints(tmp_path, case), lambda: False)
    assert seen == [[]] * cases.SHORT["steps"]


def test_the_reads_are_seen() -> None:
    x = torch.ones(2)
    with Reads() as reads:
        assert x[0] and float(x[0]) and x.tolist() and x.sum().item() and len(x.nonzero()) and len(x.cpu().numpy())
    assert reads.names == ["__bool__", "__float__", "tolist", "item", "nonzero", "cpu", "numpy"]
