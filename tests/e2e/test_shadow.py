"""Shadow from end to end: a server process with traffic, and the flow on a real Prefect server that judges by its answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from remint.promotion.shadow_report import ShadowReport
from remint.runtime.home import Home
from remint.settings.params import read_params, write_params
from remint.stores.ledger.row import LedgerRow
from remint.stores.open import open_ledger, open_serving_events, open_shadow_counts, open_tracking
from tests.support import promotion_cases as cases
from tests.support import registry_cases
from tests.support.ports import free_port
from tests.support.promotion_cases import MODEL
from tests.support.shadow_cases import record_waiting, waiting
from tests.support.team import Team

SERVING = {"shadow": 1.0, "answers": 20, "deadline": "1d"}


@contextmanager
def serving(team: Team, model: str, log: Path, end: signal.Signals = signal.SIGTERM) -> Iterator[str]:
    """Serve a model in a process of its own, which ``end`` ends. Yield the address of its methods."""
    port = free_port()
    process = team.start("serve", model, "--port", str(port), "--every", "0.2", log=log)
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
    try:
        while True:
            try:
                if httpx.get(f"{address}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield f"{address}/v1/models/{model}"
    finally:
        process.send_signal(end)
        process.wait(60)


def ask_until_counted(home: Home, row: LedgerRow, address: str, method: str, body: Any, copies: int = 20) -> set[int]:
    """Ask like a person, until the server has written so many copies. Return the versions that answered the person."""
    versions, deadline = set(), time.monotonic() + 120
    while sum(part.copies for part in open_shadow_counts(home).of(row.hash)) < copies:
        said = httpx.post(f"{address}:{method}", json=body, timeout=60)
        assert said.status_code == 200 and time.monotonic() < deadline
        versions.add(said.json()["version"])
    return versions


def judge(team: Team) -> str:
    """Run the scheduled flow, and return the name of its final state."""
    program = f"from flows.shadow import judge_shadow\nstate = judge_shadow({MODEL!r}, return_state=True)\nprint(state.name)"
    environment = {**team.environment(), "PYTHONPATH": f"{team.folder}/src:{team.folder}"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=team.folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.split()[-1]


def test_answers_promote_failures_refuse_and_so_does_the_deadline(team: Team, registered: Home, tmp_path: Path) -> None:
    """Version 2 answers all, version 3 takes fewer levels and so refuses images that the champion takes, version 4 gets none."""
    home = Home(team.folder, team.folder / ".remint")
    cases.copy_home(registered, home.path)
    fewer = registry_cases.SPEC.model_copy(update={"levels": 4})
    registry_cases.make_bundle(home.path / "bundles/fewer", 9, spec=fewer)
    third = registry_cases.register(open_tracking(home), home.path / "bundles/fewer", tags=cases.TAGS).version
    cases.record_decision(home, "promoted", 1)
    row = record_waiting(home, waiting(2, serving={**SERVING, "answers": 100}))
    with serving(team, MODEL, tmp_path / "killed", signal.SIGKILL) as address:
        assert ask_until_counted(home, row, address, "sample", {"count": 2}, copies=5) == {1}
    before = open_shadow_counts(home).of(row.hash)
    with serving(team, MODEL, tmp_path / "log") as address:
        assert judge(team) == "Unchanged"
        assert ask_until_counted(home, row, address, "sample", {"count": 2}, copies=100) == {1}
        assert judge(team) == "Promoted"
        counted = open_shadow_counts(home).of(row.hash)
        assert all(part in counted for part in before) and len(counted) > len(before), "what a killed server wrote counts"
        assert open_tracking(home).aliases(MODEL) == {"champion": 2}
        deadline = time.monotonic() + 60
        while httpx.get(address).json()["version"] != 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        row = record_waiting(home, waiting(3, champion=2, serving=SERVING, approval="manual"))
        assert ask_until_counted(home, row, address, "sample", {"count": 2}) == {2}
        assert judge(team) == "AwaitingApproval"
        row = record_waiting(home, waiting(third, champion=2, serving=SERVING))
        images = np.full((2, 1, 4, 4), 4).tolist()
        assert ask_until_counted(home, row, address, "log_prob", {"x": images}) == {2}
        assert judge(team) == "Refused"
        record_waiting(home, waiting(4, champion=2, serving=SERVING), at=datetime.now(UTC) - timedelta(days=1))
        assert judge(team) == "Refused"
    rows = open_ledger(home).rows(MODEL)
    assert [(each.action, each.version) for each in rows[-4:]] == [
        ("awaiting_shadow", third),
        ("refused", third),
        ("awaiting_shadow", 4),
        ("refused", 4),
    ]
    assert "x log_prob: DataError" in rows[-3].why and "it needs 20 within 1d" in rows[-1].why
    found = ShadowReport.read(home.report(MODEL, third) / "shadow.json")
    assert found.metrics["shadow_error_rate"].value == 1.0 and open_ledger(home).champion(MODEL) == 2
    events = [(each.event, each.version) for each in open_serving_events(home).of(MODEL)]
    assert events[:7] == [("loaded", 1), ("shadowed", 2)] * 2 + [("switched", 2), ("shadowed", 3), ("shadowed", third)]


def test_a_retraining_awaits_shadow_and_the_next_run_promotes_it(trained_team: Team, tmp_path: Path) -> None:
    """The gate of `remint run` asks for a shadow, and the next `remint run`, on unchanged data, judges by its answers."""
    team, home = trained_team, Home(trained_team.folder, trained_team.folder / ".remint")
    content = read_params(team.folder)
    content["pipelines"]["digits-vae"]["serving"] = SERVING
    content["pipelines"]["digits-vae"]["promotion"]["require"] |= {"shadow_error_rate": {"max": 0.2}}
    content["pipelines"]["digits-vae"]["training"]["steps"] = 240
    write_params(content, team.folder)
    team.sh("git commit -qam 'a longer training, and a shadow'")
    (outcome,) = team.json("run", "digits-vae")
    assert outcome["decision"]["verdict"] == "awaiting_shadow", outcome["decision"]
    assert "20 copies of requests" in outcome["decision"]["reasons"][-1]
    row = open_ledger(home).awaiting_shadow("digits-vae")
    assert row is not None and row.version == outcome["version"]
    with serving(team, "digits-vae", tmp_path / "log") as address:
        assert ask_until_counted(home, row, address, "sample", {"count": 1}) == {1}
    said = team.remint("run", "digits-vae")
    assert f"digits-vae/{row.version} awaited shadow; promoted: it answered" in said.stderr
    assert open_ledger(home).champion("digits-vae") == row.version
    shown = json.loads(team.remint("why", "digits-vae", "--json").stdout)
    assert [each["action"] for each in shown["decisions"]] == ["awaiting_shadow", "promoted"]
    assert "requirement shadow_error_rate met: 0.000 [0.000, 0.1" in shown["decisions"][-1]["why"]
    page = Path(shown["report"]).read_text()
    assert "<h3>Shadow</h3>" in page and "<h3>Serving</h3>" in page and "<b>promoted</b>" in page
