"""All metrics from real parts: a ledger, MLflow, a Prefect server; and a real Prometheus that scrapes and fires an alert."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Crashed, Failed, Running, Scheduled
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from flows.stack.deploy import deploy, plan
from flows.stack.metrics import PrefectMetrics, exporter
from flows.steps import train
from remint.maintenance.audit import Audit, fault, last
from remint.maintenance.metrics.catalogue import METRICS
from remint.maintenance.metrics.exporter import Part, Read
from remint.promotion import trials
from remint.records import canonical
from remint.runtime.home import Home
from remint.settings.params import Params
from remint.settings.resources import ResourceSettings
from remint.stores.open import open_drift_checks, open_ledger, open_tracking
from tests.support.exposed import samples
from tests.support.ports import free_port
from tests.support.promotion_cases import append_row, copy_home
from tests.support.team import SOURCE, Team, scheduled
from tests.unit.test_exporter import NIGHT, drift_check

NIGHTLY = {"cron": "0 3 * * *"}
PROMETHEUS = shutil.which("prometheus")
TOKEN = "a-token-of-this-test"


def deployed(client: SyncPrefectClient, home: Home) -> dict[str, UUID]:
    """Deploy two pipelines, on a server without runs. Return the ids of their deployments."""
    while runs := client.read_flow_runs():  # of other tests on this server
        for run in runs:
            client.delete_flow_run(run.id)
    params = scheduled(digits_vae=NIGHTLY, digits_gan=NIGHTLY)
    done = deploy(home, params, plan(home, params, "main"))
    return {each.pipeline: UUID(str(each.id)) for each in done if each.deployment.startswith("retrain/")}


def ended(client: SyncPrefectClient, deployment: UUID, state: State, seconds: float = 0.0) -> UUID:
    """Make a run of a deployment that lasts so long and ends now. Return its id."""
    run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, Running(), force=True)
    time.sleep(seconds)
    client.set_flow_run_state(run.id, state, force=True)
    return run.id


def step_of(client: SyncPrefectClient, run: UUID, state: State, seconds: float = 0.0) -> None:
    """Add a step to a run, which lasts so long."""
    task = client.create_task_run(task=train, name="train", flow_run_id=run, dynamic_key=str(uuid4()), state=Running())
    time.sleep(seconds)
    client.set_task_run_state(task.id, state, force=True)


class Reading(Collector):
    """Collector of Prefect's part."""

    def __init__(self, address: str, params: Params) -> None:
        self.read = PrefectMetrics(address, lambda: params)

    def collect(self) -> Iterator[Metric]:
        return self.read()


def test_retrainings_are_counted_when_they_end_and_not_those_before(
    client: SyncPrefectClient, prefect_server: str, home: Home
) -> None:
    named = deployed(client, home)
    vae, gan = named["digits-vae"], named["digits-gan"]
    began = time.time()
    ended(client, vae, Completed(name="Kept"))
    ended(client, gan, Crashed())
    reading = Reading(prefect_server, scheduled(digits_vae=NIGHTLY, digits_gan=NIGHTLY))
    first = samples(reading)
    assert not [key for key in first if key[0] == "remint_retrainings_total"], "those would look like a burst"
    assert (first["remint_retraining_failed", "digits-vae"], first["remint_retraining_failed", "digits-gan"]) == (0, 1)
    assert began - 1 <= first["remint_last_success_timestamp_seconds", "digits-vae"] <= time.time() + 1
    assert ("remint_last_success_timestamp_seconds", "digits-gan") not in first
    assert first["remint_schedule_seconds", "digits-vae"] == 86400 and first["remint_workers", "remint"] == 0

    step_of(client, ended(client, vae, Completed(name="AwaitingApproval"), seconds=1.5), Completed(), seconds=1.5)
    step_of(client, ended(client, vae, Failed()), Crashed())
    ended(client, gan, Cancelled(name="Skipped"))
    client.create_flow_run_from_deployment(gan, state=Scheduled(name="Late", scheduled_time=_ago(1000)))
    for found in (samples(reading), samples(reading)):  # the second read counts nothing twice
        counts = {key[1:]: value for key, value in found.items() if key[0] == "remint_retrainings_total"}
        assert counts == {
            ("digits-vae", "awaiting_approval"): 1,
            ("digits-vae", "failed"): 1,
            ("digits-gan", "skipped"): 1,
        }
        steps = {key[1:]: value for key, value in found.items() if key[0] == "remint_steps_total"}
        assert steps == {("completed", "train"): 1, ("crashed", "train"): 1}
        assert found["remint_retraining_seconds_count", "digits-vae"] == found["remint_step_seconds_count", "train"] == 2
        assert found["remint_retraining_seconds_sum", "digits-vae"] >= 1.4 and found["remint_step_seconds_sum", "train"] >= 1.4
        assert (found["remint_retraining_failed", "digits-vae"], found["remint_retraining_failed", "digits-gan"]) == (1, 1)
        assert found["remint_flow_runs", "late"] == 1 and found["remint_flow_runs", "running"] == 0
        assert abs(found["remint_late_since_timestamp_seconds",] - _ago(1000).timestamp()) < 300
    client.pause_deployment(vae)
    elsewhere = scheduled(digits_gan=NIGHTLY)
    train_on_gpu = ResourceSettings.model_validate({"train": "gpu"})
    elsewhere.pipelines["digits-vae"] = elsewhere.pipelines["digits-vae"].model_copy(update={"resources": train_on_gpu})
    found = samples(Reading(prefect_server, elsewhere))
    assert ("remint_schedule_seconds", "digits-vae") not in found
    assert (found["remint_workers", "gpu"], found["remint_workers", "remint"]) == (0, 0), "Prefect does not know the first yet"


def _ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def test_every_metric_of_the_catalogue_is_exposed(
    request: pytest.FixtureRequest,
    client: SyncPrefectClient,
    prefect_server: str,
    empty: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last one stands for a GPU: MLflow's own monitor writes such a curve where there is one."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    home = copy_home(Home(SOURCE, empty), tmp_path / "home")
    home = Home(SOURCE, home.path)
    named = deployed(client, home)
    vae = named["digits-vae"]
    append_row(home, "promoted", 1)
    append_row(home, "awaiting_approval", 2)
    trial = canonical(trials.following([], NIGHT).to_json())
    open_ledger(home).append(
        "digits-flow", "kept", 3, champion_after=1, who="gate", why="", evidence="e", trial=trial, expected_champion=1
    )
    open_drift_checks(home).append(drift_check(1, alarm=True))
    last.keep(home, Audit([fault("bytes", "a", "w", "r", "r")]), deep=False)
    store = open_tracking(home)
    run = store.start_run("digits-vae", {}, {})
    curves = {
        "examples_per_second": 1234.5,
        "system/cpu_utilization_percentage": 50.0,
        "system/gpu_0_utilization_percentage": 25.0,
        "system/gpu_0_memory_usage_percentage": 75.0,
    }
    store.log_metrics(run, [{"step": 1, **curves}])
    ended(client, vae, Completed(name="Kept"))
    client.create_flow_run_from_deployment(vae, state=Scheduled(name="Late", scheduled_time=_ago(1000)))
    monkeypatch.setattr("flows.stack.metrics.Part", _impatient)
    made = exporter(home, lambda: scheduled(digits_vae=NIGHTLY, digits_gan=NIGHTLY))
    request.addfinalizer(made.close)
    assert samples(made)["remint_up", "prefect"] == 1
    step_of(client, ended(client, vae, Completed(name="Kept")), Completed())
    deadline = time.monotonic() + 60
    missing: set[str] = {"all"}
    while missing and time.monotonic() < deadline:
        found = samples(made)
        exposed = {key[0] for key in found}
        missing = {
            name for name, each in METRICS.items() if (f"{name}_count" if each.kind == "histogram" else name) not in exposed
        }
    assert not missing
    assert {key: value for key, value in found.items() if key[0] == "remint_up"} == {
        ("remint_up", part): 1.0 for part in ("ledger", "mlflow", "home", "prefect")
    }
    assert found["remint_trainings", "digits-vae"] == 1
    assert found["remint_training_examples_per_second", "digits-vae"] == 1234.5
    assert found["remint_training_gpu_ratio", "0", "digits-vae"] == 0.25
    assert found["remint_training_gpu_memory_ratio", "0", "digits-vae"] == 0.75
    store.end_run(run, "FINISHED")


def _impatient(name: str, read: Read) -> Part:
    return Part(name, read, 0.1)


@contextmanager
def exporting(team: Team, log: Path) -> Iterator[str]:
    """Run `remint metrics` of a team. Yield its address."""
    port = free_port()
    process = team.start("metrics", "--port", str(port), log=log, new=False, REMINT_SERVE_TOKEN=TOKEN)
    try:
        while True:
            assert process.poll() is None, log.read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.skipif(PROMETHEUS is None, reason="no Prometheus on this machine: apt-get install prometheus")
def test_a_real_prometheus_scrapes_and_fires_an_alert(shared_team: Team, tmp_path: Path) -> None:
    """A row of the ledger is changed outside remint: the exporter verifies the chain, and the alert of deploy/ fires."""
    assert PROMETHEUS is not None
    home = Home(shared_team.folder, shared_team.folder / ".remint")
    append_row(home, "promoted", 1)
    append_row(home, "kept", 2)
    with sqlite3.connect(home.path / "ledger.db") as database:
        database.execute("UPDATE ledger SET why = 'another' WHERE sequence = 1")
    rules = SOURCE / "deploy/prometheus/alerts.yml"
    with exporting(shared_team, tmp_path / "exporter.log") as target:
        assert httpx.get(f"http://{target}/metrics").status_code == 401
        (tmp_path / "token").write_text(TOKEN)
        scrape = {
            "job_name": "remint",
            "authorization": {"credentials_file": str(tmp_path / "token")},
            "static_configs": [{"targets": [target]}],
        }
        every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config = tmp_path / "prometheus.yml"
        config.write_text(json.dumps({"global": every, "rule_files": [str(rules)], "scrape_configs": [scrape]}))
        address = f"127.0.0.1:{free_port()}"
        options = [f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address={address}"]
        with (tmp_path / "prometheus.log").open("wb") as log:
            process = subprocess.Popen([PROMETHEUS, *options], stdout=log, stderr=log)
        try:
            firing = _firing(process, address, tmp_path / "prometheus.log")
        finally:
            process.terminate()
            process.wait(30)
    assert [(each["labels"]["alertname"], each["labels"]["pipeline"]) for each in firing] == [
        ("RemintLedgerFault", "digits-flow")
    ]
    assert "changed outside remint" in firing[0]["annotations"]["summary"]
    assert TOKEN not in (tmp_path / "exporter.log").read_text()


def _firing(process: subprocess.Popen[bytes], address: str, log: Path) -> list[dict[str, dict[str, str]]]:
    """Wait until an alert about the ledger's faults fires. Return all firing alerts about pipelines."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            alerts = httpx.get(f"http://{address}/api/v1/alerts").json()["data"]["alerts"]
        except (httpx.HTTPError, ValueError):
            alerts = []
        firing = [each for each in alerts if each["state"] == "firing" and "pipeline" in each["labels"]]
        if firing:
            return firing
        time.sleep(0.2)
    raise AssertionError(log.read_text())
