"""python -m pipelines.snapshot DATASET: the present content of its sources -> outs/raw/DATASET.

Objects of s3:// sources are not fetched here. The flow fetches them first, into HOME/fetched; a run by hand uses the objects
that are there.
"""

from __future__ import annotations

import os
from pathlib import Path

from remint.runtime.events import run_step
from remint.runtime.home import Home
from remint.settings.params import load_params


def main(dataset: str) -> None:
    from remint.data import sources

    here = Path.cwd()
    home = Home.of(here)
    settings = load_params(here).dataset(dataset)
    sources.snapshot(
        dataset,
        settings,
        here,
        here / "outs/raw" / dataset,
        # Raw data is often not in git: look in the job's checkout first, then in the person's working tree.
        fallback=Path(os.environ.get("REMINT_SOURCES", here)),
        fetched=home.fetched / dataset,
        schemas=home.path / "schemas",
    )


if __name__ == "__main__":
    run_step(main, always=True)
