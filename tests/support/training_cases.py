"""Small real trainings shared by several test folders, and a program that runs them and can kill itself.

    python training_cases.py FOLDER CASE,.. TRAINING_JSON [die=N] [stop=N] [freeze=N] [rank=R] [ruin=STEP] [spoil=STEP]
                             [twice|every=FIRST] [anywhere] [keep] [stock] [node] [mark=FILE]

trains each CASE on the dataset prepared in FOLDER, into HOME/CASE. ``die``: SIGKILL itself in the N-th step of this process
(from 0; once, if MARK is given); ``stop``: SIGTERM itself; ``freeze``: SIGSTOP itself, once in HOME; ``rank``: only that rank does so; ``ruin``:
set_infinite_learning_rate; ``spoil``: set_infinite_gradient; ``twice``: resume after the stop, then train again without a
stop into HOME/CASE-whole; ``every``: train without a stop into HOME/CASE-whole, and for each STEP from FIRST with a stop and
a resume after it, into HOME/CASE-STEP; ``anywhere``: allow more processes than cores; ``keep``: keep the checkpoints;
``stock``: use DDP's own all-reduce; ``node``: a rank on a machine of a cluster, whose checkpoints are in REMINT_HOME.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from remint.data import arrays, sources, splits
from remint.data.arrays import Dataset
from remint.distributed import world
from remint.errors import Interrupted
from remint.models.contract import Batch
from remint.records import TrainedModel, digest
from remint.runtime.parent import die_with_parent
from remint.settings import plugins
from remint.settings.dataset import DatasetSettings
from remint.settings.recipe import Recipe, TrainingSettings
from remint.training import step as training_step
from remint.training import train
from remint.training.checkpoint import Checkpoints
from remint.training.state import TrainingState

FAMILIES = ("flow", "flow_matching", "gan", "pixelcnn", "vae", "vaegan")  # one case of each, for every test
MODELS: dict[str, dict[str, Any]] = {
    "flow": {"couplings": 2, "hidden": 16, "bins": 4, "dropout": 0.1},
    "flow_matching": {"hidden": 16, "layers": 1, "dropout": 0.1, "density_steps": 2},
    "gan": {"latent": 4, "hidden": 16, "layers": 2, "penalty_every": 4, "augment": 0.1, "augment_examples": 100},
    "gan-wgan_gp": {"latent": 4, "hidden": 16, "layers": 2, "loss": "wgan_gp", "penalty": 1.0, "conditional": True},
    "pixelcnn": {"hidden": 4, "layers": 2, "dropout": 0.1},
    "vae": {"latent": 4, "hidden": 16, "layers": 1, "dropout": 0.1, "mixtures": 2},
    "vae-conditional": {"latent": 4, "hidden": 16, "layers": 1, "dropout": 0.1, "free_bits": 0.2, "conditional": True},
    "vaegan": {"latent": 4, "hidden": 16, "layers": 1, "dropout": 0.1, "critic": {"hidden": 16, "layers": 2}},
}
# 5 divides no other period, so that rows, checkpoints and the lazy penalty fall on different steps.
SHORT = {"steps": 12, "batch_size": 12, "validate_every": 5, "checkpoint_every": 3, "seed": 3}

on_node = False
SIGNALS = {"die": signal.SIGKILL, "stop": signal.SIGTERM, "freeze": signal.SIGSTOP}


def prepare(folder: Path) -> Dataset:
    """Prepare 240 blurred random images, 1x5x5 pixels, 5 levels, labelled dark or bright, with the real steps."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(240, 6, 6))
    smooth = noise[:, :-1, :-1] + noise[:, 1:, :-1] + noise[:, :-1, 1:] + noise[:, 1:, 1:]
    x_NHW = np.clip(np.round(smooth + 2), 0, 4).astype(np.uint8)
    np.savez(folder / "images.npz", x=x_NHW, y=(x_NHW.mean((1, 2)) > 2).astype(np.int64))
    settings = DatasetSettings(source="images.npz", levels=5)
    sources.snapshot("tiny", settings, folder, folder / "outs/raw/tiny")
    splits.prepare("tiny", settings, folder / "outs/raw/tiny", folder / "outs/prepared/tiny")
    return load(folder)


def load(folder: Path) -> Dataset:
    return arrays.load(folder / "outs/prepared/tiny")


def recipe(case: str, *, dropout: bool = True, **training: Any) -> Recipe:
    family = case.partition("-")[0]
    settings = plugins.settings_of(family).model_validate(MODELS[case])
    if not dropout and "dropout" in type(settings).model_fields:
        settings = settings.model_copy(update={"dropout": 0.0})
    return Recipe(dataset="tiny", family=family, model=settings, training=TrainingSettings.model_validate(SHORT | training))


def train_into(recipe: Recipe, dataset: Dataset, folder: Path, command: list[str] | None = None) -> TrainedModel:
    """Train into ``folder/out``, with checkpoints in ``folder/checkpoints``."""
    checkpoints, out = (Path(os.environ["REMINT_HOME"]) if on_node else folder) / "checkpoints", folder / "out"
    return train.train_pipeline(
        recipe, "tiny", dataset, checkpoints=checkpoints, out=out, code_sha256="c0de", command=command or []
    )


def training_digest(recipe: Recipe, dataset: Dataset) -> str:
    """Return the name of the folder of a training's checkpoints."""
    about = {"pipeline": "tiny", "recipe": recipe.resolved(), "dataset": dataset.version.digest, "code": "c0de"}
    return digest(about)


def file_contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out").iterdir())}


def environment() -> dict[str, str]:
    """Return the environment in which a child can import the library."""
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root / "src", root)))}


def signal_at_step(number: int, sign: signal.Signals, mark: Path | None = None) -> None:
    """Make this process send itself ``sign`` once, during step ``number`` counted from now on.

    ``mark``: a file that is made before the signal; if it exists, no signal is sent.
    """
    real, run = training_step.batch_indices, iter(range(10**9))

    def batch_indices(*arguments: Any) -> Any:
        if next(run) == number and not (mark and mark.exists()):
            if mark:
                mark.touch()
            os.kill(os.getpid(), sign)
        return real(*arguments)

    training_step.batch_indices = batch_indices  # type: ignore[attr-defined]


def set_infinite_learning_rate(step: int) -> None:
    """Make the learning rate infinite in that step, until the first rollback. It depends only on the training state."""
    real = training_step.rollback_factor

    def rollback_factor(state: TrainingState, settings: TrainingSettings) -> float:
        return math.inf if state.step == step and not state.rollbacks else real(state, settings)

    training_step.rollback_factor = rollback_factor


def set_infinite_gradient(step: int) -> None:
    """Put inf into one parameter's gradient in that step and, two steps later, into the loss, with a finite gradient."""
    real = training_step._compute_gradient

    def gradient(runner: nn.Module, parameters: Sequence[nn.Parameter], batch: Batch, precision: str) -> Any:
        if batch.step != step:
            return real((lambda of: runner(of) + math.inf) if batch.step == step + 2 else runner, parameters, batch, precision)  # type: ignore[arg-type]
        hook = parameters[0].register_hook(lambda gradient: torch.full_like(gradient, math.inf))  # type: ignore[no-untyped-call]
        try:
            return real(runner, parameters, batch, precision)
        finally:
            hook.remove()

    training_step._compute_gradient = gradient


def use_stock_ddp() -> None:
    """Use plain DDP: all-reduce in place of the sum in the order of the ranks."""
    DistributedDataParallel.register_comm_hook = lambda *_: None  # type: ignore[method-assign]


def main(folder: str, names: str, training: str, *options: str) -> None:
    global on_node
    chosen = dict(option.partition("=")[::2] for option in options)
    on_node = "node" in chosen
    if on_node:
        die_with_parent()  # as a step does
    if "anywhere" in chosen:
        train.check_devices = lambda *_: None  # type: ignore[attr-defined]
    if "keep" in chosen:
        Checkpoints.delete = lambda _: None  # type: ignore[method-assign]
    if "stock" in chosen:
        use_stock_ddp()
    if "ruin" in chosen:
        set_infinite_learning_rate(int(chosen["ruin"]))
    settings = json.loads(training)
    home, dataset = Path(settings.pop("home", folder)), load(Path(folder))
    command = [__file__, folder, names, training, *options]
    mark = Path(chosen["mark"]) if "mark" in chosen else None
    with join_once():
        for case in names.split(","):
            mine = chosen.get("rank") in (None, os.environ.get("RANK"))
            if "spoil" in chosen and mine and case == names.split(",", maxsplit=1)[0]:
                set_infinite_gradient(int(chosen["spoil"]))
            if "every" in chosen:
                stopped_everywhere(recipe(case, **settings), dataset, home, int(chosen["every"]), mine=mine)
                continue
            for option in chosen.keys() & SIGNALS.keys() if mine else ():
                signal_at_step(int(chosen[option]), SIGNALS[option], home / "frozen" if option == "freeze" else mark)
            if "twice" not in chosen:
                train_into(recipe(case, **settings), dataset, home / case, command)
                continue
            with suppress(Interrupted):
                train_into(recipe(case, **settings), dataset, home / case)
            assert not (home / case / "out").exists(), "it was not stopped"
            train_into(recipe(case, **settings), dataset, home / case)
            train_into(recipe(case, **settings), dataset, home / f"{case}-whole")


def stopped_everywhere(recipe: Recipe, dataset: Dataset, home: Path, first: int, *, mine: bool) -> None:
    """Train without a stop, and with a stop and a resume after each step. ``mine``: this rank receives the signal."""
    case = recipe.family
    train_into(recipe, dataset, home / f"{case}-whole")
    for step in range(first, recipe.training.steps):
        real = training_step.batch_indices
        if mine:
            signal_at_step(step - 1, signal.SIGTERM)
        with suppress(Interrupted):
            train_into(recipe, dataset, home / f"{case}-{step}")
        training_step.batch_indices = real  # type: ignore[attr-defined]
        assert not (home / f"{case}-{step}/out").exists(), "it was not stopped"
        train_into(recipe, dataset, home / f"{case}-{step}")


@contextmanager
def join_once() -> Iterator[None]:
    """Use one process group for all trainings of a rank: gloo cannot join a second one of the same name."""
    if not world.launched():
        yield
        return
    with world.join() as joined:
        train.join = lambda: nullcontext(joined)  # type: ignore[attr-defined]
        yield


if __name__ == "__main__":
    main(*sys.argv[1:])
