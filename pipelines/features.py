"""python -m pipelines.features PIPELINE: outs/prepared/DATASET -> outs/features/PIPELINE, for Frechet distances.

Nothing is learnt if no metric of the pipeline needs it. Pipelines of one dataset share the result, which is kept in
HOME/features.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from remint.errors import IntegrityError
from remint.records import DatasetVersion, digest
from remint.runtime import manifest
from remint.runtime.events import run_step
from remint.runtime.home import Home
from remint.settings.imports import Imports
from remint.settings.params import load_params
from remint.settings.steps import FeaturesStep


def main(pipeline: str) -> None:
    here = Path.cwd()
    step = FeaturesStep.of(load_params(here), pipeline)
    out = here / "outs/features" / pipeline
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    if step.learns:
        _learn(here, step.dataset, out)
    else:
        (out / "none.json").write_text("{}\n")  # DVC needs an output, on which the evaluation depends


def _learn(here: Path, dataset: str, out: Path) -> None:
    import torch

    from remint.data import arrays
    from remint.evaluation import features

    prepared = here / "outs/prepared" / dataset
    code = Imports().digests("pipelines.features")
    packages = manifest.sha256_tree(here / "constraints.txt")
    version = DatasetVersion.read(prepared / arrays.VERSION).digest
    kept = Home.of(here).path / "features" / digest({"dataset": version, "code": code, "packages": packages})
    if not _is_complete(kept):
        torch.set_num_threads(1)  # the weights' SHA-256 is in every fingerprint and must not depend on the number of cores
        with manifest.whole_folder(kept) as folder:
            features.fit(arrays.load(prepared), folder)
    for name in (features.WEIGHTS, features.ABOUT):
        shutil.copyfile(kept / name, out / name)


def _is_complete(folder: Path) -> bool:
    try:
        manifest.verify(folder)
    except IntegrityError:
        return False
    return True


if __name__ == "__main__":
    run_step(main)
