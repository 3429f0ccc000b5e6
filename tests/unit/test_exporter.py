"""Metrics of an installation: exact values from a ledger, parts that are away, and names that rules, panels and the page use."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import pytest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from ruamel.yaml import YAML

from flows.stack import metrics
from flows.stack.audit import run_audit
from flows.stack.deployments import NAMED_BY
from flows.stack.outlook import longest_gap
from remint.errors import TrackingError
from remint.maintenance.audit import Audit, fault, last
from remint.maintenance.metrics import exporter
from remint.maintenance.metrics import ledger as of_ledger
from remint.maintenance.metrics.catalogue import METRICS, gauge
from remint.maintenance.metrics.exporter import Exporter, Part
from remint.maintenance.metrics.ledger import LedgerMetrics
from remint.maintenance.metrics.of_home import of_home
from remint.promotion import trials
from remint.records import canonical
from remint.runtime.home import Home
from remint.serving.app.metrics import Metrics as ServingMetrics
from remint.settings.schedule import ScheduleSettings
from remint.stores.ledger.drift_checks import DriftCheck
from remint.stores.open import open_drift_checks, open_ledger, open_serving_events
from tests.support.exposed import samples
from tests.support.promotion_cases import MODEL, append_row, copy_home

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/alerts.yml"
BOARD = ROOT / "deploy/grafana/remint.json"
NAME = re.compile(r"\bremint_[a-z_]+")
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool on this machine: apt-get install prometheus")
NIGHT = trials.Night(
    key="k", recipe="r", champion=1, champion_recipe="c", confidence=0.95, auto=True, metrics=1, gains={"nll": (0.1, 0.01)}
)


class Reading(Collector):
    """Collector of one part, which keeps what it knows between two reads."""

    def __init__(self, home: Home) -> None:
        self.read = LedgerMetrics(home)

    def collect(self) -> Iterable[Metric]:
        return self.read()


def drift_check(number: int, *, alarm: bool) -> DriftCheck:
    return DriftCheck(
        model=MODEL,
        champion=1,
        reign=1,
        number=number,
        dataset="d",
        added=1,
        removed=0,
        p=0.5,
        level=0.01,
        alarm=alarm,
        after=3,
        summary="s",
        metrics={},
        at=f"2026-12-0{number}T00:00:00+00:00",
    )


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, tmp_path / "home").ensure()


def test_the_ledger_gives_decisions_champions_waits_budget_and_drift(home: Home) -> None:
    first, *_, waiting = [
        append_row(home, action, version)
        for action, version in (("promoted", 1), ("refused", 2), ("awaiting_approval", 3))  # type: ignore[arg-type]
    ]
    trial = trials.following([], NIGHT)
    tried = open_ledger(home).append(
        MODEL,
        "kept",
        4,
        champion_after=1,
        who="gate",
        why="",
        evidence="e",
        trial=canonical(trial.to_json()),
        expected_champion=1,
    )
    by_hand = append_row(home, "rejected", 2, evidence="", who="ada")
    open_drift_checks(home).append(drift_check(1, alarm=True))
    reading = Reading(home)
    found = samples(reading)
    counts = {"promoted": 1, "refused": 1, "awaiting_approval": 1, "kept": 1, "rejected": 1}
    assert {key[2]: value for key, value in found.items() if key[0] == "remint_decisions_total"} == counts
    assert found["remint_champion_version", MODEL] == 1
    assert found["remint_champion_since_timestamp_seconds", MODEL] == datetime.fromisoformat(first.at).timestamp()
    assert found["remint_last_judgement_timestamp_seconds", MODEL] == datetime.fromisoformat(tried.at).timestamp()
    assert by_hand.at > tried.at
    assert (found["remint_awaiting", MODEL, "approval"], found["remint_awaiting", MODEL, "shadow"]) == (1, 0)
    since = ("remint_awaiting_since_timestamp_seconds", MODEL, "approval")
    assert found[since] == datetime.fromisoformat(waiting.at).timestamp()
    assert ("remint_awaiting_since_timestamp_seconds", MODEL, "shadow") not in found
    assert (found["remint_gate_tries", MODEL], found["remint_gate_budget_left_ratio", MODEL]) == (1, 1.0 - trial.spent)
    assert found["remint_ledger_rows", MODEL] == 5 and found["remint_ledger_faults", MODEL] == 0
    assert found["remint_drift_alarm", MODEL] == 0, "the row of the fourth version came behind it"
    open_drift_checks(home).append(drift_check(2, alarm=True).model_copy(update={"after": 5}))
    assert samples(reading)["remint_drift_alarm", MODEL] == 1
    append_row(home, "promoted", 3)
    found = samples(reading)
    assert found["remint_drift_alarm", MODEL] == 0 and found["remint_awaiting", MODEL, "approval"] == 0
    assert found["remint_drift_check_timestamp_seconds", MODEL] == datetime.fromisoformat("2026-12-02T00:00:00Z").timestamp()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE ledger SET why = 'another' WHERE sequence = 1 AND model = 'digits-flow'",
        "UPDATE ledger SET champion_after = 'x' WHERE sequence = 1 AND model = 'digits-flow'",  # no number
        "UPDATE serving_events SET host = 'another'",
        "UPDATE drift_checks SET content = 'another'",
    ],
)
def test_a_changed_row_is_a_fault_of_its_pipeline_at_the_next_verification(
    home: Home, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    append_row(home, "promoted", 1)
    open_ledger(home).append("other", "promoted", 1, champion_after=1, who="gate", why="", evidence="e", expected_champion=None)
    open_serving_events(home).append(MODEL, "loaded", 1, "host", "")
    open_drift_checks(home).append(drift_check(1, alarm=False))
    reading = Reading(home)
    assert samples(reading)["remint_ledger_faults", MODEL] == 0
    with sqlite3.connect(home.path / "ledger.db") as database:
        database.execute(damage)
    assert samples(reading)["remint_ledger_faults", MODEL] == 0, "it is not verified at every read"
    monkeypatch.setattr(of_ledger, "VERIFY_EVERY", 0.0)
    found = samples(reading)
    assert found["remint_ledger_faults", MODEL] >= 1 and found["remint_ledger_faults", "other"] == 0
    assert samples(Reading(home))["remint_ledger_faults", MODEL] >= 1, "also for an exporter that starts now"


def test_one_read_verifies_one_chain_where_the_budget_is_spent(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("a", "b", "c"):
        open_ledger(home).append(model, "kept", 1, champion_after=None, who="g", why="", evidence="e", expected_champion=None)
    monkeypatch.setattr(of_ledger, "BUDGET", 0.0)
    verified: list[str] = []
    verify = of_ledger.Ledger.verify
    monkeypatch.setattr(of_ledger.Ledger, "verify", lambda book, model: verified.append(model) or verify(book, model))
    reading = Reading(home)
    for _ in range(5):
        samples(reading)
    assert len(verified) <= 3 and sorted(verified) == sorted(set(verified)), "none twice within the hour"


def test_a_home_without_a_ledger_gives_nothing_and_makes_none(home: Home) -> None:
    assert samples(Reading(home)) == {} and not (home.path / "ledger.db").exists()


def test_parts_that_fail_or_hang_are_away_and_the_others_go_on(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("A_PASSWORD", "hunter2-and-more")
    monkeypatch.setattr(exporter, "FIRST", 0.2)
    released, fails = threading.Event(), threading.Event()

    def well() -> Iterable[Metric]:
        family = gauge("remint_home_free_bytes")
        family.add_metric([], 7.0)
        return [family]

    def fail() -> Iterable[Metric]:
        if not fails.is_set():
            return []
        raise TrackingError("it refuses hunter2-and-more")

    def hang() -> Iterable[Metric]:
        released.wait()
        return []

    parts = [Part("home", well, 0.01), Part("mlflow", fail, 0.01), Part("prefect", hang, 0.01)]
    request.addfinalizer((made := Exporter(parts)).close)
    up = {("remint_up", "home"): 1, ("remint_up", "mlflow"): 1, ("remint_up", "prefect"): 0}
    found = samples(made)  # returns although a part hangs
    assert {key: found[key] for key in up} == up and found["remint_home_free_bytes",] == 7.0
    fails.set()
    while samples(made)["remint_up", "mlflow"]:
        pass
    assert samples(made)["remint_home_free_bytes",] == 7.0
    told = capsys.readouterr().err
    assert "metrics of mlflow: TrackingError: it refuses ***" in told and "hunter2" not in told
    assert told.count("\n") == 1, "the same line is told once"
    fails.clear()
    released.set()
    while not (samples(made)["remint_up", "mlflow"] and samples(made)["remint_up", "prefect"]):
        pass
    monkeypatch.setattr(exporter, "STALE", 0.0)
    assert {value for key, value in samples(made).items() if key[0] == "remint_up"} == {0.0}


def test_the_last_audit_and_the_disk_are_told(home: Home) -> None:
    class OfHome(Collector):
        def collect(self) -> Iterable[Metric]:
            return of_home(home)

    found = samples(OfHome())
    assert found["remint_audit_timestamp_seconds",] == 0 and found["remint_home_free_bytes",] > 0
    kinds = ("bytes", "bytes", "alias", "orphan")
    faults = [fault(kind, f"{place}", "w", "r", "r") for place, kind in enumerate(kinds)]
    repaired = faults[2].finding.model_copy(update={"repaired": True})
    last.keep(home, Audit([*faults[:2], type(faults[0])(repaired), faults[3]]), deep=True)
    found = samples(OfHome())
    of_kinds = {key[1]: value for key, value in found.items() if key[0] == "remint_audit_findings"}
    assert of_kinds == {"bytes": 2, "orphan": 1}
    assert found["remint_audit_timestamp_seconds",] > 0
    (home.path / "audit.json").write_text("{")
    assert samples(OfHome())["remint_audit_timestamp_seconds",] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_an_audit_leaves_its_counts(registered: Home, tmp_path: Path) -> None:
    home = copy_home(registered, tmp_path / "home")
    append_row(home, "promoted", 1)  # MLflow's alias does not follow
    found = run_audit(home, lambda _: None, repair=False, deep=False, prefect=False)
    kept = last.last(home)
    assert kept is not None and kept.findings["alias"] == 1 and not kept.deep
    assert kept.findings == dict(Counter(finding.kind for finding in found.findings))
    run_audit(home, lambda _: None, repair=True, deep=False, prefect=False)
    mended = last.last(home)
    assert mended is not None and "alias" not in mended.findings


@pytest.mark.parametrize(
    ("schedule", "seconds"),
    [
        ({"cron": "0 3 * * *"}, 86400.0),
        ({"cron": "0 3 * * mon-fri"}, 3 * 86400.0),
        ({"interval": 900}, 900.0),
        ({"rrule": "FREQ=WEEKLY;BYDAY=MO"}, 7 * 86400.0),
        ({"cron": "0 0 30 2 *"}, None),
    ],
)
def test_the_longest_gap_of_a_schedule(schedule: dict[str, object], seconds: float | None) -> None:
    assert longest_gap(ScheduleSettings.model_validate(schedule)) == seconds


def test_the_flows_that_are_counted_are_those_that_are_deployed() -> None:
    assert set(metrics.FLOWS) == {*NAMED_BY, "step", "tidy"}


class _NoFollower:
    pass


def known_names() -> set[str]:
    """Return the names under which values are exposed."""
    kinds = {name: metric.kind for name, metric in METRICS.items()}
    kinds |= {family.name: family.type for family in ServingMetrics({}, _NoFollower()).registry.collect()}  # type: ignore[arg-type]
    ends = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}
    return {name.removesuffix("_total") + end for name, kind in kinds.items() for end in ends.get(kind, ("",))}


def names_in(expression: str) -> set[str]:
    expression = expression.replace(
        '"remint_last_(success|judgement)_timestamp_seconds"',
        " ".join(f"remint_last_{each}_timestamp_seconds" for each in ("success", "judgement")),
    )
    return set(NAME.findall(expression))


def test_every_metric_that_an_alert_or_a_panel_names_is_exposed() -> None:
    rules = [rule for group in YAML(typ="safe").load(RULES)["groups"] for rule in group["rules"]]
    panels = [target for panel in json.loads(BOARD.read_text())["panels"] for target in panel.get("targets", ())]
    assert len(rules) > 15 and len(panels) > 25
    for each in (*rules, *panels):
        found = names_in(each["expr"])
        assert found or each["expr"].startswith("up{"), each["expr"]
        assert found <= known_names(), each["expr"]
    unused = set(METRICS) - {
        name for each in (*rules, *panels) for name in names_in(re.sub("_(bucket|sum|count)", "", each["expr"]))
    }
    assert unused == {"remint_gate_tries", "remint_ledger_rows", "remint_trainings"}, "each of the others is looked at"


@pytest.mark.slow
@needs_promtool
def test_the_rules_and_the_queries_of_the_panels_are_valid(tmp_path: Path) -> None:
    assert PROMTOOL is not None
    panels = [target for panel in json.loads(BOARD.read_text())["panels"] for target in panel.get("targets", ())]
    queries = [{"record": f"panel:{place}", "expr": each["expr"]} for place, each in enumerate(panels)]
    (tmp_path / "panels.yml").write_text(json.dumps({"groups": [{"name": "panels", "rules": queries}]}))
    for arguments in (
        ["check", "config", str(RULES.with_name("prometheus.yml"))],
        ["check", "rules", "--lint-fatal", str(RULES), str(tmp_path / "panels.yml")],
        ["test", "rules", str(RULES.with_name("alerts_test.yml"))],
    ):
        done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr


def test_every_alert_is_tested_as_silent_and_as_firing() -> None:
    alerts = {rule["alert"] for group in YAML(typ="safe").load(RULES)["groups"] for rule in group["rules"]}
    tests = [
        each for test in YAML(typ="safe").load(RULES.with_name("alerts_test.yml"))["tests"] for each in test["alert_rule_test"]
    ]
    assert {each["alertname"] for each in tests if each.get("exp_alerts")} == alerts
    assert {each["alertname"] for each in tests if not each.get("exp_alerts")} == alerts


def test_the_panels_have_their_own_numbers_and_do_not_overlap() -> None:
    panels = json.loads(BOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) == 23


def test_the_page_has_each_metric_and_each_alert() -> None:
    page = (ROOT / "docs/how-to/watch.md").read_text()
    rows = [f"| `{name}` | {each.kind} | {', '.join(each.labels)} | {each.help} |" for name, each in METRICS.items()]
    assert re.findall(r"^\| `remint_.*$", page, re.MULTILINE) == rows
    alerts = [rule["alert"] for group in YAML(typ="safe").load(RULES)["groups"] for rule in group["rules"]]
    assert re.findall(r"^\| `(Remint\w+)`", page, re.MULTILINE) == alerts
