"""One retraining, top to bottom."""

from __future__ import annotations

from prefect import State, flow

from flows import labels, spread, steps
from flows.job import open_job
from remint.evaluation.evidence import Evidence
from remint.promotion import new_data
from remint.promotion.outcome import Outcome


@flow(name="retrain", flow_run_name=labels.run_name, persist_result=False)
def retrain(
    pipeline: str, overrides: list[str] | None = None, reason: str = "", branch: str | None = None
) -> Outcome | State[Outcome]:
    """Version the data, train, judge, register, and promote what is shown to be better.

    Arguments: ``pipeline`` a name in params.yaml; ``overrides`` as in ``--set``, "training.steps=20";
    ``reason`` for the ledger; ``branch`` a branch whose head is used instead of the files on disk (schedules do this).
    The final state has the name of the verdict, and the outcome as its result.
    """
    with open_job(pipeline, overrides or [], reason, branch) as job:  # one commit, checked out for this job
        steps.judge_shadow(job)  # an earlier version that answered copies of requests may be champion now
        seen = new_data.look(job)  # what triggers.data_changed compares with
        steps.fetch(job)  # changed objects of an s3:// source
        if not steps.restore(job):  # if dvc's cache has all results, they are restored and nothing trains
            steps.version_data(job)
            steps.learn_features(job)
            steps.train(job)
            steps.evaluate(job)
        steps.calibrate(job)  # scores of the calibration split, if there is one
        evidence = Evidence.load(job.out("reports"))  # read and verified once
        outcome = steps.settled_before(job, evidence)  # same weights, evidence and rules as in the ledger: no new decision
        if outcome is None:
            steps.push(job)  # data first: a version never names data that the remote lacks
            version = steps.register(job, evidence)
            judgement = steps.judge(job, version, evidence)
            outcome = steps.settle(job, version, evidence, judgement)
        steps.publish(job)  # the champion, to where services without MLflow read it
        new_data.keep(job, seen)
    spread.measure_missing(job, branch)  # what margin: auto needs, once
    return labels.completed(outcome)
