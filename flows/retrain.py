"""One retraining, top to bottom."""

from __future__ import annotations

from prefect import State, flow

from flows import labels, steps
from flows.job import open_job
from remint.evaluation.evidence import Evidence
from remint.promotion.outcome import Outcome


@flow(name="retrain", flow_run_name=labels.run_name, persist_result=False)
def retrain(
    pipeline: str, overrides: list[str] | None = None, reason: str = "", branch: str | None = None
) -> Outcome | State[Outcome]:
    """Version the data, train, judge, register, and promote what is shown to be better.

    Arguments: ``pipeline`` a name in params.yaml; ``overrides`` as in ``--set``, "training.steps=20";
    ``reason`` goes into the ledger; ``branch`` builds its head instead of what is on disk (schedules do).
    Ends in a state that the verdict names, with the outcome as its result.
    """
    with open_job(pipeline, overrides or [], reason, branch) as job:  # one commit, checked out for this job
        steps.fetch(job)  # of an s3:// source what changed since the last time
        if not steps.restore(job):  # dvc is asked once: what it remembers is restored and nothing trains
            steps.version_data(job)
            steps.learn_features(job)
            steps.train(job)
            steps.evaluate(job)
        evidence = Evidence.load(job.out("reports"))  # read and verified once
        outcome = steps.settled_before(job, evidence)  # same weights, evidence and rules as in the ledger: nothing to do
        if outcome is None:
            steps.push(job)  # data first: a version never names what the remote does not hold
            version = steps.register(job, evidence)
            judgement = steps.judge(job, version, evidence)
            outcome = steps.settle(job, version, evidence, judgement)
    return labels.completed(outcome)
