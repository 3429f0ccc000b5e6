"""The champion, measured again on a challenger's data with its settings, and its own data held against today's."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remint.errors import IntegrityError, Interrupted, RemintError, RunError, StepError, StorageError, TrackingError
from remint.evaluation.evidence import Evidence
from remint.promotion.retraining import Retraining
from remint.records import DatasetVersion, Drift, Leakage, digest
from remint.runtime import manifest, processes
from remint.stores.dvc import last_error_line, workspace_environment
from remint.stores.mlflow import ModelVersion

# A process that was stopped or killed, an MLflow that is away and a full disk say nothing of the champion: the next run judges.
FROM_OUTSIDE = (Interrupted, StepError, TrackingError, StorageError)


@dataclass(frozen=True)
class ChampionEvidence:
    """What a challenger is held against. Nothing at all: there is no champion."""

    evidence: Evidence | None = None  # on the challenger's data with its settings
    unavailable_reason: str | None = None  # why there is none
    drift: Drift | None = None  # since the champion was trained; None: it was trained on the challenger's data
    leakage: Leakage | None = None  # of today's held-out split into what the champion was trained on; None: not known
    folder: Path | None = None  # its report, with pictures


def evidence(job: Retraining, own: Evidence, version: int) -> ChampionEvidence:
    """The champion's evidence on the challenger's data and settings, or why there is none, and what drifted.

    ``own``: the challenger's evidence.

    Cached by what it depends on: the champion's weights and data, the dataset version, how each metric is measured, and the
    evaluation's code.
    Where the champion's own data cannot be had, the drift says why, and the champion is measured all the same.
    """
    try:
        holder = job.tracking.version(f"{job.pipeline}/{version}")
        if holder.key == job.model.key:
            return ChampionEvidence(own, leakage=own.report.leakage, folder=job.out("reports"))
    except FROM_OUTSIDE:
        raise
    except RemintError as error:
        return ChampionEvidence(unavailable_reason=f"champion {job.pipeline}/{version} could not be measured again: {error}")
    former, drift = None, None
    folder = _cached(job, holder, own)
    if holder.dataset != own.report.dataset and not (folder / "drift.json").exists():
        former, drift = _former(job, holder)
    try:
        if not (folder / "report.json").exists() or former is not None:
            bundle = job.tracking.fetch(holder, job.record.folder / "champion")
            _measure(job, bundle, former, folder)
            shutil.rmtree(bundle, ignore_errors=True)
        found = Evidence.load(folder)
        if (folder / "drift.json").exists():
            drift = Drift.read(folder / "drift.json")
        return ChampionEvidence(found, drift=drift, leakage=found.report.leakage, folder=folder)
    except FROM_OUTSIDE:
        raise
    except RemintError as error:
        why = f"champion {holder.ref} could not be measured again: {error}"
        if drift is None and holder.dataset != own.report.dataset:
            drift = _unknown(job, holder, f"what changed since the champion {holder.ref} was trained cannot be told: {error}")
        return ChampionEvidence(unavailable_reason=why, drift=drift)
    finally:
        if former is not None:
            shutil.rmtree(former, ignore_errors=True)


def keep(job: Retraining, found: ChampionEvidence, folder: Path) -> None:
    """Says what drifted, and keeps it with the report of the version that is judged (``folder``)."""
    if found.drift is None:
        return
    job.tell("notice", text=found.drift.summary)
    found.drift.write(folder / "drift.json")
    if found.folder is not None and (found.folder / "drift.png").exists():
        shutil.copyfile(found.folder / "drift.png", folder / "drift.png")


def _cached(job: Retraining, holder: ModelVersion, own: Evidence) -> Path:
    """The folder of the champion's evaluation. Its key names the data that it was trained on, too (TrainedModel.key)."""
    how = {name: value.fingerprint for name, value in own.report.metrics.items()}
    settings = job.settings.evaluation.model_dump(mode="json")
    step = manifest.sha256_tree(
        job.dvc.folder / f"outs/resolved/evaluate/{job.pipeline}.json", job.dvc.folder / "constraints.txt"
    )
    key: dict[str, Any] = {"key": holder.key, "dataset": own.report.dataset, "how": how, "settings": settings, "step": step}
    return job.home.path / "evaluations" / digest({**key, "former": holder.dataset})


def _former(job: Retraining, holder: ModelVersion) -> tuple[Path | None, Drift | None]:
    """The folder of the data that the champion was trained on; or why they cannot be had."""
    try:
        lock = job.tracking.attachment(holder, "dvc.lock", job.record.folder / "former")
        if manifest.sha256_file(lock) != holder.tags.dvc_lock_sha256:
            raise IntegrityError(f"the dvc.lock that {holder.ref} carries is not the one that it was registered with")
        folder = job.dvc.former(lock, f"prepare@{holder.tags.origin.name}")
        try:
            same = DatasetVersion.read(folder / "dataset.json").digest == holder.dataset
        except (OSError, ValueError):
            same = False
        if not same:
            shutil.rmtree(folder, ignore_errors=True)
            raise IntegrityError("what dvc gave back is not the dataset version that it was trained on")
    except FROM_OUTSIDE:
        raise
    except RemintError as error:
        why = f"what changed since the champion {holder.ref} was trained cannot be told, its data cannot be had: {error}"
        return None, _unknown(job, holder, why)
    return folder, None


def _unknown(job: Retraining, holder: ModelVersion, why: str) -> Drift:
    """The record where nothing can be told but the numbers of examples."""
    known = {split: count for split, count in holder.tags.origin.counts.items() if split in job.dataset.counts}
    return Drift(
        former=holder.dataset,
        present=job.dataset.digest,
        comparable=False,
        summary=why,
        before=known,
        after=job.dataset.counts,
    )


def _measure(job: Retraining, bundle: Path, former: Path | None, out: Path) -> None:
    """Runs the workspace's own evaluate step on another bundle. Complete or not there at all."""
    dataset = job.settings.dataset
    features = job.dvc.key("features", dataset, job.pipeline)
    for mended in job.dvc.whole(f"prepare@{dataset}", f"features@{features}"):
        job.tell("notice", text=mended)
    temporary = out.with_name(f".{out.name}.{job.record.id}")
    log = job.record.folder / "champion.log"
    environment = workspace_environment(job.dvc.folder, job.home)
    if former is not None:
        environment["REMINT_EVALUATE_FORMER"] = str(former)
    status = processes.run_process(
        [sys.executable, "-m", "pipelines.evaluate", job.pipeline],
        cwd=job.dvc.folder,
        env={**os.environ, **environment, "REMINT_EVALUATE_BUNDLE": str(bundle), "REMINT_EVALUATE_OUT": str(temporary)},
        log=log,
    )
    if status:
        shutil.rmtree(temporary, ignore_errors=True)
        if status < 0:
            raise StepError(f"{job.pipeline}: the champion's evaluation was killed (signal {-status}): run again")
        raise RunError(last_error_line(log))
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
