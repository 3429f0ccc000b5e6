"""Alarm for drift: its level, one open alarm at a time, the cooldown, and the verdict that closes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from remint.errors import LedgerError, TrackingError
from remint.evaluation import alarm
from remint.evaluation.evidence import Evidence
from remint.maintenance.audit import ledger as audit
from remint.promotion import champion, monitoring
from remint.promotion.champion import ChampionEvidence
from remint.promotion.console import Registry
from remint.promotion.monitoring import Reign
from remint.promotion.retraining import Retraining
from remint.records import DatasetVersion, Drift, EvaluationReport, MetricValue, TrainedModel
from remint.runtime.home import Home
from remint.stores.ledger import drift_checks
from remint.stores.ledger.chain import Action
from remint.stores.mlflow import Tracking, VersionTags
from remint.stores.open import open_drift_checks, open_ledger, open_tracking
from tests.support import promotion_cases, registry_cases
from tests.support.promotion_cases import MODEL, append_row
from tests.support.retraining_cases import params_of, retraining, write_records

SMALL = 1e-9  # below the level of any check
NLL = MetricValue(name="nll", value=2.0, low=1.9, high=2.1, n=20, seed=0, fingerprint={})
Day = Callable[..., monitoring.Monitoring]


def version_of(raw: str) -> DatasetVersion:
    counts = {"train": 70, "validation": 10, "held_out": 20}
    return DatasetVersion(name="d", source="s", raw_sha256=raw, spec=registry_cases.SPEC, split={}, counts=counts, files={})


def evidence(dataset: str) -> Evidence:
    report = EvaluationReport(pipeline=MODEL, model_key="k", weights_sha256="w", dataset=dataset, metrics={"nll": NLL})
    return Evidence(report, {})


@pytest.fixture(scope="module")
def with_champion(empty: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Make a home, to be copied, whose version 1 is champion."""
    home = promotion_cases.make_home(empty, tmp_path_factory.mktemp("champion"), 2)
    append_row(home, "promoted", 1)
    return home


@pytest.fixture
def job(with_champion: Home, tmp_path: Path) -> Iterator[Retraining]:
    home = promotion_cases.copy_home(with_champion, tmp_path / "home")
    params = params_of(MODEL, triggers={"drift": {"every": "1d", "cooldown": "3d"}})
    with retraining(home, params, MODEL) as job:
        trained = next(home.path.rglob("training.json"))
        write_records(job, version_of("first"), TrainedModel.read(trained), evidence("d"))
        yield job


@pytest.fixture
def day(job: Retraining, monkeypatch: pytest.MonkeyPatch) -> Day:
    """Return a function that checks the data of one day. ``p``: the smallest p-value of its drift."""

    def check(number: float, p: float | None, **more: Any) -> monitoring.Monitoring:
        today = version_of(f"day {number}")
        today.write(job.out("prepared", job.settings.dataset) / "dataset.json")
        drift = Drift(former="f", present=today.digest, comparable=True, summary="s", added=5, p=p).model_copy(update=more)
        monkeypatch.setattr(champion, "monitored", lambda *_: ChampionEvidence(evidence(today.digest), drift=drift))
        at = datetime(2026, 12, 1, tzinfo=UTC) + timedelta(days=number)
        monkeypatch.setattr(monitoring, "now", at.isoformat)
        monkeypatch.setattr(monitoring, "datetime", type("Clock", (datetime,), {"now": staticmethod(lambda _: at)}))
        reign = monitoring.reign(job.home, MODEL)
        assert reign is not None
        return monitoring.known(job, reign) or monitoring.check(job, reign)

    return check


def test_levels_of_all_checks_are_the_rate_together() -> None:
    assert sum(alarm.level(k) for k in range(1, 3651)) < alarm.RATE
    drift = Drift(former="f", present="p", comparable=True, summary="")
    assert not alarm.rises(drift, 1), "nothing was tested"
    for number in (1, 365):
        level = alarm.level(number)
        assert alarm.rises(drift.model_copy(update={"p": level}), number)
        assert not alarm.rises(drift.model_copy(update={"p": level * 1.001}), number)


def test_each_check_with_new_examples_counts_and_no_other(job: Retraining, day: Day) -> None:
    first = day(1, 0.5)
    assert first.state == "no_drift" and first.check is not None
    assert (first.check.number, first.check.level, first.check.metrics) == (1, alarm.level(1), {"nll": NLL})
    assert day(1, SMALL).state == "no_new_data", "the same data again cost nothing"
    assert day(2, None, added=0).state == "no_new_data"
    other = day(3, None, comparable=False, summary="another schema")
    assert other.state == "not_comparable" and "another schema" in other.text and len(other.text.splitlines()) == 1
    assert day(4, 0.5).check is not None
    assert [check.number for check in open_drift_checks(job.home).of(MODEL)] == [1, 2]
    append_row(job.home, "promoted", 2)
    later = day(5, 0.5)
    assert later.check is not None and later.check.number == 1, "another champion has a life of its own"


def test_one_alarm_is_open_at_a_time_and_a_verdict_closes_it(job: Retraining, day: Day) -> None:
    rising = day(1, SMALL)
    assert rising.state == "drifted" and rising.check is not None and rising.check.alarm
    assert day(2, SMALL).state == "still_drifted"
    append_row(job.home, "awaiting_approval", 2)
    assert day(3, SMALL).state == "still_drifted", "a person has not decided yet"
    append_row(job.home, "kept", 2)
    assert monitoring.open_alarm(job.home, MODEL) is None
    rows = open_ledger(job.home).rows(MODEL)
    assert monitoring.story(rising.check, rows).startswith(f"drift since 2026-12-02, closed: {MODEL}/2 was kept on")
    assert day(3.9, SMALL).state == "cooldown"
    assert day(4, SMALL).state == "drifted", "three days after the first"
    alarms = [check.alarm for check in open_drift_checks(job.home).of(MODEL)]
    assert alarms == [True, False, False, False, True]


def trained_on(job: Retraining, version: int, number: int) -> None:
    """Let a version be one that was trained on the data of a day."""
    job.tracking.set_tags(job.tracking.version(f"{MODEL}/{version}"), VersionTags(dataset=version_of(f"day {number}").digest))


@pytest.mark.parametrize(("action", "closes"), [("kept", True), ("refused", True), ("awaiting_shadow", False)])
def test_a_verdict_on_the_same_data_before_the_alarm_closes_it_at_once(
    job: Retraining, day: Day, action: Action, closes: bool
) -> None:
    trained_on(job, 2, 1)
    append_row(job.home, action, 2)
    assert day(1, SMALL).state == "drifted"
    assert (monitoring.open_alarm(job.home, MODEL) is None) is closes


@pytest.mark.parametrize("evidence", ["e", ""])
def test_an_earlier_verdict_on_the_same_data_closes_an_alarm_too(job: Retraining, day: Day, evidence: str) -> None:
    trained_on(job, 2, 1)
    append_row(job.home, "kept" if evidence else "rejected", 2, evidence=evidence)
    append_row(job.home, "kept", 1)  # judged on other data
    assert day(1, SMALL).state == "drifted"
    assert monitoring.open_alarm(job.home, MODEL) is None, "a retraining is Unchanged: it would never close"


def test_a_verdict_against_another_champion_closes_no_alarm(job: Retraining, day: Day) -> None:
    trained_on(job, 1, 1)
    append_row(job.home, "kept", 1)
    append_row(job.home, "promoted", 2)
    assert day(1, SMALL).state == "drifted"
    assert monitoring.open_alarm(job.home, MODEL) is not None


def test_a_judged_version_that_mlflow_lost_was_on_other_data(job: Retraining, day: Day) -> None:
    append_row(job.home, "kept", 2)
    open_tracking(job.home)._client.delete_model_version(MODEL, "2")
    assert day(1, SMALL).state == "drifted"
    assert monitoring.open_alarm(job.home, MODEL) is not None


def test_an_alarm_of_the_future_is_no_cooldown(job: Retraining, day: Day) -> None:
    assert day(4000, SMALL).state == "drifted"
    append_row(job.home, "kept", 2)
    assert day(1, SMALL).state == "drifted", "the clock was wrong at the first"
    append_row(job.home, "kept", 2)
    assert day(2, SMALL).state == "cooldown"


def test_data_of_the_champion_are_no_new_data_and_without_a_champion_nothing_is_judged(job: Retraining, empty: Path) -> None:
    dataset = job.tracking.version(f"{MODEL}/1").dataset
    prepared = job.out("prepared", job.settings.dataset) / "dataset.json"
    today = DatasetVersion.read(prepared)
    job.tracking.set_tags(job.tracking.version(f"{MODEL}/1"), VersionTags(dataset=today.digest))
    assert dataset != today.digest
    found = monitoring.known(job, Reign(1, 1))
    assert found is not None and found.text == f"no new data: today's are those that {MODEL}/1 was trained on"
    assert monitoring.reign(job.home, "other") is None


def test_the_champions_run_in_mlflow_shows_the_checks_and_its_absence_harms_nothing(
    job: Retraining, day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    day(1, 0.5)
    import mlflow

    client = mlflow.MlflowClient(job.home.tracking_uri)
    run = open_tracking(job.home).version(f"{MODEL}/1").run_id
    assert client.get_run(run).data.metrics["monitor_nll"] == 2.0
    assert [(each.step, each.value) for each in client.get_metric_history(run, "monitor_p")] == [(1, 0.5)]

    def away(*_: object) -> None:
        raise TrackingError("away")

    monkeypatch.setattr(Tracking, "log_metrics", away)
    assert day(2, 0.5).state == "no_drift"


def test_a_changed_check_is_not_used_and_the_audit_names_it(job: Retraining, day: Day) -> None:
    day(1, SMALL)
    day(2, 0.5)
    checks = open_drift_checks(job.home)
    assert checks.verify(MODEL) == [] and list(audit.drift(checks, MODEL)) == []
    (entry,) = [each for each in Registry(job.home, lambda: job.params, dict).overview() if each.name == MODEL]
    assert [(each.kind, each.text) for each in entry.concerns if each.kind == "drifted"] == [
        ("drifted", "alarm of 2026-12-02: s")
    ]
    edit = "UPDATE drift_checks SET content = replace(content, '\"alarm\":true', '\"alarm\":false')"
    promotion_cases.execute_sql(job.home, edit)
    (line,) = checks.verify(MODEL)
    assert line == f"{MODEL}: drift check 1 was changed, or a row before it was removed"
    (found,) = audit.drift(checks, MODEL)
    assert found.finding.kind == "ledger"
    with pytest.raises(LedgerError, match=rf"^drift check 1 of {MODEL} is damaged or was changed: run remint audit$"):
        checks.of(MODEL)


def test_two_checks_of_one_number_are_recorded_once(job: Retraining, day: Day) -> None:
    made = day(1, 0.5).check
    assert made is not None
    checks = open_drift_checks(job.home)
    assert checks.append(made) == made, "the same reply again"
    assert checks.append(made.model_copy(update={"dataset": "other"})) is None
    assert len(checks.of(MODEL)) == 1 and drift_checks.now() > made.at[:4]
