"""python -m pipelines.prepare DATASET: outs/raw/DATASET -> outs/prepared/DATASET, checked arrays in their splits."""

from __future__ import annotations

from pathlib import Path

from remint.runtime.events import run_step
from remint.settings.params import load_params
from remint.settings.steps import PrepareStep


def main(dataset: str) -> None:
    from remint.data import splits

    here = Path.cwd()
    settings = PrepareStep.of(load_params(here), dataset).settings
    splits.prepare(dataset, settings, here / "outs/raw" / dataset, here / "outs/prepared" / dataset)


if __name__ == "__main__":
    run_step(main)
