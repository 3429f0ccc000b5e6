"""The front of a server with replicas: answers of a real replica, another try where one dies, and one line without Ray."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from remint.errors import RunError, UserError
from remint.runtime.home import Home
from remint.serving.app import cluster
from remint.serving.app.cluster import Answer, Front, Lost, Replica
from remint.serving.app.limits import Door, Limits
from remint.serving.app.run import Serving
from remint.serving.load import load_version
from tests.support import promotion_cases as cases
from tests.support.promotion_cases import MODEL

pytestmark = pytest.mark.usefixtures("forked")
URL = f"/v1/models/{MODEL}"


@pytest.fixture
def home(registered: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    home = cases.copy_home(registered, tmp_path / "home")
    cases.append_row(home, "promoted", 1)
    monkeypatch.setenv("REMINT_HOME", str(home.path))
    return home


@pytest.fixture
def replica(home: Home, tmp_path: Path) -> Replica:
    return Replica(Serving(Home(tmp_path, home.path), [MODEL], Limits(), 3600.0, "cpu", None, print))


def client(ask: Callable[..., Any], seconds: float = 30.0) -> TestClient:
    front, limits = Front(ask, [MODEL], seconds), Limits(body_bytes=1000)
    return TestClient(Door(front, limits, None, front.requests.refused), raise_server_exceptions=False)


def test_answers_are_those_of_the_replica(home: Home, replica: Replica) -> None:
    http, served = client(replica), load_version(home, MODEL)
    said = http.post(f"{URL}:sample", json={"count": 2, "seed": 5})
    assert np.array_equal(said.json()["values"], served.sample(2, 5)) and said.json()["version"] == 1
    file = http.post(f"{URL}:sample", json={}, headers={"accept": "application/x-npy"})
    assert file.headers["x-remint-version"] == "1" and file.headers["content-type"] == "application/x-npy"
    assert (
        http.get(URL).json()["version"] == 1 and http.get("/readyz").text == "ready\n" and http.get("/healthz").text == "alive\n"
    )
    assert http.post("/v1/models/none:sample", json={}).status_code == 404
    assert http.post(f"{URL}:sample", content=b" " * 1001).status_code == 413
    page = http.get("/metrics").text
    assert f'remint_requests_total{{method="sample",model="{MODEL}",status="200"}} 2.0' in page
    assert 'remint_requests_total{method="",model="",status="404"} 1.0' in page


def test_a_request_whose_replica_died_is_asked_again_and_503_at_last(replica: Replica) -> None:
    deaths = [Lost("it died")]

    async def ask(scope: dict[str, Any], body: bytes) -> Answer:
        if deaths:
            raise deaths.pop()
        return await replica(scope, body)

    http = client(ask)
    assert http.post(f"{URL}:sample", json={}).status_code == 200 and not deaths
    deaths += [Lost("it died")] * cluster.TRIES
    said = http.post(f"{URL}:sample", json={})
    assert said.status_code == 503 and said.json() == {"detail": "the replicas that were asked died: ask again"}
    assert http.post(f"{URL}:sample", json={}).status_code == 200


def test_without_a_replica_in_time_the_answer_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(scope: dict[str, Any], body: bytes) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(cluster, "GRACE", 0.0)
    http = client(never, seconds=0.2)
    said = http.post(f"{URL}:sample", json={})
    assert said.status_code == 503 and said.json() == {"detail": "no replica answered within 0.2 s: ask again later"}
    assert http.get("/healthz").status_code == 200
    assert f'remint_requests_total{{method="sample",model="{MODEL}",status="503"}} 1.0' in http.get("/metrics").text


def test_a_replica_is_healthy_while_it_is_ready(replica: Replica) -> None:
    asyncio.run(replica.check_health())
    api = next(route for route in replica.app.app.routes if route.path == "/readyz").endpoint.__self__
    api.slots[MODEL].version = None
    with pytest.raises(RunError, match=f"not loaded yet: {MODEL}"):
        asyncio.run(replica.check_health())


def test_without_ray_one_line_says_what_to_install(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--engine ray needs Ray .*: pip install 'remint\[cluster\]'$") as caught:
        cluster.serve(Serving(home, [MODEL], Limits(), 1.0, "cpu", None, print), "127.0.0.1", 1, 2)
    assert caught.value.exit_status == 2


def test_one_machine_imports_no_ray() -> None:
    code = "import sys, remint.serving.app.run, remint.serving.app.cluster, remint.cli.serve; sys.exit('ray' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
