"""Evaluation of the champion on the challenger's data and settings, and the drift since the champion was trained."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remint.errors import IntegrityError, Interrupted, RemintError, RunError, StepError, StorageError, TrackingError
from remint.evaluation.evidence import PART, Evidence
from remint.promotion.comparable import Part
from remint.promotion.retraining import Retraining
from remint.records import DatasetVersion, Drift, Leakage, TrainedModel, digest
from remint.runtime import manifest, processes
from remint.stores.dvc import last_error_line, workspace_environment
from remint.stores.mlflow import ModelVersion

# A stopped or killed process, MLflow out of reach or a full disk is no fault of the champion: the run fails, the next one judges.
OUTSIDE_ERRORS = (Interrupted, StepError, TrackingError, StorageError)


@dataclass(frozen=True)
class ChampionEvidence:
    """Evidence of the champion that a challenger is compared with. All fields None: there is no champion.

    A champion of another schema is compared on the examples that it can describe (evaluation/translation.py).
    """

    evidence: Evidence | None = None  # on the challenger's data with its settings
    unavailable_reason: str | None = None  # why the champion has no evidence
    drift: Drift | None = None  # since the champion was trained; None: it was trained on the challenger's data
    leakage: Leakage | None = None  # of today's held-out split into the champion's training split; None: not known
    folder: Path | None = None  # the champion's report, with pictures
    obstacle: str | None = None  # why the champion, of another schema, can describe no example; None: it can
    part: Part | None = None  # the examples that it can describe; None: all


def evidence(job: Retraining, own: Evidence, version: int) -> ChampionEvidence:
    """Return the champion's evidence on the challenger's data and settings, or the reason why there is none, and the drift.

    ``own``: the challenger's evidence. ``version``: number of the champion.

    The cache key holds the champion's weights and data, the dataset version, the way each metric is measured, and the
    evaluation's code. If the champion's own data is missing, the drift gives the reason; the champion is still
    measured.
    """
    try:
        champion = job.tracking.version(f"{job.pipeline}/{version}")
        if champion.key == job.model.key:
            return ChampionEvidence(own, leakage=own.report.leakage, folder=job.out("reports"))
    except OUTSIDE_ERRORS:
        raise
    except RemintError as error:
        return ChampionEvidence(unavailable_reason=f"champion {job.pipeline}/{version} could not be measured again: {error}")
    return _on_todays_data(job, champion, {name: value.fingerprint for name, value in own.report.metrics.items()})


def monitored(job: Retraining, champion: ModelVersion) -> ChampionEvidence:
    """Return the champion's evidence on today's data, where no challenger was trained, and the drift."""
    return _on_todays_data(job, champion, dict.fromkeys(job.settings.metrics()), challenged=False)


def _on_todays_data(
    job: Retraining, champion: ModelVersion, how: Mapping[str, Any], *, challenged: bool = True
) -> ChampionEvidence:
    """Measure the champion, and the drift since it was trained. ``how``: the way each metric is measured.

    ``challenged``: whether the job has a challenger, to be measured on the same part of the examples.
    """
    former, drift = None, None
    folder = _cached(job, champion, how)
    if champion.dataset != job.dataset.digest and not (folder / "drift.json").exists():
        former, drift = _training_data(job, champion)
    try:
        if not (folder / "report.json").exists() or former is not None:
            bundle = job.tracking.fetch(champion, job.record.folder / "champion")
            fits, obstacle = _fits(job, bundle)
            if obstacle:
                why = f"drift since champion {champion.ref} was trained was not measured: {obstacle}"
                drift = _unknown_drift(job, champion, why) if former is not None else drift
                return ChampionEvidence(obstacle=f"champion {champion.ref} cannot take today's data: {obstacle}", drift=drift)
            _measure(job, bundle, former, folder, None if fits else bundle)
            shutil.rmtree(bundle, ignore_errors=True)
        found = Evidence.load(folder)
        if (folder / "drift.json").exists():
            drift = Drift.read(folder / "drift.json")
        part = _part(job, folder) if challenged and (folder / PART).exists() else None
        return ChampionEvidence(found, drift=drift, leakage=found.report.leakage, folder=folder, part=part)
    except OUTSIDE_ERRORS:
        raise
    except RemintError as error:
        why = f"champion {champion.ref} could not be measured again: {error}"
        if drift is None and champion.dataset != job.dataset.digest:
            drift = _unknown_drift(job, champion, f"drift since champion {champion.ref} was trained is not known: {error}")
        return ChampionEvidence(unavailable_reason=why, drift=drift)
    finally:
        if former is not None:
            shutil.rmtree(former, ignore_errors=True)


def save_drift(job: Retraining, found: ChampionEvidence, folder: Path) -> None:
    """Report the drift, and write it to the report of the version that is judged (``folder``)."""
    if found.drift is None:
        return
    job.tell("notice", text=found.drift.summary)
    found.drift.write(folder / "drift.json")
    if found.folder is not None and (found.folder / "drift.png").exists():
        shutil.copyfile(found.folder / "drift.png", folder / "drift.png")


def _cached(job: Retraining, champion: ModelVersion, how: Mapping[str, Any]) -> Path:
    """Cache folder of the champion's evaluation. Its name also depends on the champion's training data (TrainedModel.key)."""
    settings = job.settings.evaluation.model_dump(mode="json")
    step = manifest.sha256_tree(
        job.dvc.folder / f"outs/resolved/evaluate/{job.pipeline}.json", job.dvc.folder / "constraints.txt"
    )
    key: dict[str, Any] = {"key": champion.key, "dataset": job.dataset.digest, "how": how, "settings": settings, "step": step}
    return job.home.path / "evaluations" / digest({**key, "former": champion.dataset})


def _fits(job: Retraining, bundle: Path) -> tuple[bool, str]:
    """Return whether the champion can describe all of today's examples, and why it can describe none ("": it can some)."""
    trained, spec = TrainedModel.read(bundle / "training.json"), job.dataset.spec
    conditional = bool(trained.recipe["model"].get("conditional"))
    if trained.spec.fits(spec, conditional=conditional):
        return True, ""
    from remint.evaluation import translation  # it imports torch

    return False, translation.obstacle(trained.spec, spec, conditional=conditional)


def _part(job: Retraining, champion: Path) -> Part:
    """Return the challenger's evidence on the examples that the champion can describe. ``champion``: the champion's report."""
    folder = champion.with_name(digest({"part_of": champion.name, "key": job.model.key}))
    if not (folder / "report.json").exists():
        _measure(job, job.out("trained"), None, folder, champion)
    return Part(Evidence.load(folder), **json.loads((folder / PART).read_text()))


def _training_data(job: Retraining, champion: ModelVersion) -> tuple[Path | None, Drift | None]:
    """Return the folder of the champion's own data; if it cannot be restored, a Drift with the reason."""
    try:
        lock = job.tracking.attachment(champion, "dvc.lock", job.record.folder / "former")
        if manifest.sha256_file(lock) != champion.tags.dvc_lock_sha256:
            raise IntegrityError(f"the dvc.lock of {champion.ref} in MLflow differs from the registered one")
        folder = job.dvc.fetch_output(lock, f"prepare@{champion.tags.origin.name}")
        try:
            same = DatasetVersion.read(folder / "dataset.json").digest == champion.dataset
        except (OSError, ValueError):
            same = False
        if not same:
            shutil.rmtree(folder, ignore_errors=True)
            raise IntegrityError("dvc restored another dataset version than it was trained on")
    except OUTSIDE_ERRORS:
        raise
    except RemintError as error:
        why = f"drift since champion {champion.ref} was trained is not known, because its data cannot be restored: {error}"
        return None, _unknown_drift(job, champion, why)
    return folder, None


def _unknown_drift(job: Retraining, champion: ModelVersion, why: str) -> Drift:
    """A drift record that holds only the numbers of examples and the reason."""
    known = {split: count for split, count in champion.tags.origin.counts.items() if split in job.dataset.counts}
    return Drift(
        former=champion.dataset,
        present=job.dataset.digest,
        comparable=False,
        summary=why,
        before=known,
        after=job.dataset.counts,
    )


def _measure(job: Retraining, bundle: Path, former: Path | None, out: Path, part: Path | None) -> None:
    """Run the workspace's evaluate step on ``bundle``. Afterwards ``out`` is complete, or does not exist.

    ``part``: folder of the training.json of a model; only the examples that it can describe are used.
    """
    dataset = job.settings.dataset
    features = job.dvc.key("features", dataset, job.pipeline)
    for mended in job.dvc.repair_outputs(f"prepare@{dataset}", f"features@{features}"):
        job.tell("notice", text=mended)
    temporary = out.with_name(f".{out.name}.{job.record.id}")
    log = job.record.folder / "champion.log"
    environment = workspace_environment(job.dvc.folder, job.home)
    if former is not None:
        environment["REMINT_EVALUATE_FORMER"] = str(former)
    if part is not None:
        environment["REMINT_EVALUATE_PART"] = str(part)
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
