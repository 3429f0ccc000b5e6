"""Proxy, databases and settings taken from the production page and run: a team's servers over TLS.

The tests fill in only addresses, ports, passwords and files. All names are localhost, which needs no change to the machine.
Therefore the two servers differ by port; on the page they differ by name.
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from remint.settings.params import read_params, write_params
from tests.e2e.test_s3 import PIPELINE
from tests.support import access
from tests.support.access import RunningServer
from tests.support.ports import free_port
from tests.support.postgres import run_postgres
from tests.support.team import SOURCE, Team

pytestmark = pytest.mark.soak
PAGE = (SOURCE / "docs/how-to/production.md").read_text()
FILES = SOURCE / "deploy/systemd"
PASSWORD, USER, JOBS = "planted-for-the-proxy", "remint:planted-for-the-proxy", "jobs:planted-for-the-proxy"
SERVERS, MIB = ("prefect", "mlflow"), 2**20
HOST_VARIABLES = (
    "PATH",
    "REMINT_HOME",
    "PREFECT_HOME",
    "REMINT_DVC_REMOTE",
    "MLFLOW_HOST",
    "MLFLOW_PORT",
)  # the tests have their own
TRUST_VARIABLES = re.findall(
    r"`([A-Z_]+)`", next(line for line in PAGE.splitlines() if line.startswith("A private certificate authority"))
)
PLAIN_SERVER = "server {{ listen {port}; location / {{ proxy_pass http://127.0.0.1:{to}; proxy_set_header Host $host; }} }}"


def code_block(after: str, substitutions: dict[str, str]) -> str:
    """Return the page's first code block after a text, with substitutions."""
    return substituted(PAGE.partition(after)[2].partition("```")[2].partition("\n")[2].partition("```")[0], substitutions)


def substituted(text: str, substitutions: dict[str, str]) -> str:
    for word, value in substitutions.items():
        text = value.join(re.split(rf"(?<![A-Z_]){re.escape(word)}", text))  # PASSWORD is also a part of variable names
    return text


def settings(name: str, substitutions: dict[str, str]) -> dict[str, str]:
    """Return the variables of a file of deploy/systemd."""
    lines = [line for line in substituted((FILES / name).read_text(), substitutions).splitlines() if not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines) if name not in HOST_VARIABLES}


@dataclass(kw_only=True)
class RemoteTeam(Team):
    """Host with the worker's settings. ``plain``: addresses of the same servers without TLS."""

    prefect: RunningServer
    mlflow: RunningServer
    authority: Path
    plain: dict[str, str]
    worker: dict[str, str]
    extra_environment: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in super().environment().items() if name not in TRUST_VARIABLES}
        both = {**kept, **dict.fromkeys(TRUST_VARIABLES, str(self.authority)), **self.worker, **self.extra_environment}
        return {name: value for name, value in both.items() if value}

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)


@pytest.fixture(scope="module")
def team(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RemoteTeam]:
    if access.NGINX is None:
        pytest.skip("nginx is not installed: apt-get install nginx")
    folder = tmp_path_factory.mktemp("proxy")
    authority, certificate, key = access.make_certificates(folder)
    ports, plain = {name: free_port() for name in SERVERS}, {name: free_port() for name in SERVERS}
    with ExitStack() as stack:
        postgres = stack.enter_context(run_postgres())
        postgres.listen(certificate, key)
        substitutions = {
            **{f"https://{name}.example.org": f"https://localhost:{port}" for name, port in ports.items()},
            "mlflow.example.org": "localhost",
            "db.example.org": f"localhost:{postgres.port}",
            "/etc/remint/ca.pem": str(authority),
            "/etc/remint/basic_auth.ini": str(folder / "basic_auth.ini"),
            "s3://bucket/mlflow": str(folder / "files"),
            "PASSWORD": PASSWORD,
        }
        for statement in filter(str.strip, code_block("## PostgreSQL", {"...": PASSWORD}).split(";")):
            postgres.execute(statement)
        (folder / "basic_auth.ini").write_text(substituted((FILES / "basic_auth.ini").read_text(), substitutions))
        own = settings("prefect.env", substitutions)
        prefect = access.run_prefect(
            template / ".remint/prefect", folder / "prefect", own["PREFECT_SERVER_API_AUTH_STRING"], **own
        )
        own = settings("mlflow.env", substitutions)
        mlflow = access.run_mlflow(template / ".remint/mlflow/mlflow.db", folder / "mlflow", PASSWORD, **own)
        servers = {"prefect": stack.enter_context(prefect), "mlflow": stack.enter_context(mlflow)}
        blocks = []
        for name, server in servers.items():
            to = server.address.removesuffix("/api").rpartition(":")[2]
            place = {"443": str(ports[name]), "mlflow.example.org": "localhost", ":5000": f":{to}"}
            files = {"/etc/ssl/mlflow.pem": str(certificate), "/etc/ssl/mlflow.key": str(key)}
            blocks += [code_block("nginx, in full", {**place, **files}), PLAIN_SERVER.format(port=plain[name], to=to)]
        front = stack.enter_context(access.run_nginx(blocks, folder, f"https://localhost:{ports['mlflow']}", authority))
        jobs = {"username": "jobs", "password": PASSWORD}
        front.json("POST", "/api/2.0/mlflow/users/create", f"admin:{PASSWORD}", jobs)
        shutil.copytree(template, folder / "team", symlinks=True)
        shutil.rmtree(folder / "team/.remint")
        team = RemoteTeam(
            folder=folder / "team",
            prefect=RunningServer(f"https://localhost:{ports['prefect']}/api", front.process, front.log, authority),
            mlflow=front,
            authority=authority,
            plain={
                "PREFECT_API_URL": f"http://localhost:{plain['prefect']}/api",
                "MLFLOW_TRACKING_URI": f"http://localhost:{plain['mlflow']}",
            },
            worker=settings("worker.env", substitutions),
        )
        content = read_params(team.folder)
        content["pipelines"] = {
            "digits-flow": {**PIPELINE, "dataset": "digits", "model": {"couplings": 2, "hidden": 512, "bins": 4}}
        }
        write_params(content, team.folder)
        team.sh("git commit -qam small")
        yield team


def test_1_requests_without_credentials_or_tls_are_refused(team: RemoteTeam) -> None:
    """Missing or wrong credentials, plain HTTP on the HTTPS port, and another server name."""
    search = "/api/2.0/mlflow/experiments/search?max_results=1"
    for server, path, who in ((team.prefect, "/admin/version", USER), (team.mlflow, search, JOBS)):
        assert [server.status("GET", path, each) for each in (None, f"{who}-wrong", who)] == [401, 401, 200]
        port = int(server.address.removesuffix("/api").rpartition(":")[2])
        plain = http.client.HTTPConnection("localhost", port, timeout=60)
        plain.request("GET", "/health")
        answer = plain.getresponse()
        assert answer.status == 400 and b"plain HTTP request was sent to HTTPS port" in answer.read()
        with (
            socket.create_connection(("localhost", port), timeout=60) as bare,
            pytest.raises(ssl.SSLError, match="UNRECOGNIZED_NAME"),
        ):
            team.context().wrap_socket(bare, server_hostname="other.example.org")


def test_2_redirections_keep_https(team: RemoteTeam) -> None:
    """A server that does not know of the proxy's TLS would redirect clients, and their passwords, to plain HTTP."""
    place = team.prefect.address.removeprefix("https://").removesuffix("/api")
    connection = http.client.HTTPSConnection(place, timeout=60, context=team.context())
    connection.request(
        "GET", "/api/admin/version/", headers={"Authorization": f"Basic {base64.b64encode(USER.encode()).decode()}"}
    )
    answer = connection.getresponse()
    assert answer.status == 307 and str(answer.getheader("Location")).startswith("https://"), answer.getheader("Location")


@pytest.mark.parametrize("path", ["events/in", "events/out", "logs/out"])
def test_3_websockets_pass_and_require_the_password(team: RemoteTeam, path: str) -> None:
    address = f"{team.prefect.address.replace('https', 'wss')}/{path}"
    for word in (USER, f"{USER}-wrong"):
        with connect(address, ssl=team.context(), subprotocols=[Subprotocol("prefect")]) as channel:
            channel.send(json.dumps({"type": "auth", "token": word}))
            if word == USER:
                assert json.loads(channel.recv(timeout=60))["type"] == "auth_success"
            else:
                with pytest.raises(ConnectionClosedError, match="Invalid token"):
                    channel.recv(timeout=60)


def test_4_a_run_uses_the_settings_of_a_worker(team: RemoteTeam) -> None:
    (outcome,) = json.loads(team.remint("run", "digits-flow", "--json").stdout)
    assert outcome["decision"]["verdict"] == "promoted"
    (version,) = json.loads(team.remint("models", "--json").stdout)
    assert version["aliases"] == ["champion"]
    files = [each.stat().st_size for each in (team.folder.parent / "files").rglob("*.safetensors")]
    assert max(files) > 2 * MIB, files  # by default nginx accepts bodies of at most 1 MiB
    assert not (team.folder / ".remint/mlflow").exists() and not (team.folder / ".remint/ledger.db").exists()
    found = team.prefect.json("POST", "/events/filter", USER, {"filter": {"event": {"name": ["prefect.task-run.Completed"]}}})
    assert found["total"] > 0  # clients report task states only by websocket
    assert team.json("audit") == []


@pytest.mark.parametrize(
    ("variable", "value", "status", "words"),
    [
        ("PREFECT_API_SSL_CERT_FILE", "", 1, "trusted here"),
        ("PREFECT_API_SSL_CERT_FILE", "/nowhere.pem", 2, "PREFECT_API_SSL_CERT_FILE"),
        ("MLFLOW_TRACKING_SERVER_CERT_PATH", "", 1, "trusted here"),
        ("PGSSLROOTCERT", "", 1, "root certificate file"),
    ],
)
def test_5_an_untrusted_authority_is_a_one_line_error(
    team: RemoteTeam, variable: str, value: str, status: int, words: str
) -> None:
    assert variable in TRUST_VARIABLES
    team.extra_environment = {variable: value}
    try:
        done = team.remint("run", "digits-flow", "--set", "training.seed=1", status=status)
        found = json.loads(team.remint("doctor", "--json", status=1).stdout)
    finally:
        team.extra_environment = {}
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and words in last, done.stderr
    assert len(found) == 1 and words in found[0]["what"] + found[0]["do"], found
    if words == "trusted here":
        assert variable in last and variable in found[0]["what"] + found[0]["do"]


def test_6_the_doctor_warns_only_of_plain_http(team: RemoteTeam) -> None:
    assert team.json("doctor") == []
    team.extra_environment = team.plain
    try:
        found = json.loads(team.remint("doctor", "--json", status=1).stdout)
    finally:
        team.extra_environment = {}
    assert [(each["level"], each["what"].split()[0]) for each in found] == [("warning", "Prefect"), ("warning", "MLflow")], found
    assert all("plain HTTP" in each["what"] for each in found)
