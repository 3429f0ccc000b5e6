"""Servers with their own authentication: the permissions of each role (case 30), a run with credentials from the environment,
and a search that finds none of the secrets afterwards (case 29). The tests build on each other."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from remint.settings.params import write_params
from tests.e2e.test_s3 import PIPELINE
from tests.support import access
from tests.support.access import RunningServer
from tests.support.leaks import Search, make_secrets, record_command_lines
from tests.support.ports import free_port
from tests.support.postgres import Postgres
from tests.support.s3 import AWS_VARIABLES, PASSWORD, Server
from tests.support.team import Team
from tests.support.trials import Trials

REST, FILES = "/api/2.0/mlflow", "/api/2.0/mlflow-artifacts/artifacts"
NAMES = (
    "prefect", "mlflow admin", "mlflow reader", "mlflow editor", "mlflow jobs", "ledger", "PREFECT_API_KEY", "GITHUB_TOKEN",
    "PGPASSWORD", "HF_TOKEN", "a wrong one", "origin", "dvc of others",
)  # fmt: skip
SECRETS = make_secrets(random.Random(29), NAMES)


@dataclass(kw_only=True)
class GuardedTeam(Team):
    """Team whose servers require credentials. ``printed``: output of its commands; ``command_lines``: of all processes."""

    prefect: RunningServer
    mlflow: RunningServer
    server: Server
    store: str
    ledger: str
    extra_environment: dict[str, str] = field(default_factory=dict)
    printed: list[str] = field(default_factory=list)
    command_lines: set[str] = field(default_factory=set)

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in super().environment().items() if name not in AWS_VARIABLES}
        return {
            **kept,
            **self.server.environment(),
            "PREFECT_API_URL": self.prefect.address,
            "PREFECT_API_AUTH_STRING": f"ada:{SECRETS['prefect']}",
            "MLFLOW_TRACKING_URI": self.mlflow.address,
            "MLFLOW_TRACKING_USERNAME": "jobs",
            "MLFLOW_TRACKING_PASSWORD": SECRETS["mlflow jobs"],
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "REMINT_LEDGER": self.ledger,
            "REMINT_DVC_REMOTE": f"s3://{self.store}/dvc",
            **{name: SECRETS[name] for name in ("PREFECT_API_KEY", "GITHUB_TOKEN", "PGPASSWORD", "HF_TOKEN")},
            **self.extra_environment,
        }

    def remint(self, *arguments: str, status: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        done = super().remint(*arguments, status=status, cwd=cwd)
        self.printed += [done.stdout, done.stderr]
        return done


@pytest.fixture(scope="module")
def prefect(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("prefect") / "home"
    with access.run_prefect(template / ".remint/prefect", folder, f"ada:{SECRETS['prefect']}") as running:
        yield running


@pytest.fixture(scope="module")
def mlflow(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """MLflow's server with a reader, an editor, a user for the jobs, an experiment and a model."""
    folder = tmp_path_factory.mktemp("mlflow") / "server"
    with access.run_mlflow(template / ".remint/mlflow/mlflow.db", folder, SECRETS["mlflow admin"]) as running:
        admin = f"admin:{SECRETS['mlflow admin']}"
        for name in ("reader", "editor", "jobs"):
            running.json("POST", f"{REST}/users/create", admin, {"username": name, "password": SECRETS[f"mlflow {name}"]})
        running.json("POST", f"{REST}/experiments/create", admin, {"name": "kept"})
        running.json("POST", f"{REST}/registered-models/create", admin, {"name": "kept"})
        assert running.status("PUT", f"{FILES}/1/run/artifacts/weights", admin, b"bytes") == 200
        role = running.json("POST", "/api/3.0/mlflow/roles/create", admin, {"workspace": "default", "name": "editors"})["role"][
            "id"
        ]
        for kind in ("experiment", "registered_model"):
            grant = {"role_id": role, "resource_type": kind, "resource_pattern": "*", "permission": "EDIT"}
            running.json("POST", "/api/3.0/mlflow/roles/permissions/add", admin, grant)
        running.json("POST", "/api/3.0/mlflow/roles/assign", admin, {"username": "editor", "role_id": role})
        yield running


@pytest.fixture(scope="module")
def team(
    cached_template: Path,
    tmp_path_factory: pytest.TempPathFactory,
    prefect: RunningServer,
    mlflow: RunningServer,
    s3_server: Server,
    postgres: Postgres,
) -> GuardedTeam:
    folder = tmp_path_factory.mktemp("guarded") / "team"
    shutil.copytree(cached_template, folder, symlinks=True)
    for made in ("mlflow", "prefect", "ledger.db"):
        place = folder / ".remint" / made
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    postgres.add_password_role("keeper", SECRETS["ledger"])
    name = postgres.database("guarded").partition("?")[0].rpartition("/")[2]
    ledger = f"postgresql://keeper:{urllib.parse.quote(SECRETS['ledger'], safe='')}@/{name}?host={postgres.folder}"
    postgres.execute(f'ALTER DATABASE "{name}" OWNER TO keeper')
    team = GuardedTeam(folder=folder, prefect=prefect, mlflow=mlflow, server=s3_server, store=s3_server.bucket({}), ledger=ledger)
    team.sh(f"git remote add origin https://ada:{urllib.parse.quote(SECRETS['origin'], safe='')}@git.invalid/team.git")
    pipeline = {**PIPELINE, "dataset": "digits"}
    write_params(
        {"datasets": {"digits": {"source": "sklearn:digits", "kind": "image"}}, "pipelines": {"digits-flow": pipeline}}, folder
    )
    team.sh("git commit -qam small")
    other = f"['remote \"other\"']\n    url = s3://elsewhere/dvc\n    secret_access_key = {SECRETS['dvc of others']}\n"
    (folder / ".dvc/config.local").write_text(other)
    return team


ROLES = ("nobody", "a wrong password", "reader", "editor", "admin")
OK, UNAUTHORIZED, FORBIDDEN = 200, 401, 403


def _matrix() -> list[tuple[str, str, str, Any, tuple[int, ...]]]:
    """Return server, method, path, body, and the status for each of ROLES. {role} is replaced, so that created names are new."""
    model, files = {"name": "kept"}, f"{FILES}/1/run/artifacts"
    read, edit, admin_only = (
        (UNAUTHORIZED, UNAUTHORIZED, OK, OK, OK),
        (UNAUTHORIZED, UNAUTHORIZED, FORBIDDEN, OK, OK),
        (UNAUTHORIZED, UNAUTHORIZED, FORBIDDEN, FORBIDDEN, OK),
    )
    prefect = (UNAUTHORIZED, UNAUTHORIZED, UNAUTHORIZED, UNAUTHORIZED, OK)  # one password, with all permissions
    return [
        ("mlflow", "GET", "/health", None, (OK,) * 5),
        ("mlflow", "GET", "/", None, read),
        ("mlflow", "GET", "/version", None, read),
        ("mlflow", "GET", f"{REST}/experiments/search?max_results=1", None, read),
        ("mlflow", "GET", "/ajax-api/2.0/mlflow/experiments/search?max_results=1", None, read),
        ("mlflow", "GET", f"{REST}/registered-models/get?name=kept", None, read),
        ("mlflow", "GET", f"{files}/weights", None, read),
        ("mlflow", "GET", f"{FILES}?path=1", None, read),
        ("mlflow", "POST", f"{REST}/runs/create", {"experiment_id": "1"}, edit),
        ("mlflow", "POST", f"{REST}/registered-models/set-tag", {**model, "key": "a", "value": "b"}, edit),
        ("mlflow", "PATCH", f"{REST}/registered-models/update", {**model, "description": "kept"}, edit),
        ("mlflow", "PUT", f"{files}/more", b"bytes", edit),
        ("mlflow", "DELETE", f"{REST}/registered-models/alias", {**model, "alias": "none"}, admin_only),
        ("mlflow", "POST", f"{REST}/users/create", {"username": "new-{role}", "password": "a long password"}, admin_only),
        ("mlflow", "GET", f"{REST}/users/list", None, read),
        ("mlflow", "PATCH", f"{REST}/users/update-admin", {"username": "reader", "is_admin": False}, admin_only),
        ("mlflow", "GET", "/signup", None, admin_only),
        ("mlflow", "DELETE", f"{REST}/registered-models/delete", {"name": "kept"}, admin_only),
        ("prefect", "GET", "/health", None, (OK,) * 5),
        ("prefect", "GET", "/ready", None, (OK,) * 5),
        ("prefect", "GET", "/admin/version", None, prefect),
        ("prefect", "GET", "/admin/settings", None, prefect),
        ("prefect", "POST", "/flow_runs/filter", {}, prefect),
        ("prefect", "POST", "/work_pools/filter", {}, prefect),
        (
            "prefect",
            "POST",
            "/variables/",
            {"name": "new", "value": "x"},
            (UNAUTHORIZED, UNAUTHORIZED, UNAUTHORIZED, UNAUTHORIZED, 201),
        ),
        ("prefect", "DELETE", "/variables/name/new", None, (UNAUTHORIZED, UNAUTHORIZED, UNAUTHORIZED, UNAUTHORIZED, 204)),
        ("prefect", "GET", "/variables/name/system-health", None, (UNAUTHORIZED, UNAUTHORIZED, UNAUTHORIZED, UNAUTHORIZED, 404)),
    ]


@pytest.mark.case(30)
def test_1_who_may_what(trials: Trials, prefect: RunningServer, mlflow: RunningServer) -> None:
    """Request each route in each role, in random order. The admin is last: it deletes things that the others request."""
    servers = {"prefect": prefect, "mlflow": mlflow}
    matrix = _matrix()
    for trial in trials(short=1, full=1):
        for server, method, path, body, wanted in matrix:
            for role in [*trial.random.sample(ROLES[:-1], 4), ROLES[-1]]:
                admin = f"ada:{SECRETS['prefect']}" if server == "prefect" else f"admin:{SECRETS['mlflow admin']}"
                credentials = {"nobody": None, "a wrong password": f"{admin.partition(':')[0]}:wrong", "admin": admin}
                name = credentials.get(role, f"{role}:{SECRETS.get(f'mlflow {role}')}")
                filled = (
                    json.loads(json.dumps(body).replace("{role}", role.replace(" ", "-"))) if isinstance(body, dict) else body
                )
                found = servers[server].status(method, path, name, filled)
                assert found == wanted[ROLES.index(role)], f"{role}: {method} {path} of {server}: {found}"
                trial.note(asked=1)


@pytest.mark.case(30)
def test_2_another_name_another_page_and_a_path_that_leads_out(trials: Trials, mlflow: RunningServer) -> None:
    """MLflow checks hosts, origins and paths, as set on the production page. Prefect's server is behind a proxy or flows/server/guard.py."""
    for trial in trials(short=1, full=1):
        admin, read = f"admin:{SECRETS['mlflow admin']}", f"{REST}/experiments/search?max_results=1"
        for host in ("evil.example", "10.evil.example", "127.0.0.1.evil.example", "127.0.0.1:1", "192.168.evil.example"):
            assert mlflow.status("GET", read, admin, Host=host) == FORBIDDEN, host
            assert mlflow.status("GET", "/", admin, Host=host) == FORBIDDEN, host
        assert mlflow.status("GET", read, admin, Host="mlflow.example.org") == OK
        for origin in ("https://evil.example", "null", "http://127.0.0.1.evil.example"):
            changed = mlflow.status("POST", f"{REST}/experiments/create", admin, {"name": f"from {origin}"}, Origin=origin)
            assert changed == FORBIDDEN, origin
        for path in ("../../users.db", "..%2f..%2fusers.db", "%2e%2e/%2e%2e/users.db", "1/../../../users.db"):
            assert mlflow.status("GET", f"{FILES}/{path}", admin) in (400, 404), path
            assert mlflow.status("PUT", f"{FILES}/{path}", admin, b"bytes") in (400, 404), path
        trial.note(let_in=0)


BROKEN = (
    ({"MLFLOW_AUTH_ADMIN_PASSWORD": ""}, "MLFLOW_AUTH_ADMIN_PASSWORD"),
    ({"MLFLOW_FLASK_SERVER_SECRET_KEY": ""}, "MLFLOW_FLASK_SERVER_SECRET_KEY"),
    ({"MLFLOW_AUTH_CONFIG_PATH": "/nowhere/basic_auth.ini"}, "KeyError: 'mlflow'"),
)


@pytest.mark.case(30)
def test_3_a_broken_configuration_opens_no_server(trials: Trials, template: Path, tmp_path: Path) -> None:
    shutil.copy(template / ".remint/mlflow/mlflow.db", tmp_path / "mlflow.db")
    own = access.mlflow_environment(tmp_path / "mlflow.db", tmp_path, free_port(), "a password")
    for trial in trials(short=1, full=len(BROKEN)):
        broken, words = BROKEN[trial.number]
        environment = {**Team(tmp_path).environment(), **own, **broken}
        command = [sys.executable, *access.MLFLOW]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode != 0 and words in done.stdout + done.stderr, done.stderr
        trial.note(opened=0)


@pytest.mark.soak
@pytest.mark.case(29)
def test_4_a_run_takes_its_credentials_from_the_environment(team: GuardedTeam) -> None:
    with record_command_lines(team.command_lines):
        (outcome,) = json.loads(team.remint("run", "digits-flow", "--reason", "a canary of the search", "--json").stdout)
    assert outcome["trained"] and outcome["version"] == 1 and outcome["decision"]["verdict"] == "promoted"
    (version,) = json.loads(team.remint("models", "--json").stdout)
    assert version["aliases"] == ["champion"]
    assert not (team.folder / ".remint/mlflow").exists() and not (team.folder / ".remint/ledger.db").exists()
    assert json.loads(team.remint("doctor", "--json").stdout) == []


@pytest.mark.soak
@pytest.mark.case(29)
@pytest.mark.parametrize(
    ("variable", "value", "command", "words"),
    [
        ("PREFECT_API_AUTH_STRING", "ada:wrong-{secret}", ["run", "digits-flow"], "refuses these credentials"),
        ("MLFLOW_TRACKING_PASSWORD", "wrong-{secret}", ["models"], "MLflow could not list models"),
    ],
)
def test_5_wrong_credentials_end_in_one_line(
    team: GuardedTeam, variable: str, value: str, command: list[str], words: str
) -> None:
    team.extra_environment = {variable: value.format(secret=SECRETS["a wrong one"])}
    try:
        with record_command_lines(team.command_lines):
            done = team.remint(*command, status=1)
    finally:
        team.extra_environment = {}
    assert words in done.stdout + done.stderr


@pytest.mark.soak
@pytest.mark.case(29)
def test_6_no_secret_is_anywhere(trials: Trials, team: GuardedTeam, postgres: Postgres) -> None:
    """Search files, archives in them, git, S3, both databases, the servers' logs, printed output, and command lines."""
    for trial in trials(short=1, full=1):
        canary = "a canary of the search"
        search = Search([*SECRETS.values(), PASSWORD, canary])
        servers = [team.prefect.log.parent, team.mlflow.log.parent]
        user_files = {team.folder / ".git/config", team.folder / ".dvc/config.local"}  # a person keeps two of the secrets there
        search.tree(team.folder, skip=user_files)
        search.git(team.folder)
        for folder in servers:
            search.tree(folder)
        search.bucket(team.server.client, team.store)
        search.postgres(team.ledger)
        search.texts("what was said", *team.printed)
        search.texts("a process", *team.command_lines)
        for kind in ("table ledger", *map(str, servers)):
            assert any(place.startswith(kind) for place in search.found[canary]), (kind, search.found[canary])
        assert any("git" in line and "checkout" in line for line in team.command_lines) and any(
            "dvc" in line for line in team.command_lines
        )
        assert search.places > 100
        found = {name: search.found[word] for name, word in {**SECRETS, "s3": PASSWORD}.items() if search.found[word]}
        assert not found, found
        trial.note(found=0, places=search.places)
