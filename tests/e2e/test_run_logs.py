"""Logs as JSON and traces of a run: from Prefect's own engine, to a real OTLP receiver, without secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.otlp import attributes, receiving
from tests.support.ports import free_port
from tests.support.team import SOURCE, Team

SECRET = "hunter2-and-more-of-it"
FLOW = f"""
from prefect import flow, get_run_logger
from flows.server import progress  # as every flow of remint does
from flows.steps import step

@step("train")
def train():
    get_run_logger().info("the token is %s", "{SECRET}")
    progress.tell("digits-vae", "notice", text="of remint")
    raise ValueError("the server refused {SECRET}")

@flow(name="retrain", flow_run_name="digits-vae 2026-12-01")
def retrain(pipeline, reason):
    train()

try:
    retrain("digits-vae", "because {SECRET}")
except ValueError:
    print("the step's own error")
"""


def run_flow(api: str, cwd: Path, **more: str) -> str:
    """Run the flow, whose step fails, in a process of its own. Return its standard error."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(SOURCE / "src"), str(SOURCE))),
        "PREFECT_API_URL": api,
        "A_TOKEN": SECRET,
        **more,
    }
    start = "import os; from flows.server import run_log; os.environ.update(run_log.environment())\n"
    done = subprocess.run(
        [sys.executable, "-c", start + FLOW], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0 and done.stdout == "the step's own error\n", done.stderr
    return done.stderr


def test_a_failed_run_is_logged_as_json_and_traced_without_secrets(prefect_server: str, tmp_path: Path) -> None:
    with receiving() as receiver:
        log = run_flow(prefect_server, tmp_path, REMINT_LOG="json", OTEL_EXPORTER_OTLP_ENDPOINT=receiver.address)
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.splitlines()]
    of_step = [line for line in lines if line.get("step") == "train"]
    messages = [line["message"] for line in of_step]
    assert "the token is ***" in messages and "notice text=of remint" in messages
    failed = next(line for line in of_step if line["level"] == "ERROR")
    assert "ValueError: the server refused ***" in failed["exception"]
    runs = {line["flow_run"] for line in lines if "flow_run" in line}
    assert len(runs) == 1
    for line in of_step:
        assert line["pipeline"] == "digits-vae" and line["flow_run"] in runs and line["flow"] == "retrain"
    assert SECRET not in log

    flow, step = receiver.span("digits-vae 2026-12-01"), receiver.span("train")
    assert receiver.services == {"remint"} and len(receiver.spans) == 2
    assert step.trace_id == flow.trace_id and step.parent_span_id == flow.span_id and flow.parent_span_id == b""
    assert attributes(flow)["prefect.run.id"] in runs
    assert step.status.code == 2 and "***" in step.status.message
    (exception,) = [event for event in step.events if event.name == "exception"]
    assert attributes(exception)["exception.message"] == "the server refused ***"
    assert flow.start_time_unix_nano <= step.start_time_unix_nano < step.end_time_unix_nano <= flow.end_time_unix_nano
    assert SECRET.encode() not in receiver.content


@pytest.mark.soak
def test_a_receiver_that_is_away_changes_no_run(prefect_server: str, tmp_path: Path) -> None:
    away = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    assert SECRET not in run_flow(prefect_server, tmp_path, **away)


@pytest.mark.soak
def test_a_real_retraining_is_traced_step_by_step_and_logged_as_json(shared_team: Team, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with receiving() as receiver:
        variables = {"REMINT_LOG": "json", "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.address, "A_TOKEN": SECRET}
        process = shared_team.start("run", "digits-flow", "--reason", f"because of {SECRET}", "--json", log=log, **variables)
        assert process.wait(timeout=600) == 0, log.read_text()
    text = log.read_text()
    outcome, *lines = reversed([line for line in text.splitlines() if line.startswith("{")])
    parsed = [json.loads(line) for line in lines]
    assert {line["pipeline"] for line in parsed if line.get("step")} == {"digits-flow"}, outcome
    names = [span.name for span in receiver.spans]
    steps = {"version data", "learn features", "train", "evaluate", "calibrate", "push data", "register", "judge", "settle"}
    assert steps <= set(names)
    (flow,) = [span for span in receiver.spans if "remint.pipeline" in attributes(span)]
    assert attributes(flow)["remint.pipeline"] == "digits-flow" and attributes(flow)["remint.job"]
    assert all(span.parent_span_id == flow.span_id for span in receiver.spans if span.name in steps)
    assert SECRET not in text and SECRET.encode() not in receiver.content
