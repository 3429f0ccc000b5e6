"""python -m pipelines.features DATASET: outs/prepared/DATASET -> outs/features/DATASET, what Frechet distances are measured in."""

from __future__ import annotations

from pathlib import Path

from remint import step


def main(dataset: str) -> None:
    from remint.data import arrays
    from remint.evaluation import features

    here = Path.cwd()
    features.fit(arrays.load(here / "outs/prepared" / dataset), here / "outs/features" / dataset)


if __name__ == "__main__":
    step.run(main)
