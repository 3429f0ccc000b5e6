"""python -m pipelines.train PIPELINE: outs/prepared/DATASET -> outs/trained/PIPELINE, or on from a checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from remint.runtime.events import run_step
from remint.runtime.manifest import sha256_tree
from remint.settings import plugins
from remint.settings.params import load_params

# What decides the weights beside data and settings, as dvc.yaml lists it for the train step.
CODE = (
    "pipelines/train.py",
    "src/remint/settings/recipe.py",
    "src/remint/data/arrays.py",
    "src/remint/data/sampler.py",
    "src/remint/models",
    "src/remint/distributed",
    "src/remint/training",
    "examples/__init__.py",
    "examples/pixelcnn",
    "constraints.txt",
)


def main(pipeline: str) -> None:
    from remint.data import arrays
    from remint.training import train

    here = Path.cwd()
    recipe = load_params(here).pipeline(pipeline).recipe
    plugins.require_watched_code(recipe.family, here, CODE, here / "constraints.txt")
    train.train_pipeline(
        recipe,
        pipeline,
        arrays.load(here / "outs/prepared" / recipe.dataset),
        checkpoints=Path(os.environ.get("REMINT_HOME", ".remint")).absolute() / "checkpoints",
        out=here / "outs/trained" / pipeline,
        code_sha256=sha256_tree(*(here / path for path in CODE)),
        command=["-m", "pipelines.train", pipeline],
    )


if __name__ == "__main__":
    run_step(main)
