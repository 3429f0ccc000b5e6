"""One task a step. Each asks dvc to reproduce its step in the job's workspace, or has one effect and records it.

Prefect caches nothing (dvc remembers) and retries only what another try can mend: the network and the registry.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from flows import artifacts
from flows.server import progress
from remint.errors import Interrupted, UserError
from remint.evaluation.evidence import Evidence
from remint.promotion import settlement
from remint.promotion.judge import Judgement, judge_version
from remint.promotion.outcome import Outcome
from remint.promotion.register import register_version
from remint.promotion.retraining import Retraining, timed
from remint.settings.judging import in_domain
from remint.stores import s3
from remint.stores.mlflow import ModelVersion

P = ParamSpec("P")
R = TypeVar("R")


def step(name: str, *, retries: int = 0) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task that Prefect neither caches nor keeps the result of, tried again where that can help."""
    return task(
        name=name,
        task_run_name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=5,
        retry_condition_fn=_worth_another_try,
    )


def _worth_another_try(_task: Any, _run: Any, state: Any) -> bool:
    """Wrong input stays wrong, and Ctrl-C is obeyed."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, UserError | Interrupted)


@step("fetch data")
def fetch(job: Retraining) -> None:
    """Brings what an s3:// source holds now under HOME/fetched, and files of features. What is not remote lies where it is."""
    dataset, source = job.settings.dataset, job.source
    _fetch_feature_files(job)
    if not source.startswith(s3.SCHEME):
        return
    with timed(job, "fetch"):
        fetched = s3.fetch(job.home, dataset, source, progress.reporter(job.pipeline, "fetch"))
    job.tell("ran", name="fetch", objects=fetched.objects, fetched=fetched.fetched, removed=fetched.removed)


def _fetch_feature_files(job: Retraining) -> None:
    """Brings the files under HOME/files that metrics are measured with, where they lie at an s3:// address."""
    for name, (file, sha256) in job.settings.evaluation.feature_files(job.settings.metrics()).items():
        if file.path.startswith(s3.SCHEME):
            key = f"params.yaml: pipelines.{job.pipeline}.evaluation.{name}.path"
            with timed(job, f"fetch {name}"):
                s3.fetch_file(job.home, key, file.path, sha256, progress.reporter(job.pipeline, "fetch"))


def _raw(job: Retraining) -> AbstractContextManager[None]:
    """While dvc takes its snapshot nobody else fetches into the folder that it is taken of."""
    is_remote = job.source.startswith(s3.SCHEME)
    return s3.held(job.home, job.settings.dataset, job.source) if is_remote else nullcontext()


@step("ask dvc")
def restore(job: Retraining) -> bool:
    """True where dvc remembers the whole chain: the workspace then holds it."""
    with timed(job, "ask"), _raw(job):
        known = job.dvc.restore(f"evaluate@{job.pipeline}")
    if known:
        job.tell("restored")
        _hold_whole(job, f"train@{job.pipeline}", f"evaluate@{job.pipeline}")
    return known


def _hold_whole(job: Retraining, *stages: str) -> None:
    """What dvc takes for whole is read and held against its digests, before anybody learns from it or judges by it."""
    for mended in job.dvc.whole(*stages):
        job.tell("notice", text=mended)


@step("version data")
def version_data(job: Retraining) -> None:
    """Snapshots the source into dvc and prepares the arrays."""
    name = job.settings.dataset
    with timed(job, "data"):
        job.dvc.resolve()
        with _raw(job):
            job.dvc.reproduce("snapshot", name, progress.reporter(job.pipeline, "data"))
        _hold_whole(job, f"snapshot@{name}")
        job.dvc.reproduce("prepare", name, progress.reporter(job.pipeline, "data"))
    job.tell("ran", name="data", version=job.dataset.digest[:12], counts=job.dataset.counts)


@step("learn features")
def learn_features(job: Retraining) -> None:
    """Trains the extractor that Frechet distances are measured in, on the training split; nothing where none are measured."""
    with timed(job, "features") if in_domain(job.settings.metrics()) else nullcontext():
        _hold_whole(job, f"prepare@{job.settings.dataset}")
        job.dvc.reproduce("features", _features(job), progress.reporter(job.pipeline, "features"))


def _features(job: Retraining) -> str:
    return job.dvc.key("features", job.settings.dataset, job.pipeline)


@step("train")
def train(job: Retraining) -> None:
    """Trains, or restores. An MLflow run is opened once something trains, and fed from what the trainer says."""
    report = progress.reporter(job.pipeline, "train")

    def on_event(event: dict[str, Any]) -> None:
        job.lease.check()
        if event["event"] == "started":
            _open_run(job)
        elif event["event"] == "metrics" and job.run_id:
            curves = {key: value for key, value in event.items() if isinstance(value, int | float) and key not in ("at", "step")}
            job.tracking.log_metrics(job.run_id, [{"step": event["step"], **curves}])
        report(event)

    with timed(job, "train"):
        _hold_whole(job, f"prepare@{job.settings.dataset}")
        job.trained = job.dvc.reproduce("train", job.pipeline, on_event)
    model = job.model
    job.tell("ran", name="train", trained=job.trained, weights=model.weights_sha256[:12], ended=model.ended, why=model.reason)


def _open_run(job: Retraining) -> None:
    tags = {"remint.job": job.record.id, "remint.commit": job.commit.sha, "remint.flow_run": job.record.facts["flow_run"]}
    job.run_id = job.tracking.start_run(job.pipeline, tags, job.settings.recipe.resolved())
    job.record.note(mlflow_run=job.run_id)


@step("evaluate")
def evaluate(job: Retraining) -> None:
    """Measures the model on the held-out split."""
    with timed(job, "evaluate"):
        _hold_whole(job, f"features@{_features(job)}", f"train@{job.pipeline}")
        job.dvc.reproduce("evaluate", job.pipeline, progress.reporter(job.pipeline, "evaluate"))
    job.tell("ran", name="evaluate", metrics={name: value.text() for name, value in job.report.metrics.items()})


@step("push data", retries=2)
def push(job: Retraining) -> None:
    """Copies data, weights and report to the dvc remote."""
    dataset, pipeline = job.settings.dataset, job.pipeline
    with timed(job, "push"):
        job.dvc.push(
            f"snapshot@{dataset}", f"prepare@{dataset}", f"features@{_features(job)}", f"train@{pipeline}", f"evaluate@{pipeline}"
        )


@step("register", retries=1)
def register(job: Retraining, evidence: Evidence) -> ModelVersion:
    """Registers the weights, exactly once a key, with everything needed to build them again."""
    return register_version(job, evidence.report)


@step("judge")
def judge(job: Retraining, version: ModelVersion, evidence: Evidence) -> Judgement:
    """Holds the version against the champion, measured again on today's data with today's settings."""
    return judge_version(job, version, evidence)


@step("look into the ledger")
def settled_before(job: Retraining, evidence: Evidence) -> Outcome | None:
    """The answer given before for the same weights, report and rules, while its champion still stands."""
    return settlement.settled_before(job, evidence, artifacts.announce)


@step("settle")
def settle(job: Retraining, version: ModelVersion, evidence: Evidence, judgement: Judgement) -> Outcome:
    """Writes the decision to the ledger, which is the truth, and lets MLflow, the report and Prefect follow it."""
    return settlement.settle(job, version, evidence, judgement, artifacts.announce)
