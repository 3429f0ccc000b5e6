"""python -m pipelines.train PIPELINE: outs/prepared/DATASET -> outs/trained/PIPELINE. Resumes from a checkpoint."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from remint.records import digest
from remint.runtime.events import run_step
from remint.runtime.manifest import sha256_tree
from remint.settings import plugins
from remint.settings.imports import Imports
from remint.settings.params import load_params
from remint.settings.steps import train_code
from remint.stores import git


def main(pipeline: str) -> None:
    from remint.data import arrays
    from remint.training import train

    here = Path.cwd()
    constraints = here / "constraints.txt"
    params = load_params(here)
    recipe = params.pipeline(pipeline).recipe
    plugins.require_own_code(recipe.family, here, constraints)
    dataset = arrays.load(here / "outs/prepared" / recipe.dataset)
    params.check_missing(pipeline, dataset.spec)
    train.train_pipeline(
        recipe,
        pipeline,
        dataset,
        checkpoints=Path(os.environ.get("REMINT_HOME", ".remint")).absolute() / "checkpoints",
        out=here / "outs/trained" / pipeline,
        code_sha256=digest({"code": train_code(recipe.family, Imports()), "packages": sha256_tree(constraints)}),
        command=["-m", "pipelines.train", pipeline],
        pack=partial(git.pack, here),
    )


if __name__ == "__main__":
    run_step(main)
