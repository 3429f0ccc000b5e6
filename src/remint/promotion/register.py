"""Register the weights of a retraining, with everything that a rebuild needs."""

from __future__ import annotations

import shutil
from pathlib import Path

from remint.promotion import version_tags
from remint.promotion.retraining import Retraining, timed
from remint.records import EvaluationReport
from remint.serving import fresh
from remint.stores import git
from remint.stores.dvc import workspace_environment
from remint.stores.mlflow import ModelVersion


def register_version(job: Retraining, report: EvaluationReport) -> ModelVersion:
    """Register the job's weights, once per key, and copy the report to HOME. Return the version."""
    log, environment = job.record.folder / "fresh.log", workspace_environment(job.dvc.folder, job.home)

    def verify(bundle: Path) -> str:
        return fresh.check(bundle, log, environment)

    with timed(job, "register"):
        job.lease.confirm()
        tags, files = version_tags.tags(job, report), version_tags.files(job)
        git.pin(job.home.repository, job.commit.sha)
        version = job.tracking.register(job.out("trained"), job.model, job.pipeline, job.run_id, tags, files, verify)
        job.run_id = None
    folder = job.home.report(version.name, version.version)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(job.out("reports"), folder)
    job.tell("registered", version=version.ref)
    return version
