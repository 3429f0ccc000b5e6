"""python -m pipelines.calibrate PIPELINE: outs/trained/PIPELINE, scores of the calibration split -> outs/calibration/PIPELINE.

Nothing is scored if the dataset has no calibration split.
"""

from __future__ import annotations

from pathlib import Path

from remint.runtime.events import run_step
from remint.settings import plugins
from remint.settings.params import load_params
from remint.settings.steps import CalibrateStep


def main(pipeline: str) -> None:
    from remint.data import arrays
    from remint.distributed.machine import deterministic
    from remint.serving.anomalies import calibration

    here = Path.cwd()
    step = CalibrateStep.of(load_params(here), pipeline)
    plugins.require_own_code(step.family, here, here / "constraints.txt")
    out = here / "outs/calibration" / pipeline
    dataset = arrays.load(here / "outs/prepared" / step.dataset)
    if dataset.calibration is None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "none.json").write_text("{}\n")  # DVC needs an output
        return
    with deterministic(step.threads):
        calibration.calibrate(here / "outs/trained" / pipeline, dataset, out)


if __name__ == "__main__":
    run_step(main)
