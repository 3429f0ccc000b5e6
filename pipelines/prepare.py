"""python -m pipelines.prepare DATASET: outs/raw/DATASET -> outs/prepared/DATASET, checked arrays in three splits."""

from __future__ import annotations

from pathlib import Path

from remint import config, step


def main(dataset: str) -> None:
    from remint.data import splits

    here = Path.cwd()
    settings = config.load(here).dataset(dataset)
    splits.prepare(dataset, settings, here / "outs/raw" / dataset, here / "outs/prepared" / dataset)


if __name__ == "__main__":
    step.run(main)
