"""Small real trainings that the tests of several folders share, and a program that runs one (and kills itself).

    python training_cases.py FOLDER FAMILY,.. TRAINING_JSON [die=STEP] [stop=STEP] [rank=R] [twice] [anywhere]

trains each FAMILY on the dataset prepared in FOLDER, into HOME/FAMILY. ``die``: SIGKILL itself in that step;
``stop``: SIGTERM itself; ``rank``: only that rank does so; ``twice``: goes on from where it was stopped, and then trains it once more, in
one piece, into HOME/FAMILY-whole; ``anywhere``: also with more processes than cores.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from remint import plugins
from remint.data import arrays, sources, splits
from remint.data.arrays import Dataset
from remint.errors import Interrupted
from remint.recipe import DatasetSettings, Recipe, TrainingSettings
from remint.records import TrainedModel
from remint.training import loop, train, world

FAMILIES = ("flow", "gan", "pixelcnn", "vae")
MODELS: dict[str, dict[str, Any]] = {
    "flow": {"couplings": 2, "hidden": 16, "bins": 4, "dropout": 0.1},
    "gan": {"latent": 4, "hidden": 16, "layers": 2, "penalty_every": 4, "augment": 0.5, "augment_examples": 100},
    "pixelcnn": {"hidden": 4, "layers": 2, "dropout": 0.1},
    "vae": {"latent": 4, "hidden": 16, "layers": 1, "dropout": 0.1, "mixtures": 2},
}
# 5 divides no other period, so that rows, checkpoints and the lazy penalty fall on different steps.
SHORT = {"steps": 12, "batch_size": 12, "validate_every": 5, "checkpoint_every": 3, "seed": 3}

SIGNALS = {"die": signal.SIGKILL, "stop": signal.SIGTERM}


def prepare(folder: Path) -> Dataset:
    """240 images of 1x5x5 pixels and 5 levels, each a blurred random one, prepared by the real steps."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(240, 6, 6))
    smooth = noise[:, :-1, :-1] + noise[:, 1:, :-1] + noise[:, :-1, 1:] + noise[:, 1:, 1:]
    np.save(folder / "images.npy", np.clip(np.round(smooth + 2), 0, 4).astype(np.uint8))
    settings = DatasetSettings(source="images.npy", levels=5)
    sources.snapshot("tiny", settings, folder, folder / "outs/raw/tiny")
    splits.prepare("tiny", settings, folder / "outs/raw/tiny", folder / "outs/prepared/tiny")
    return load(folder)


def load(folder: Path) -> Dataset:
    return arrays.load(folder / "outs/prepared/tiny")


def recipe(family: str, *, dropout: bool = True, **training: Any) -> Recipe:
    settings = MODELS[family] if dropout or "dropout" not in MODELS[family] else MODELS[family] | {"dropout": 0.0}
    return Recipe(
        dataset="tiny",
        family=family,
        model=plugins.settings_of(family).model_validate(settings),
        training=TrainingSettings.model_validate(SHORT | training),
    )


def run(recipe: Recipe, dataset: Dataset, folder: Path, command: list[str] | None = None) -> TrainedModel:
    """Trains into ``folder/out``, with checkpoints in ``folder/checkpoints``."""
    checkpoints, out = folder / "checkpoints", folder / "out"
    return train.run(recipe, "tiny", dataset, checkpoints=checkpoints, out=out, code_sha256="c0de", command=command or [])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out").iterdir())}


def environment() -> dict[str, str]:
    """What a child needs to import the library."""
    root = Path(__file__).parent.parent
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (root / "src", root)))}


def at_step(step: int, sign: signal.Signals) -> None:
    """This process will send itself ``sign``, once, in the middle of the given step (counted from 0)."""
    real, todo = loop.batch_indices, [sign]

    def batch_indices(count: int, batch_size: int, seed: int, now: int) -> Any:
        if now == step and todo:
            os.kill(os.getpid(), todo.pop())
        return real(count, batch_size, seed, now)

    loop.batch_indices = batch_indices  # type: ignore[attr-defined]


def main(folder: str, families: str, training: str, *options: str) -> None:
    said = dict(option.partition("=")[::2] for option in options)
    if "anywhere" in said:
        train.check_devices = lambda *_: None  # type: ignore[attr-defined]
    settings = json.loads(training)
    home, dataset = Path(settings.pop("home", folder)), load(Path(folder))
    command = [__file__, folder, families, training, *options]
    with joined_once():
        for family in families.split(","):
            if said.get("rank") in (None, os.environ.get("RANK")):
                for option in said.keys() & SIGNALS.keys():
                    at_step(int(said[option]), SIGNALS[option])
            if "twice" not in said:
                run(recipe(family, **settings), dataset, home / family, command)
                continue
            with suppress(Interrupted):
                run(recipe(family, **settings), dataset, home / family)
            assert not (home / family / "out").exists(), "it was not stopped"
            run(recipe(family, **settings), dataset, home / family)
            run(recipe(family, **settings), dataset, home / f"{family}-whole")


@contextmanager
def joined_once() -> Iterator[None]:
    """One process group for all trainings of a rank: gloo cannot join a second one of the same name."""
    if not world.launched():
        yield
        return
    with world.join() as joined:
        train.join = lambda: nullcontext(joined)  # type: ignore[attr-defined]
        yield


if __name__ == "__main__":
    main(*sys.argv[1:])
