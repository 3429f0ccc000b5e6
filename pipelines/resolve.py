"""python -m pipelines.resolve params.yaml -> outs/resolved/STEP/NAME.json: settings and code digests of each step."""

from __future__ import annotations

import shutil
from pathlib import Path

from remint.records import canonical
from remint.runtime.events import run_step
from remint.settings.params import load_params
from remint.settings.steps import resolved


def main(_: str) -> None:
    here = Path.cwd()
    out = here / "outs/resolved"
    shutil.rmtree(out, ignore_errors=True)
    for step, name, content in resolved(load_params(here)):
        (out / step).mkdir(parents=True, exist_ok=True)
        (out / step / f"{name}.json").write_text(canonical(content) + "\n")


if __name__ == "__main__":
    run_step(main, always=True)
