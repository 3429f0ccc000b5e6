"""What seeds alone make of a pipeline: the same recipe on the same data, trained with several seeds."""

from __future__ import annotations

import getpass
from typing import Any

from prefect import flow

from flows import progress, steps
from flows.job import open_job
from remint import stores
from remint.home import Home
from remint.records import SeedSpread, digest


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
        metrics = {name: value.value for name, value in job.evidence.report.metrics.items()}
        return {"metrics": metrics, "dataset": job.dataset.digest, "recipe": digest(job.settings.recipe.but_seed())}


@flow(name="seed spread", flow_run_name="{pipeline}", persist_result=False)
def seed_spread(pipeline: str, seeds: list[int], overrides: list[str]) -> dict[str, Any]:
    """Trains once with each of the seeds, one after the other, and records what they differ by."""
    trained = []
    for place, seed in enumerate(seeds, start=1):
        progress.tell(pipeline, "notice", text=f"seed {seed}, {place} of {len(seeds)}")
        trained.append(train_seed(pipeline, seed, overrides))
    return {key: [each[key] for each in trained] for key in trained[0]}


def measure(home: Home, pipeline: str, seeds: list[int], overrides: list[str]) -> SeedSpread:
    """The spread over these seeds, recorded in the ledger's database, where the gate looks for it."""
    found = seed_spread(pipeline, seeds, overrides)
    names = found["metrics"][0]
    spread = SeedSpread(
        pipeline=pipeline,
        recipe=found["recipe"][0],
        dataset=found["dataset"][0],
        seeds=tuple(seeds),
        values={name: tuple(metrics[name] for metrics in found["metrics"]) for name in names},
    )
    stores.spreads(home).record(spread, getpass.getuser())
    return spread
