"""python -m pipelines.snapshot DATASET: what its source holds now -> outs/raw/DATASET.

What lies at an s3:// source is not fetched here: a flow did it before, into HOME/fetched/DATASET. By hand that is used again.
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
    # A file source is looked for in the job's own checkout, then in the person's tree: raw data is not in git.
    roots = [here, Path(os.environ.get("REMINT_SOURCES", here))]
    root = next((root for root in roots if (root / sources.local(settings.source)).exists()), roots[-1])
    sources.snapshot(
        dataset,
        settings,
        root,
        here / "outs/raw" / dataset,
        fetched=home.fetched / dataset,
        schemas=home.path / "schemas",
    )


if __name__ == "__main__":
    run_step(main, always=True)
