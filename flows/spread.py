"""What seeds alone make of a pipeline: the same recipe on the same data, trained with several seeds."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows import artifacts, steps
from flows.job import open_job
from flows.server import progress
from remint.promotion.paired import seed_margin
from remint.records import SeedSpread, digest
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores import git
from remint.stores.open import open_spreads


@flow(name="train seed", flow_run_name="{pipeline} seed {seed}", persist_result=False)
def train_seed(pipeline: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Trains and evaluates with one seed. Nothing is registered; dvc remembers it, and so does the next spread."""
    with open_job(pipeline, [*overrides, f"training.seed={seed}"], reason="seed spread", branch=None) as job:
        steps.fetch(job)
        if not steps.restore(job):
            steps.version_data(job)
            steps.learn_features(job)
            steps.train(job)
            steps.evaluate(job)
        job.finish_run()
        if job.model.went_wrong:
            job.tell("notice", text=f"seed {seed} ended early, {job.model.ended}: its values count all the same")
        metrics = {name: value.value for name, value in job.report.metrics.items()}
        return {"metrics": metrics, "dataset": job.dataset.digest, "recipe": digest(job.settings.recipe.without_seed())}


@flow(name="seed spread", flow_run_name="{pipeline}", persist_result=False)
def seed_spread(pipeline: str, seeds: list[int], overrides: list[str], confidence: float) -> dict[str, Any]:
    """Trains once with each of the seeds, one after the other, and records what they differ by, where the gate looks for it.

    ``confidence``: of the margins in the picture. Returns SeedSpread as JSON, with the margins and the picture's path.
    """
    home = Home.of(git.repository_of(Path.cwd())).ensure()
    # Between two seeds, too, a process is at work on this run.
    with jobs.live(home, pipeline=pipeline, commit="", flow_run=str(flow_run.id or "")):
        trained = []
        for place, seed in enumerate(seeds, start=1):
            progress.tell(pipeline, "notice", text=f"seed {seed}, {place} of {len(seeds)}")
            trained.append(train_seed(pipeline, seed, overrides))
        spread = SeedSpread(
            pipeline=pipeline,
            recipe=trained[0]["recipe"],
            dataset=trained[0]["dataset"],
            seeds=tuple(seeds),
            values={name: tuple(each["metrics"][name] for each in trained) for name in trained[0]["metrics"]},
        )
        open_spreads(home).record(spread, getpass.getuser())
        margins = {metric: seed_margin(values, confidence) for metric, values in spread.values.items()}
        picture = home.reports / pipeline / "seed-spread.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        from remint.evaluation import charts

        charts.seed_spread(picture, spread, margins)
        artifacts.show_picture(picture, pipeline, f"{pipeline}: what {len(seeds)} seeds make of it")
        return {**spread.to_json(), "confidence": confidence, "margins": margins, "picture": str(picture)}
