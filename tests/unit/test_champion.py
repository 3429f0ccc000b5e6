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
from tests.support.retraining_cases import lay, params_of, retraining

SPEC = DataSpec(shape=(1, 2, 2), levels=2)
COUNTS = {"train": 70, "validation": 10, "held_out": 20}
LEAKAGE = Leakage(checked=20, exact=0, near=1, tolerance="t")


def version_of(raw: str) -> DatasetVersion:
    return DatasetVersion(name="d", source="s", raw_sha256=raw, spec=SPEC, split={}, counts=COUNTS, files={})


FORMER, TODAY = version_of("former"), version_of("today")


def report(key: str) -> Evidence:
    return Evidence(
        EvaluationReport(pipeline=MODEL, model_key=key, weights_sha256="w", dataset=TODAY.digest, metrics={}, leakage=LEAKAGE),
        {},
    )


@pytest.fixture(scope="module")
def with_champion(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Make a home, to be copied, with version 1, trained on FORMER, and the training of a challenger."""
    home = promotion_cases.filled(empty, tmp_path_factory.mktemp("champion"), 0)
    lock = home.path / "dvc.lock"
    lock.write_text("stages: {}\n")
    for seed in (0, 1):
        registry_cases.make(home.path / f"bundles/{seed}", seed)
    tags = VersionTags(dvc_lock_sha256=manifest.sha256_file(lock), data=canonical({"name": "d", **COUNTS}))
    store = open_tracking(home)
    tagged, files = registry_cases.TAGS.updated(tags), {"dvc.lock": lock}
    version = registry_cases.register(store, home.path / "bundles/0", tags=tagged, attachments=files)
    store.set_tags(version, VersionTags(dataset=FORMER.digest))
    return home


@pytest.fixture
def job(with_champion: Home, tmp_path: Path) -> Iterator[Retraining]:
    """Open the retraining of the challenger, on TODAY."""
    home = promotion_cases.copied(with_champion, tmp_path / "home")
    with retraining(home, params_of(MODEL), MODEL) as job:
        lay(job, TODAY, TrainedModel.read(home.path / "bundles/1/training.json"), report("new"))
        yield job


def judged_by(job: Retraining) -> ChampionEvidence:
    return champion.evidence(job, report("new"), 1)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """Replace the measurement of the champion. List the former data of each call; write the same files as the real one."""
    calls: list[Path | None] = []

    def measure(job: Any, bundle: Path, former: Path | None, out: Path) -> None:
        calls.append(former)
        report("old").save(out)
        if former is not None:
            Drift(former=FORMER.digest, present=TODAY.digest, comparable=True, summary="measured").write(out / "drift.json")

    monkeypatch.setattr(champion, "_measure", measure)
    return calls


@pytest.fixture
def given_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[DatasetVersion], None]:
    """Return a function that makes dvc restore a given dataset version as that of the champion."""

    def give(version: DatasetVersion) -> None:
        def former(_dvc: Workspace, _lock: Path, stage: str) -> Path:
            assert stage == "prepare@d"
            (tmp_path / "former").mkdir()
            version.write(tmp_path / "former/dataset.json")
            return tmp_path / "former"

        monkeypatch.setattr(Workspace, "former", former)

    return give


Give = Callable[[DatasetVersion], None]


def lost(*_: object) -> Path:
    raise VersioningError("dvc pull failed: it is gone")


def test_drift_comes_with_the_evidence_and_is_measured_once(
    job: Retraining, given_back: Give, tmp_path: Path, measured: list[Path | None]
) -> None:
    given_back(FORMER)
    first = judged_by(job)
    assert first.evidence is not None and first.unavailable_reason is None and first.leakage == LEAKAGE
    assert first.drift is not None and first.drift.summary == "measured" and first.folder is not None
    assert judged_by(job).drift == first.drift
    assert measured == [tmp_path / "former"] and not (tmp_path / "former").exists()


@pytest.mark.parametrize(
    ("owner", "name", "why"),
    [
        (Workspace, "former", "cannot be restored: dvc pull failed: it is gone"),
        (Tracking, "attachment", "it is gone"),
        (None, "", "another dataset version than the one that it was trained on"),
    ],
)
def test_unavailable_data_are_reported_and_the_run_does_not_fail(
    job: Retraining,
    given_back: Give,
    monkeypatch: pytest.MonkeyPatch,
    owner: type | None,
    name: str,
    why: str,
    measured: list[Path | None],
) -> None:
    with monkeypatch.context() as patch:
        if owner is None:
            given_back(TODAY)
        else:
            patch.setattr(owner, name, lost)
        found = judged_by(job)
    assert found.evidence is not None and found.unavailable_reason is None and measured == [None]
    assert found.drift is not None and not found.drift.comparable and why in found.drift.summary
    assert found.drift.before == found.drift.after == COUNTS
    given_back(FORMER)
    drift = judged_by(job).drift
    assert drift is not None and drift.summary == "measured", "once they are back, they are held against today's"


@pytest.mark.parametrize("place", [f"outs/resolved/evaluate/{MODEL}.json", "constraints.txt"])
def test_a_changed_evaluation_measures_the_champion_again(
    job: Retraining, given_back: Give, measured: list[Path | None], place: str
) -> None:
    given_back(FORMER)
    judged_by(job)
    (job.dvc.folder / place).parent.mkdir(parents=True, exist_ok=True)
    (job.dvc.folder / place).write_text("changed\n")
    judged_by(job)
    judged_by(job)
    assert len(measured) == 2


def test_a_dvc_lock_that_was_changed_is_not_trusted(job: Retraining, given_back: Give, measured: list[Path | None]) -> None:
    given_back(FORMER)
    (kept,) = (job.home.path / "mlflow/artifacts").rglob("dvc.lock")
    kept.write_text("stages: {prepare@d: {}}\n")
    found = judged_by(job)
    assert found.drift is not None and "not the one that it was registered with" in found.drift.summary


def test_an_unmeasurable_champion_gives_the_reason_for_evidence_and_for_drift(
    job: Retraining, given_back: Give, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RunError("the model was trained on images of another schema")

    monkeypatch.setattr(champion, "_measure", fails)
    given_back(FORMER)
    found = judged_by(job)
    assert found.evidence is None and "another schema" in str(found.unavailable_reason)
    assert found.drift is not None and "another schema" in found.drift.summary


@pytest.mark.parametrize("asked", ["version", "fetch", "attachment"])
@pytest.mark.parametrize("error", [TrackingError("MLflow could not fetch p/1: away"), StorageError("no room to fetch p/1")])
def test_an_unreachable_or_full_store_ends_the_run_without_blaming_the_champion(
    job: Retraining,
    given_back: Give,
    measured: list[Path | None],
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    error: Exception,
) -> None:
    """If it were reported as a champion that is not comparable, the challenger would be refused permanently."""

    def away(*_: object) -> Path:
        raise error

    given_back(FORMER)
    monkeypatch.setattr(Tracking, asked, away)
    with pytest.raises(type(error)):
        judged_by(job)
    assert not measured


def test_equal_data_have_no_drift_and_nothing_is_fetched(
    job: Retraining, monkeypatch: pytest.MonkeyPatch, measured: list[Path | None]
) -> None:
    monkeypatch.setattr(Workspace, "former", lost)
    monkeypatch.setattr(Tracking, "attachment", lost)
    job.tracking.set_tags(job.tracking.version(f"{MODEL}/1"), VersionTags(dataset=TODAY.digest))
    found = judged_by(job)
    assert found.drift is None and found.evidence is not None and measured == [None]
    assert found.leakage == LEAKAGE


def test_a_killed_measurement_ends_the_run_without_blaming_the_champion(
    job: Retraining, given_back: Give, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process is killed. If it failed without a signal, the champion would count as not comparable."""
    given_back(FORMER)
    (job.dvc.folder / "pipelines").mkdir()
    (job.dvc.folder / "dvc.yaml").write_text("stages: {features: {foreach: '${pipelines}'}}\n")
    monkeypatch.setattr(Workspace, "whole", lambda *_: [])
    monkeypatch.setattr("remint.promotion.champion.workspace_environment", lambda folder, _home: {"PYTHONPATH": str(folder)})
    program = job.dvc.folder / "pipelines/evaluate.py"
    program.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(StepError, match=rf"^{MODEL}: the champion's evaluation was killed \(signal 9\): run again$"):
        judged_by(job)
    program.write_text("raise SystemExit('no memory for it')\n")
    shutil.rmtree(tmp_path / "former", ignore_errors=True)
    assert judged_by(job).unavailable_reason == f"champion {MODEL}/1 could not be measured again: no memory for it"
