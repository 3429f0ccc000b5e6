"""The champion where its own data are others than the challenger's: what cannot be had is said, and nothing fails.

The whole way, with dvc and MLflow, is in tests/e2e/test_s3.py; here the stores are replaced, to take one away at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remint.errors import RunError, StepError, StorageError, TrackingError, VersioningError
from remint.promotion import champion
from remint.records import DatasetVersion, DataSpec, Drift, EvaluationReport, Evidence, Leakage, ModelVersion, canonical
from remint.runtime import manifest
from remint.settings.judging import EvaluationSettings

SPEC = DataSpec(shape=(1, 2, 2), levels=2)
COUNTS = {"train": 70, "validation": 10, "held_out": 20}
LEAKAGE = Leakage(checked=20, exact=0, near=1, tolerance="t")


def version_of(raw: str) -> DatasetVersion:
    return DatasetVersion(name="d", source="s", raw_sha256=raw, spec=SPEC, split={}, counts=COUNTS, files={})


FORMER, TODAY = version_of("former"), version_of("today")


def report(key: str) -> Evidence:
    return Evidence(
        EvaluationReport(pipeline="p", model_key=key, weights_sha256="w", dataset=TODAY.digest, metrics={}, leakage=LEAKAGE),
        {},
    )


class Job:
    """As much of flows.job.Retraining as the champion's evaluation asks for."""

    def __init__(self, folder: Path, attachment: Callable[..., Path], former: Callable[..., Path]) -> None:
        lock = folder / "dvc.lock"
        lock.write_text("stages: {}\n")
        tags = {
            "dvc_lock_sha256": manifest.sha256_file(lock),
            "data": canonical({"name": "d", **COUNTS}),
        }
        self.holder = ModelVersion(
            name="p",
            version=1,
            key="old",
            run_id="r",
            weights_sha256="w",
            dataset=FORMER.digest,
            commit="c",
            dirty=False,
            created="",
            tags=tags,
        )
        self.pipeline, self.home = "p", SimpleNamespace(path=folder / "home")
        self.record = SimpleNamespace(folder=folder / "job", id="j")
        self.settings = SimpleNamespace(evaluation=EvaluationSettings())
        self.dataset, self.evidence, self.model = TODAY, report("new"), SimpleNamespace(key="new")
        self.tracking = SimpleNamespace(
            version=lambda ref: self.holder, fetch=lambda holder, to: to, attachment=lambda *_: attachment(lock)
        )
        self.dvc = SimpleNamespace(former=lambda lock, stage: former(stage))

    def out(self, kind: str) -> Path:
        return self.record.folder / kind


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """What the champion was measured with, each time; the measurement writes what the real one does."""
    calls: list[Path | None] = []

    def measure(job: Any, bundle: Path, former: Path | None, out: Path) -> None:
        calls.append(former)
        report("old").save(out)
        if former is not None:
            Drift(former=FORMER.digest, present=TODAY.digest, comparable=True, summary="measured").write(out / "drift.json")

    monkeypatch.setattr(champion, "_measure", measure)
    return calls


def given_back(folder: Path, version: DatasetVersion) -> Callable[..., Path]:
    def former(stage: str) -> Path:
        assert stage == "prepare@d"
        (folder / "former").mkdir()
        version.write(folder / "former/dataset.json")
        return folder / "former"

    return former


def lost(*_: object) -> Path:
    raise VersioningError("dvc pull failed: it is gone")


def test_drift_comes_with_the_evidence_and_is_measured_once(tmp_path: Path, measured: list[Path | None]) -> None:
    job: Any = Job(tmp_path, lambda lock: lock, given_back(tmp_path, FORMER))
    first = champion.evidence(job, 1)
    assert first.evidence is not None and first.unavailable_reason is None and first.leakage == LEAKAGE
    assert first.drift is not None and first.drift.summary == "measured" and first.folder is not None
    assert champion.evidence(job, 1).drift == first.drift
    assert measured == [tmp_path / "former"] and not (tmp_path / "former").exists()


@pytest.mark.parametrize(
    ("attachment", "wrong", "why"),
    [
        (lambda lock: lock, None, "cannot be had: dvc pull failed: it is gone"),
        (lost, None, "it is gone"),
        (lambda lock: lock, TODAY, "not the dataset version that it was trained on"),
    ],
)
def test_data_that_cannot_be_had_are_no_failure(
    attachment: Any, wrong: DatasetVersion | None, why: str, tmp_path: Path, measured: list[Path | None]
) -> None:
    job: Any = Job(tmp_path, attachment, given_back(tmp_path, wrong) if wrong else lost)
    found = champion.evidence(job, 1)
    assert found.evidence is not None and found.unavailable_reason is None and measured == [None]
    assert found.drift is not None and not found.drift.comparable and why in found.drift.summary
    assert found.drift.before == found.drift.after == COUNTS
    job.dvc.former = lambda lock, stage: given_back(tmp_path, FORMER)(stage)
    job.tracking.attachment = lambda *_: tmp_path / "dvc.lock"
    assert champion.evidence(job, 1).drift.summary == "measured", "once they are back, they are held against today's"


def test_a_changed_lock_is_not_believed(tmp_path: Path, measured: list[Path | None]) -> None:
    def changed(lock: Path) -> Path:
        lock.write_text("stages: {prepare@d: {}}\n")
        return lock

    job: Any = Job(tmp_path, changed, given_back(tmp_path, FORMER))
    found = champion.evidence(job, 1)
    assert found.drift is not None and "not the one that it was registered with" in found.drift.summary


def test_a_champion_that_cannot_be_measured_says_why_on_both_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RunError("the model was trained on images of another schema")

    monkeypatch.setattr(champion, "_measure", fails)
    job: Any = Job(tmp_path, lambda lock: lock, given_back(tmp_path, FORMER))
    found = champion.evidence(job, 1)
    assert found.evidence is None and "another schema" in str(found.unavailable_reason)
    assert found.drift is not None and "another schema" in found.drift.summary


@pytest.mark.parametrize("asked", ["version", "fetch", "attachment"])
@pytest.mark.parametrize("error", [TrackingError("MLflow could not fetch p/1: away"), StorageError("no room to fetch p/1")])
def test_a_store_that_is_away_or_full_ends_the_run_and_says_nothing_of_the_champion(
    tmp_path: Path, measured: list[Path | None], asked: str, error: Exception
) -> None:
    """Told as a champion that cannot be compared, it would have the challenger refused for good."""

    def away(*_: object) -> Path:
        raise error

    job: Any = Job(tmp_path, lambda lock: lock, given_back(tmp_path, FORMER))
    vars(job.tracking)[asked] = away
    with pytest.raises(type(error)):
        champion.evidence(job, 1)
    assert not measured


def test_the_same_data_give_no_drift_and_nothing_is_fetched(tmp_path: Path, measured: list[Path | None]) -> None:
    job: Any = Job(tmp_path, lost, lost)
    job.holder = job.holder.model_copy(update={"dataset": TODAY.digest})
    found = champion.evidence(job, 1)
    assert found.drift is None and found.evidence is not None and measured == [None]
    assert found.leakage == LEAKAGE


def test_a_measurement_that_is_killed_ends_the_run_and_says_nothing_of_the_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process, killed; where it fails by itself the champion is the one that cannot be compared."""
    job: Any = Job(tmp_path, lambda lock: lock, given_back(tmp_path, FORMER))
    job.dvc.folder, job.dvc.whole = tmp_path / "checkout", lambda *_: []
    job.settings.dataset = "d"
    job.record.folder.mkdir()
    (tmp_path / "checkout/pipelines").mkdir(parents=True)
    monkeypatch.setattr("remint.promotion.champion.workspace_environment", lambda folder, _home: {"PYTHONPATH": str(folder)})
    program = tmp_path / "checkout/pipelines/evaluate.py"
    program.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    with pytest.raises(StepError, match=r"^p: the champion's evaluation was killed \(signal 9\): run again$"):
        champion.evidence(job, 1)
    program.write_text("raise SystemExit('no memory for it')\n")
    shutil.rmtree(tmp_path / "former", ignore_errors=True)
    assert champion.evidence(job, 1).unavailable_reason == "champion p/1 could not be measured again: no memory for it"
