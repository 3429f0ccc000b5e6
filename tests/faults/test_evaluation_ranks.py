"""Several processes measure the same as one: every metric and every value behind it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from remint.data.arrays import Dataset
from remint.distributed import launch, machine
from remint.distributed.world import SINGLE_PROCESS, World
from remint.errors import IntegrityError
from remint.evaluation import context as evaluation_context
from remint.evaluation import features
from remint.evaluation.context import EvaluationContext
from remint.evaluation.evaluate import measure
from remint.models.families import family
from remint.settings.judging import EvaluationSettings
from remint.settings.params import apply_overrides, read_params, write_params
from tests.support import training_cases as cases
from tests.support.racers import race_process

pytestmark = pytest.mark.usefixtures("one_thread")

REPOSITORY = Path(__file__).parents[2]
SAMPLE_METRICS = ["fd_domain", "kid_domain", "precision_domain", "coverage_domain", "novelty"]
METRICS = {"flow": ["nll", *SAMPLE_METRICS], "vae": ["elbo", "iwae"], "vae-conditional": ["iwae", "class_agreement"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny")
    dataset = cases.prepare(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "STEPS", 20)
        features.fit(dataset, made / "features")
    return made


def run_on_ranks(
    size: int, folder: Path, work: Callable[..., dict[str, np.ndarray]], argument: Any
) -> list[dict[str, np.ndarray]]:
    """Return the results of ``work(argument, world)`` on ``size`` ranks. ``work``: a module-level function."""
    ranks = [race_process(_rank, number, size, folder, work, argument) for number in range(size)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join(timeout=120)
    assert [each.exitcode for each in ranks] == [0] * size
    return [dict(np.load(folder / f"{number}.npz")) for number in range(size)]


def _rank(number: int, size: int, folder: Path, work: Callable[..., dict[str, np.ndarray]], argument: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=number, world_size=size)
    np.savez(folder / f"{number}.npz", **work(argument, World(number, size, torch.device("cpu"), dist.group.WORLD)))
    dist.destroy_process_group()


def build_model(name: str, dataset: Dataset) -> Any:
    settings = cases.recipe(name).model
    torch.manual_seed(0)
    made = family(name.partition("-")[0]).build(settings, dataset.spec)
    made.initialise(torch.tensor(dataset.train.x_NX), torch.tensor(dataset.train.y_N))
    return made.eval()


def measure_all(folder: Path, world: World) -> dict[str, np.ndarray]:
    """Return every number of every measurement, computed in several small blocks, the last one not full."""
    dataset = cases.load(folder)
    settings = EvaluationSettings(samples=40, draws=3, importance_samples=5)
    context = EvaluationContext(dataset, {"domain": features.load(folder / "features")}, settings, world)
    found: dict[str, np.ndarray] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_context, "BLOCK", 7)
        patch.setattr(evaluation_context, "FEATURE_BLOCK", 11)
        for name, metrics in METRICS.items():
            measured, references = measure(build_model(name, dataset), metrics, context, "tiny")
            for metric in metrics:
                one = measured[metric]
                found[f"{name} {metric}"] = np.concatenate([one.values_N, [one.low, one.high]])
                found[f"{name} {metric} reference"] = np.zeros(0) if one.reference_J is None else one.reference_J
            found |= {f"{name} {key}": np.array([value.value, value.low, value.high]) for key, value in references.items()}
    return found


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("features_on_disk", [True, False])
def test_several_processes_measure_the_same_values_as_one(
    size: int, features_on_disk: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With features of real examples kept on disk or not."""
    alone = measure_all(folder, SINGLE_PROCESS)
    assert {len(value) for value in alone.values()} >= {3 + 2, 49 + 2}  # draws; held-out examples
    if features_on_disk:
        monkeypatch.setenv("REMINT_HOME", str(tmp_path))
    for found in run_on_ranks(size, tmp_path, measure_all, folder):
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-10, err_msg=name)


def _numbered_rows(total: int, world: World) -> dict[str, np.ndarray]:
    rows = torch.arange(total).unsqueeze(1).repeat(1, 2)
    return {"rows": world.blocks(total, 7, lambda number: rows[7 * number : 7 * number + 7]).numpy()}


@pytest.mark.parametrize("total", [1, 7, 20, 21, 22])
def test_blocks_come_in_order(total: int, tmp_path: Path) -> None:
    """Also with fewer blocks than ranks."""

    for found in run_on_ranks(3, tmp_path, _numbered_rows, total):
        np.testing.assert_array_equal(found["rows"], np.arange(total)[:, None].repeat(2, axis=1))


@pytest.mark.parametrize(("requested", "available", "ranks"), [(4, 2, 2), (2, 8, 2), (4, 1, None), (1, 8, None)])
def test_the_step_starts_at_most_one_process_for_each_device(
    requested: int, available: int, ranks: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training does not reduce the number: its weights depend on it."""
    from pipelines import evaluate

    content = apply_overrides(read_params(REPOSITORY), "digits-vae", [f"training.devices={requested}", "training.threads=1"])
    write_params(content, tmp_path)
    (tmp_path / "constraints.txt").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "devices", lambda: available)
    seen: list[Any] = []
    monkeypatch.setattr(launch, "run_ranks", lambda *arguments: seen.append(arguments))
    if ranks is None:
        with pytest.raises(IntegrityError, match="outs/prepared/digits"):  # it evaluates in this process
            evaluate.main("digits-vae")
    else:
        evaluate.main("digits-vae")
    assert seen == ([(["-m", "pipelines.evaluate", "digits-vae"], ranks, 1)] if ranks else [])
