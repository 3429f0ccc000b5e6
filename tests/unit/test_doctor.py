"""remint doctor: it names each problem with a remedy, reports each open server, and creates no file."""

from __future__ import annotations

import http.server
import os
import platform
import shutil
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.server import client
from flows.stack import doctor
from remint.maintenance.doctor import Symptom, facts
from remint.runtime.home import Home
from remint.settings.params import load_params, read_params, write_params
from remint.stores.ledger import chain

pytestmark = pytest.mark.usefixtures("forked")

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(make_repository: Callable[[dict[str, str]], Path]) -> Home:
    files = {"params.yaml": (ROOT / "params.yaml").read_text(), ".dvc/config": (ROOT / ".dvc/config").read_text()}
    repository = make_repository(files)
    return Home(repository, repository / ".remint")


def symptoms(home: Home) -> list[Symptom]:
    return doctor.run_doctor(home, load_params(home.repository))


def symptom_about(found: list[Symptom], about: str) -> Symptom:
    (symptom,) = [each for each in found if each.about == about and each.level != "note"]
    assert symptom.what.endswith(".") and symptom.why.endswith(".") and symptom.do
    return symptom


@contextmanager
def server(status: int, host: str = "127.0.0.1") -> Iterator[int]:
    """Run a server that answers every request with this status. Return its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path != "/api/health" else 200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"[]")

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    made = http.server.ThreadingHTTPServer((host, 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield made.server_port
    finally:
        made.shutdown()
        made.server_close()


def test_a_fresh_clone_passes_and_doctor_creates_no_files(home: Home) -> None:
    before = sorted(home.repository.rglob("*"))
    found = symptoms(home)
    assert [each.level for each in found] == ["note", "note"], found
    assert {each.about for each in found} == {"prefect", "worker"}
    assert sorted(home.repository.rglob("*")) == before and not home.path.exists()
    assert "GiB free" in facts(home) and f"Python {platform.python_version()}," in facts(home)


def test_problems_of_git_dvc_settings_and_permissions_are_named(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    subprocess.run(["git", "config", "--unset", "user.email"], cwd=home.repository, check=True)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    content = read_params(home.repository)
    content["pipelines"]["digits-flow"]["training"] |= {"devices": 4096, "batch_size": 4096}
    write_params(content, home.repository)
    (home.repository / "constraints.txt").write_text("numpy==0.0.1\nno-such-package==1.0\n")
    (home.repository / ".dvc/config").write_text("[core]\n    analytics = false\n")
    home.ensure()
    home.path.chmod(0o777)
    found = symptoms(home)
    assert "user.email" in symptom_about(found, "git").what
    assert "no remote is set" in symptom_about(found, "dvc").what
    assert "4096" in symptom_about(found, "torch").what and "training.devices" in symptom_about(found, "torch").do
    packages = symptom_about(found, "packages").what
    assert "numpy" in packages and "instead of 0.0.1" in packages and "no-such-package" not in packages
    assert "chmod go-w" in symptom_about(found, "home").do


@pytest.mark.slow
def test_stores_of_another_schema_or_out_of_reach_are_named(home: Home, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(empty, home.path)
    chain.Ledger(home.ledger_url)
    assert [each for each in symptoms(home) if each.level != "note"] == []
    with sqlite3.connect(home.path / "mlflow/mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'of another time'")
    with sqlite3.connect(home.path / "ledger.db") as database:
        database.execute("UPDATE ledger_schema SET version = 99")
    found = symptoms(home)
    assert "of another time" in symptom_about(found, "mlflow").what and "schema 99" in symptom_about(found, "ledger").what
    monkeypatch.setattr("remint.stores.ledger.database.ATTEMPTS", 1)
    monkeypatch.setenv("REMINT_LEDGER", "postgresql://ada:a-password-of-hers@127.0.0.1:9/db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://ada:a-password-of-hers@127.0.0.1:9/db")
    found = symptoms(home)
    for about in ("mlflow", "ledger"):
        assert "127.0.0.1" in symptom_about(found, about).what and "a-password-of-hers" not in str(found)


@pytest.mark.slow
@pytest.mark.parametrize(("status", "word"), [(401, "refuses these credentials"), (500, "does not answer (500)")])
def test_a_prefect_server_that_refuses_our_credentials_is_named(
    home: Home, monkeypatch: pytest.MonkeyPatch, status: int, word: str
) -> None:
    with server(status) as port:
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        assert word in symptom_about(symptoms(home), "prefect").what


def test_a_server_without_a_worker_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(200) as port:
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        found = symptoms(home)
    assert "No worker" in symptom_about(found, "worker").what and [each for each in found if each.about == "server"] == []


@pytest.mark.slow
def test_servers_open_to_other_machines_are_reported(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that listens on all addresses but is addressed as 127.0.0.1: first open, then with authentication."""
    for status, words in ((200, ["without authentication", "plain HTTP"]), (401, ["plain HTTP"])):
        with server(status, "0.0.0.0") as port:
            monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:a-password-of-hers@127.0.0.1:{port}")
            found = [each for each in symptoms(home) if each.about == "server"]
        for name in ("Prefect", "MLflow"):
            told = [each.what for each in found if each.what.startswith(name)]
            assert len(told) == len(words) and all(word in said for word, said in zip(words, told, strict=True)), told
        assert "a-password-of-hers" not in str(found)


def test_another_host_is_remote_and_https_is_not_plain_http() -> None:
    assert doctor._elsewhere("http://prefect.example.org/api") and doctor._elsewhere("http://10.0.0.1:4200/api")
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        assert not doctor._elsewhere(f"http://127.0.0.1:{listening.getsockname()[1]}/api")
    told = list(doctor._open(client.mlflow("https://mlflow.invalid")))
    assert told == []


def test_an_unsupported_python_is_reported_with_what_to_install(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [each for each in symptoms(home) if each.about == "python"] == []
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "14", "0"))
    symptom = symptom_about(symptoms(home), "python")
    assert "constraints.txt is for 3.11, 3.12, 3.13" in symptom.what and "PYTHON=/path/to/python3.13" in symptom.do
