"""Seed-to-seed variation of a pipeline: the same recipe on the same data, trained with several seeds."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.runtime import flow_run

from flows import artifacts, steps
from flows.job import open_job
from flows.server import place, progress, stopping
from remint.errors import RemintError
from remint.promotion.retraining import Retraining
from remint.promotion.spread import SeedResult, SpreadReport, announcement, missing_seeds, record_spread
from remint.runtime import jobs


@flow(name="train seed", flow_run_name="{pipeline} seed {seed}", persist_result=False)
def train_seed(pipeline: str, seed: int, overrides: list[str], branch: str | None) -> SeedResult:
    """Train and evaluate with one seed. Nothing is registered; dvc's cache keeps the result for the next spread."""
    with open_job(pipeline, [*overrides, f"training.seed={seed}"], reason="seed spread", branch=branch) as job:
        steps.fetch(job)
        if not steps.restore(job):
            steps.version_data(job)
            steps.learn_features(job)
            steps.train(job)
            steps.evaluate(job)
        job.finish_run()
        if job.model.went_wrong:
            job.tell("notice", text=f"seed {seed} ended early ({job.model.ended}): its values are used anyway")
        return SeedResult.of(job)


@flow(name="seed spread", flow_run_name="{pipeline}", persist_result=False)
def seed_spread(
    pipeline: str, seeds: list[int], overrides: list[str], confidence: float, branch: str | None = None
) -> SpreadReport:
    """Train once with each seed, one after the other, and record the variation for the gate.

    ``confidence``: of the margins in the picture; ``branch``: as in retrain.
    """
    home = place.home_of_flow()
    # A job for the whole run: between two seeds the run still has a process.
    with jobs.live(home, pipeline=pipeline, commit="", flow_run=str(flow_run.id or "")):
        results = []
        for number, seed in enumerate(seeds, start=1):
            progress.tell(pipeline, "notice", text=f"seed {seed}, {number} of {len(seeds)}")
            results.append(train_seed(pipeline, seed, overrides, branch))
        report = record_spread(home, pipeline, seeds, results, confidence)
        artifacts.show_picture(Path(report.picture), pipeline, f"{pipeline}: variation of {len(seeds)} seeds")
        return report


def measure_missing(job: Retraining, branch: str | None) -> None:
    """Measure the variation over seeds that ``margin: auto`` needs, once, after a scheduled run. A typed run only says so.

    The decision of the run is in the ledger already: an error here is said, and the next scheduled run tries again.
    """
    seeds, improve = missing_seeds(job.home, job.pipeline, job.settings), job.settings.promotion.improve
    if seeds is None or improve is None:
        return
    if not (seeds and stopping.is_deployed()):
        job.tell("notice", text=announcement(job.pipeline, len(seeds) if job.settings.schedule else 0))
        return
    try:
        seed_spread(job.pipeline, seeds, [f"{key}={value}" for key, value in job.overrides.items()], improve.confidence, branch)
    except RemintError as error:
        job.tell("notice", text=f"the variation over seeds was not measured: {error}")
