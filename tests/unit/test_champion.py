"""Champion evidence if champion and challenger have different data: unavailable data are reported, and the run does not fail.

tests/e2e/test_s3.py tests this with dvc and MLflow. Here the stores are replaced, so that one can be missing at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remint.errors import RunError, StepError, StorageError, TrackingError, VersioningError
from remint.evaluation.evidence import Evidence
from remint.promotion import champion
from remint.promotion.champion import ChampionEvidence
from remint.promotion.retraining import Retraining
from remint.records import DatasetVersion, DataSpec, Drift, EvaluationReport, Leakage, TrainedModel, canonical
from remint.runtime import manifest
from remint.runtime.home import Home
from remint.stores.dvc import Workspace
from remint.stores.mlflow import Tracking, VersionTags
from remint.stores.open import open_tracking
from tests.support import promotion_cases, registry_cases
from tests.support.promotion_cases import MODEL
from tests.support.retraining_cases import params_of, retraining, write_records

SPEC = registry_cases.SPEC
COUNTS = {"train": 70, "validation": 10, "held_out": 20}
LEAKAGE = Leakage(checked=20, exact=0, near=1, tolerance="t")


def version_of(raw: str, spec: DataSpec = SPEC) -> DatasetVersion:
    return DatasetVersion(name="d", source="s", raw_sha256=raw, spec=spec, split={}, counts=COUNTS, files={})


FORMER, TODAY = version_of("former"), version_of("today")


def report(key: str) -> Evidence:
    return Evidence(
        EvaluationReport(pipeline=MODEL, model_key=key, weights_sha256="w", dataset=TODAY.digest, metrics={}, leakage=LEAKAGE),
        {},
    )


@pytest.fixture(scope="module")
def with_champion(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Make a home, to be copied, with version 1, trained on FORMER, and the training of a challenger."""
    home = promotion_cases.make_home(empty, tmp_path_factory.mktemp("champion"), 0)
    lock = home.path / "dvc.lock"
    lock.write_text("stages: {}\n")
    for seed in (0, 1):
        registry_cases.make_bundle(home.path / f"bundles/{seed}", seed)
    tags = VersionTags(dvc_lock_sha256=manifest.sha256_file(lock), data=canonical({"name": "d", **COUNTS}))
    store = open_tracking(home)
    tagged, files = registry_cases.TAGS.updated(tags), {"dvc.lock": lock}
    version = registry_cases.register(store, home.path / "bundles/0", tags=tagged, attachments=files)
    store.set_tags(version, VersionTags(dataset=FORMER.digest))
    return home


@pytest.fixture
def job(with_champion: Home, tmp_path: Path) -> Iterator[Retraining]:
    """Open the retraining of the challenger, on TODAY."""
    home = promotion_cases.copy_home(with_champion, tmp_path / "home")
    with retraining(home, params_of(MODEL), MODEL) as job:
        write_records(job, TODAY, TrainedModel.read(home.path / "bundles/1/training.json"), report("new"))
        yield job


def champion_evidence(job: Retraining) -> ChampionEvidence:
    return champion.evidence(job, report("new"), 1)


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """Replace the measurement of the champion. List the former data of each call; write the same files as the real one."""
    calls: list[Path | None] = []

    def measure(job: Any, bundle: Path, former: Path | None, out: Path, part: Path | None) -> None:
        calls.append(former)
        report("old").save(out)
        if part is not None:
            (out / champion.PART).write_text('{"described": 15, "of": 20}')
        if former is not None:
            Drift(former=FORMER.digest, present=TODAY.digest, comparable=True, summary="measured").write(out / "drift.json")

    monkeypatch.setattr(champion, "_measure", measure)
    return calls


@pytest.fixture
def dvc_restores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[DatasetVersion], None]:
    """Return a function that makes dvc restore a given dataset version as that of the champion."""

    def restore(version: DatasetVersion) -> None:
        def fetch_output(_dvc: Workspace, _lock: Path, stage: str) -> Path:
            assert stage == "prepare@d"
            (tmp_path / "former").mkdir()
            version.write(tmp_path / "former/dataset.json")
            return tmp_path / "former"

        monkeypatch.setattr(Workspace, "fetch_output", fetch_output)

    return restore


Restore = Callable[[DatasetVersion], None]


def pull_fails(*_: object) -> Path:
    raise VersioningError("dvc pull failed: it is gone")


def test_drift_comes_with_the_evidence_and_is_measured_once(
    job: Retraining, dvc_restores: Restore, tmp_path: Path, measurements: list[Path | None]
) -> None:
    dvc_restores(FORMER)
    first = champion_evidence(job)
    assert first.evidence is not None and first.unavailable_reason is None and first.leakage == LEAKAGE
    assert first.drift is not None and first.drift.summary == "measured" and first.folder is not None
    assert champion_evidence(job).drift == first.drift
    assert measurements == [tmp_path / "former"] and not (tmp_path / "former").exists()


@pytest.mark.parametrize(
    ("owner", "name", "why"),
    [
        (Workspace, "fetch_output", "cannot be restored: dvc pull failed: it is gone"),
        (Tracking, "attachment", "it is gone"),
        (None, "", "another dataset version than it was trained on"),
    ],
)
def test_unavailable_data_are_reported_and_the_run_does_not_fail(
    job: Retraining,
    dvc_restores: Restore,
    monkeypatch: pytest.MonkeyPatch,
    owner: type | None,
    name: str,
    why: str,
    measurements: list[Path | None],
) -> None:
    with monkeypatch.context() as patch:
        if owner is None:
            dvc_restores(TODAY)
        else:
            patch.setattr(owner, name, pull_fails)
        found = champion_evidence(job)
    assert found.evidence is not None and found.unavailable_reason is None and measurements == [None]
    assert found.drift is not None and not found.drift.comparable and why in found.drift.summary
    assert found.drift.before == found.drift.after == COUNTS
    dvc_restores(FORMER)
    drift = champion_evidence(job).drift
    assert drift is not None and drift.summary == "measured", "once they are back, they are held against today's"


@pytest.mark.parametrize("place", [f"outs/resolved/evaluate/{MODEL}.json", "constraints.txt"])
def test_a_changed_evaluation_measures_the_champion_again(
    job: Retraining, dvc_restores: Restore, measurements: list[Path | None], place: str
) -> None:
    dvc_restores(FORMER)
    champion_evidence(job)
    (job.dvc.folder / place).parent.mkdir(parents=True, exist_ok=True)
    (job.dvc.folder / place).write_text("changed\n")
    champion_evidence(job)
    champion_evidence(job)
    assert len(measurements) == 2


def test_a_dvc_lock_that_was_changed_is_not_trusted(
    job: Retraining, dvc_restores: Restore, measurements: list[Path | None]
) -> None:
    dvc_restores(FORMER)
    (kept,) = (job.home.path / "mlflow/artifacts").rglob("dvc.lock")
    kept.write_text("stages: {prepare@d: {}}\n")
    found = champion_evidence(job)
    assert found.drift is not None and "differs from the registered one" in found.drift.summary


def test_an_unmeasurable_champion_gives_the_reason_for_evidence_and_for_drift(
    job: Retraining, dvc_restores: Restore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RunError("the model was trained on images of another schema")

    monkeypatch.setattr(champion, "_measure", fails)
    dvc_restores(FORMER)
    found = champion_evidence(job)
    assert found.evidence is None and "another schema" in str(found.unavailable_reason)
    assert found.drift is not None and "another schema" in found.drift.summary


def test_a_champion_that_cannot_describe_the_data_of_today_has_an_obstacle_and_no_fault(
    job: Retraining, dvc_restores: Restore, measurements: list[Path | None]
) -> None:
    dvc_restores(FORMER)
    larger = version_of("today", SPEC.model_copy(update={"levels": 9}))
    larger.write(job.out("prepared", job.settings.dataset) / "dataset.json")
    found = champion_evidence(job)
    assert found.evidence is None and found.unavailable_reason is None and not measurements
    assert "cannot take today's data: it draws images of shape (1, 4, 4) with 5 levels" in str(found.obstacle)


def test_both_sides_are_measured_on_the_part_that_the_champion_can_describe(
    job: Retraining, dvc_restores: Restore, measurements: list[Path | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    dvc_restores(FORMER)
    monkeypatch.setattr(champion, "_fits", lambda *_: (False, ""))
    for _ in range(2):
        found = champion_evidence(job)
        assert found.part is not None and found.part.text() == "15 of 20 held-out examples"
        assert found.evidence is not None and found.part.challenger.report == found.evidence.report
    assert len(measurements) == 2, "each side once"


@pytest.mark.parametrize("asked", ["version", "fetch", "attachment"])
@pytest.mark.parametrize("error", [TrackingError("MLflow could not fetch p/1: away"), StorageError("no room to fetch p/1")])
def test_an_unreachable_or_full_store_ends_the_run_without_blaming_the_champion(
    job: Retraining,
    dvc_restores: Restore,
    measurements: list[Path | None],
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    error: Exception,
) -> None:
    """If it were reported as a champion that is not comparable, the challenger would be refused permanently."""

    def away(*_: object) -> Path:
        raise error

    dvc_restores(FORMER)
    monkeypatch.setattr(Tracking, asked, away)
    with pytest.raises(type(error)):
        champion_evidence(job)
    assert not measurements


def test_equal_data_have_no_drift_and_nothing_is_fetched(
    job: Retraining, monkeypatch: pytest.MonkeyPatch, measurements: list[Path | None]
) -> None:
    monkeypatch.setattr(Workspace, "fetch_output", pull_fails)
    monkeypatch.setattr(Tracking, "attachment", pull_fails)
    job.tracking.set_tags(job.tracking.version(f"{MODEL}/1"), VersionTags(dataset=TODAY.digest))
    found = champion_evidence(job)
    assert found.drift is None and found.evidence is not None and measurements == [None]
    assert found.leakage == LEAKAGE


def test_a_killed_measurement_ends_the_run_without_blaming_the_champion(
    job: Retraining, dvc_restores: Restore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process is killed. If it failed without a signal, the champion would count as not comparable."""
    dvc_restores(FORMER)
    (job.dvc.folder / "pipelines").mkdir()
    (job.dvc.folder / "dvc.yaml").write_text("stages: {features: {foreach: '${pipelines}'}}\n")
    monkeypatch.setattr(Workspace, "repair_outputs", lambda *_: [])
    monkeypatch.setattr("remint.promotion.champion.workspace_environment", lambda folder, _home: {"PYTHONPATH": str(folder)})
    program = job.dvc.folder / "pipelines/evaluate.py"
    program.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(StepError, match=rf"^{MODEL}: the champion's evaluation was killed \(signal 9\): run again$"):
        champion_evidence(job)
    program.write_text("raise SystemExit('no memory for it')\n")
    shutil.rmtree(tmp_path / "former", ignore_errors=True)
    assert champion_evidence(job).unavailable_reason == f"champion {MODEL}/1 could not be measured again: no memory for it"
