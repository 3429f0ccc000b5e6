"""Tasks of a retraining, one per step. Each lets dvc reproduce its step in the job's workspace, or has one recorded effect.

Prefect caches nothing (dvc does), and retries only steps that use the network or the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from flows import artifacts, elsewhere
from flows.server import progress
from remint.errors import Interrupted, UserError
from remint.evaluation.evidence import Evidence
from remint.promotion import monitoring, publishing, settlement, shadow
from remint.promotion.judge import Judgement, judge_version
from remint.promotion.outcome import Outcome
from remint.promotion.register import register_version
from remint.promotion.retraining import Retraining, timed
from remint.settings.judging import in_domain
from remint.stores import s3
from remint.stores.mlflow import ModelVersion
from remint.stores.mlflow.running import THROUGHPUT

P = ParamSpec("P")
R = TypeVar("R")


def step(name: str, *, retries: int = 0) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Return a decorator for a task without caching and stored results, retried if that can help."""
    return task(
        name=name,
        task_run_name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=5,
        retry_condition_fn=_can_retry,
    )


def _can_retry(_task: Any, _run: Any, state: Any) -> bool:
    """Return False for wrong input, which stays wrong, and for Ctrl-C."""
    error = state.result(raise_on_failure=False)
    return not isinstance(error, UserError | Interrupted)


@step("judge shadow")
def judge_shadow(job: Retraining) -> None:
    """Judge the versions that await shadow, if their answers are there or their deadline has passed."""
    shadow.judge_waiting(job.home, job.pipeline, lambda text: job.tell("notice", text=text), artifacts.announce)


@step("fetch data")
def fetch(job: Retraining) -> None:
    """Download s3:// sources to HOME/fetched, and remote files of features. Local sources are used in place."""
    _fetch_feature_files(job)
    for key, name, source in job.remote_sources:
        with timed(job, "fetch"):
            fetched = s3.fetch(job.home, name, source, progress.reporter(job.pipeline, "fetch"), key)
        job.tell("ran", name="fetch", objects=fetched.objects, fetched=fetched.fetched, removed=fetched.removed)


def _fetch_feature_files(job: Retraining) -> None:
    """Download the feature files of the metrics to HOME/files, if their address is s3://."""
    for name, key, url, sha256 in s3.feature_files(job.pipeline, job.settings):
        with timed(job, f"fetch {name}"):
            s3.fetch_file(job.home, key, url, sha256, progress.reporter(job.pipeline, "fetch"))


@contextmanager
def _source_lock(job: Retraining) -> Iterator[None]:
    """Lock the fetched folders against other fetches while dvc takes its snapshot."""
    with ExitStack() as locks:
        for _, name, source in job.remote_sources:
            locks.enter_context(s3.held(job.home, name, source))
        yield


@step("ask dvc")
def restore(job: Retraining) -> bool:
    """Restore all results of the pipeline from dvc's cache. Return False if one is missing."""
    with timed(job, "ask"), _source_lock(job):
        known = job.dvc.restore(f"evaluate@{job.pipeline}")
    if known:
        job.tell("restored")
        _verify_outputs(job, f"train@{job.pipeline}", f"evaluate@{job.pipeline}")
    return known


def _verify_outputs(job: Retraining, *stages: str) -> None:
    """Read the outputs that dvc considers complete, compare them with their digests, and report repairs."""
    for mended in job.dvc.repair_outputs(*stages):
        job.tell("notice", text=mended)


@step("version data")
def version_data(job: Retraining) -> None:
    """Take a snapshot of the source into dvc and prepare the arrays."""
    name = job.settings.dataset
    with timed(job, "data"):
        job.dvc.resolve()
        with _source_lock(job):
            job.dvc.reproduce("snapshot", name, progress.reporter(job.pipeline, "data"))
        _verify_outputs(job, f"snapshot@{name}")
        job.dvc.reproduce("prepare", name, progress.reporter(job.pipeline, "data"))
    job.params.check_missing(job.pipeline, job.dataset.spec)
    job.tell("ran", name="data", version=job.dataset.digest[:12], counts=job.dataset.counts)


@step("learn features")
def learn_features(job: Retraining) -> None:
    """Train the feature extractor for Frechet distances on the training split, if a metric needs it."""
    with timed(job, "features") if in_domain(job.settings.metrics()) else nullcontext():
        _verify_outputs(job, f"prepare@{job.settings.dataset}")
        elsewhere.reproduce(job, "features", _features(job), progress.reporter(job.pipeline, "features"))


def _features(job: Retraining) -> str:
    """Key of the features stage for this pipeline."""
    return job.dvc.key("features", job.settings.dataset, job.pipeline)


@step("train")
def train(job: Retraining) -> None:
    """Train, or restore from dvc's cache. A training opens an MLflow run, which gets the metrics of the trainer's events."""
    report = progress.reporter(job.pipeline, "train")

    def on_event(event: dict[str, Any]) -> None:
        job.lease.check()
        if event["event"] == "started":
            _open_run(job)
        job.durations.hear_training(event)
        if event["event"] == "metrics" and job.run_id:
            curves = {key: value for key, value in event.items() if isinstance(value, int | float) and key not in ("at", "step")}
            if job.durations.steps_per_second is not None:
                curves[THROUGHPUT] = job.durations.steps_per_second * job.settings.training.batch_size
            job.tracking.log_metrics(job.run_id, [{"step": event["step"], **curves}])
        report(event)

    with timed(job, "train"):
        _verify_outputs(job, f"prepare@{job.settings.dataset}")
        if job.settings.training.nodes.max > 1:
            job.dvc.push(f"prepare@{job.settings.dataset}")  # other machines fetch it
        job.trained = elsewhere.reproduce(job, "train", job.pipeline, on_event)
    model = job.model
    job.tell("ran", name="train", trained=job.trained, weights=model.weights_sha256[:12], ended=model.ended, why=model.reason)


def _open_run(job: Retraining) -> None:
    tags = {"remint.job": job.record.id, "remint.commit": job.commit.sha, "remint.flow_run": job.record.facts["flow_run"]}
    job.run_id = job.tracking.start_run(job.pipeline, tags, job.settings.recipe.resolved())
    job.record.note(mlflow_run=job.run_id)


@step("evaluate")
def evaluate(job: Retraining) -> None:
    """Measure the model on the held-out split. Say so if it takes long, compared with the training."""
    report = progress.reporter(job.pipeline, "evaluate")

    def on_event(event: dict[str, Any]) -> None:
        job.durations.hear_evaluation(event)
        report(event)

    with timed(job, "evaluate"):
        _verify_outputs(job, f"features@{_features(job)}", f"train@{job.pipeline}")
        elsewhere.reproduce(job, "evaluate", job.pipeline, on_event)
    if note := job.durations.note(job.settings.metrics()):
        job.tell("notice", text=note)
    job.tell("ran", name="evaluate", metrics={name: value.text() for name, value in job.report.metrics.items()})


@step("calibrate")
def calibrate(job: Retraining) -> None:
    """Score the calibration split, for p-values of new examples, if the dataset has such a split."""
    if job.calibrates:
        with timed(job, "calibrate"):
            elsewhere.reproduce(job, "calibrate", job.pipeline, progress.reporter(job.pipeline, "calibrate"))
        job.tell("ran", name="calibrate", examples=job.dataset.counts["calibration"])


@step("push data", retries=2)
def push(job: Retraining) -> None:
    """Copy data, weights, report and calibration to the dvc remote."""
    dataset, pipeline = job.settings.dataset, job.pipeline
    steps = ("train", "evaluate", *(["calibrate"] if job.calibrates else []))
    with timed(job, "push"):
        made = (f"snapshot@{dataset}", f"prepare@{dataset}", f"features@{_features(job)}")
        job.dvc.push(*made, *(f"{step}@{pipeline}" for step in steps))


@step("register", retries=1)
def register(job: Retraining, evidence: Evidence) -> ModelVersion:
    """Register the weights, once per key, with everything that a rebuild needs."""
    return register_version(job, evidence.report)


@step("judge")
def judge(job: Retraining, version: ModelVersion, evidence: Evidence) -> Judgement:
    """Compare the version with the champion, which is measured again on today's data with today's settings."""
    return judge_version(job, version, evidence)


@step("check drift")
def check_drift(job: Retraining, reign: monitoring.Reign) -> monitoring.Monitoring:
    """Measure the champion on today's data, and the drift since it was trained; open an alarm if that is due."""
    return monitoring.check(job, reign)


@step("find earlier decision")
def settled_before(job: Retraining, evidence: Evidence) -> Outcome | None:
    """Return the earlier outcome for the same weights, report and rules; None if there is none or the champion changed."""
    return settlement.settled_before(job, evidence, artifacts.announce)


@step("settle")
def settle(job: Retraining, version: ModelVersion, evidence: Evidence, judgement: Judgement) -> Outcome:
    """Write the decision to the ledger, the source of truth, then update MLflow, the report and Prefect."""
    return settlement.settle(job, version, evidence, judgement, artifacts.announce)


@step("publish")
def publish(job: Retraining) -> None:
    """Write the champion to the place of publish:, unless it is there. A failure is told, and ends nothing."""
    if job.settings.publish is not None:
        with timed(job, "publish"):
            publishing.publish_or_tell(job.home, job.pipeline, job.settings.publish, lambda text: job.tell("notice", text=text))
