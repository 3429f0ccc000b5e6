"""python -m pipelines.features DATASET: outs/prepared/DATASET -> outs/features/DATASET, for Frechet distances."""

from __future__ import annotations

from pathlib import Path

from remint.runtime.events import run_step


def main(dataset: str) -> None:
    import torch

    from remint.data import arrays
    from remint.evaluation import features

    here = Path.cwd()
    torch.set_num_threads(1)  # the weights' SHA-256 is in every fingerprint: it must not depend on the machine's cores
    features.fit(arrays.load(here / "outs/prepared" / dataset), here / "outs/features" / dataset)


if __name__ == "__main__":
    run_step(main)
