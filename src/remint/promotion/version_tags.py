"""Tags and files of a version that a rebuild needs."""

from __future__ import annotations

import platform
from pathlib import Path

from remint.promotion.retraining import Retraining
from remint.promotion.tolerance import tolerances
from remint.records import EvaluationReport, canonical, digest
from remint.runtime import manifest, packages
from remint.settings.recipe import without_seed
from remint.stores import git, uncommitted
from remint.stores.mlflow import CALIBRATION, DataOrigin, VersionTags
from remint.stores.open import open_spreads


def tags(job: Retraining, report: EvaluationReport) -> VersionTags:
    """Return the tags that a rebuild of the version needs (the recipe and fingerprint are in training.json)."""
    constraints = job.dvc.folder / "constraints.txt"
    spread = open_spreads(job.home).newest(job.pipeline)
    return VersionTags(
        data=canonical(DataOrigin.of(job.dataset).block()),
        metrics=canonical({name: value.to_json() for name, value in report.metrics.items()}),
        commit=job.commit.sha,
        dirty=str(job.commit.dirty).lower(),
        changed="\n".join(job.commit.changed)[:4000],
        overrides=canonical(job.overrides),
        reason=job.reason,
        dvc_lock_sha256=manifest.sha256_file(job.dvc.lock()),
        params_sha256=manifest.sha256_file(job.dvc.folder / "params.yaml"),
        repository=git.origin(job.home.repository),
        python=platform.python_version(),
        packages_sha256=manifest.sha256_file(constraints),
        not_installed=" ".join(name for name, _ in packages.pins(constraints) if packages.installed(name) == packages.NONE),
        report_sha256=report.digest,
        tolerance=canonical(tolerances(report.metrics, spread, digest(without_seed(job.settings.recipe.resolved())))),
        flow_run=job.record.facts["flow_run"],
        calibration=manifest.sha256_file(job.out("calibration") / manifest.NAME) if job.calibrates else None,
    )


def files(job: Retraining) -> dict[str, Path]:
    """Return the files that are kept with a version, by name."""
    kept = {
        "report": job.out("reports"),
        "dvc.lock": job.dvc.lock(),
        "params.yaml": job.dvc.folder / "params.yaml",
    }
    if job.calibrates:
        kept[CALIBRATION] = job.out("calibration")
    if job.commit.dirty:
        bundle = job.record.folder / "uncommitted.bundle"
        kept["uncommitted.bundle"] = uncommitted.bundle(job.home.repository, job.commit, bundle)
    return kept
