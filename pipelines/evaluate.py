"""python -m pipelines.evaluate PIPELINE: outs/trained/PIPELINE, on held-out data -> outs/{reports,metrics,curves}/PIPELINE.

REMINT_EVALUATE_BUNDLE and REMINT_EVALUATE_OUT, if set, name another bundle to measure (the champion's) and the folder for its
report. Data and settings are those of this workspace. REMINT_EVALUATE_FORMER is the folder of the prepared data that the
champion was trained on, if they differ and are available. The report then also has the drift since then, and the overlap of
those data with the present held-out split. REMINT_EVALUATE_PART is the folder of a training.json: only those held-out examples
are used that its model can describe.

With training.devices: N, N processes measure, or as many as this machine has devices. Their number changes no result.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import time
from pathlib import Path

from remint.runtime.events import emit, run_step
from remint.settings import plugins
from remint.settings.params import load_params
from remint.settings.steps import EvaluateStep


def main(pipeline: str) -> None:
    import torch

    from remint.data import arrays
    from remint.distributed import launch, machine, world
    from remint.evaluation import evaluate, origin, report, translation
    from remint.evaluation.evidence import PART
    from remint.records import TrainedModel

    here = Path.cwd()
    step = EvaluateStep.of(load_params(here), pipeline)
    for metric in step.metrics:
        plugins.require_own_code(metric, here, here / "constraints.txt", "metric")
    ranks = min(step.devices, machine.devices())  # fewer processes measure the same values
    if ranks > 1 and not world.launched():
        launch.run_ranks(["-m", "pipelines.evaluate", pipeline], ranks, step.threads)
        return
    began = time.monotonic()
    torch.set_num_threads(step.threads)
    bundle = Path(os.environ.get("REMINT_EVALUATE_BUNDLE", here / "outs/trained" / pipeline))
    out = Path(os.environ.get("REMINT_EVALUATE_OUT", here / "outs/reports" / pipeline))
    dataset = arrays.load(here / "outs/prepared" / step.dataset)
    features = here / "outs/features" / pipeline
    folder = os.environ.get("REMINT_EVALUATE_PART")
    part = TrainedModel.read(Path(folder) / "training.json") if folder else None
    judged = translation.restrict(dataset, part) if part else dataset
    anomaly_scores = None
    if step.evaluation.anomalies and step.scores_anomalies:  # by its name: other pipelines do not depend on its code
        anomalies = importlib.import_module("pipelines.anomalies")
        anomaly_scores = anomalies.scores_of(judged, step.evaluation.anomalies, pipeline)
    with world.join() as joined:
        evidence = evaluate.evaluate(
            bundle, judged, features, step.evaluation, step.metrics, pipeline, joined, part, anomaly_scores
        )
    if not joined.leads:
        return
    former = os.environ.get("REMINT_EVALUATE_FORMER")
    origins = origin.Origin.of(bundle, dataset, Path(former) if former else None)
    report.write(origins.sealed(evidence), bundle, judged, out, part)
    if judged is not dataset:
        (out / PART).write_text(json.dumps({"described": len(judged.held_out), "of": len(dataset.held_out)}) + "\n")
    origins.write(features if step.in_domain else None, out)
    if "REMINT_EVALUATE_OUT" not in os.environ:  # `dvc metrics show` and `dvc plots show` need separate files
        for source, target in ((out / "metrics.json", f"metrics/{pipeline}.json"), (out / "curve.csv", f"curves/{pipeline}.csv")):
            (here / "outs" / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, here / "outs" / target)
    emit("evaluated", seconds=time.monotonic() - began)


if __name__ == "__main__":
    run_step(main)
