"""The champion, measured again on a challenger's data with its settings."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from flows.job import Retraining
from remint import processes, versioning
from remint.errors import Interrupted, RemintError, RunError
from remint.records import Evidence, digest


def evidence(job: Retraining, version: int) -> tuple[Evidence | None, str | None]:
    """The champion's evidence on the challenger's data and settings, or None and why there is none.

    Cached by what it depends on: the champion's weights, the dataset version, and how each metric is measured.
    """
    try:
        holder = job.tracking.version(f"{job.pipeline}/{version}")
        own = job.evidence
        if holder.key == job.model.key:
            return own, None
        how = {name: value.fingerprint for name, value in own.report.metrics.items()}
        settings = job.settings.evaluation.model_dump(mode="json")
        cached = (
            job.home.path
            / "evaluations"
            / digest({"key": holder.key, "dataset": own.report.dataset, "how": how, "settings": settings})
        )
        if not (cached / "report.json").exists():
            bundle = job.tracking.fetch(holder, job.record.folder / "champion")
            _measure(job, bundle, cached)
            shutil.rmtree(bundle, ignore_errors=True)
        return Evidence.load(cached), None
    except Interrupted:
        raise
    except RemintError as error:
        return None, f"champion {job.pipeline}/{version} could not be measured again: {error}"


def _measure(job: Retraining, bundle: Path, out: Path) -> None:
    """Runs the workspace's own evaluate step on another bundle. Complete or not there at all."""
    temporary = out.with_name(f".{out.name}.{job.record.id}")
    log = job.record.folder / "champion.log"
    environment = versioning.environment(job.dvc.folder, job.home)
    status = processes.run(
        [sys.executable, "-m", "pipelines.evaluate", job.pipeline],
        cwd=job.dvc.folder,
        env={**os.environ, **environment, "REMINT_EVALUATE_BUNDLE": str(bundle), "REMINT_EVALUATE_OUT": str(temporary)},
        log=log,
    )
    if status:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(versioning.last_words(log))
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
