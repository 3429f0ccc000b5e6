"""Prefect's and MLflow's servers, set up as in docs/how-to/production.md, each with its own authentication, for tests."""

from __future__ import annotations

import base64
import json
import os
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.ports import free_port
from tests.support.s3 import SERVE

SETTINGS = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/users.db
admin_username = admin
auth_cache_ttl_seconds = 60
"""

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH')}{os.pathsep}/usr/sbin")
HTTP = """{user}
daemon off; pid {folder}/pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {servers}
}}
"""


@dataclass
class RunningServer:
    """Server at ``address``. ``log``: its output. ``trusted``: file of the certificates that authenticate it."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path
    trusted: Path | None = None

    def request(
        self, method: str, path: str, credentials: str | None = None, body: Any = None, **headers: str
    ) -> tuple[int, bytes]:
        """Send a request and return status and body. ``credentials``: user:password."""
        all_headers = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
        if credentials is not None:
            all_headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, all_headers, method=method)
        context = ssl.create_default_context(cafile=self.trusted) if self.trusted else None
        try:
            with urllib.request.urlopen(request, timeout=60, context=context) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def status(self, method: str, path: str, credentials: str | None = None, body: Any = None, **headers: str) -> int:
        return self.request(method, path, credentials, body, **headers)[0]

    def json(self, method: str, path: str, credentials: str | None = None, body: Any = None) -> Any:
        status, answer = self.request(method, path, credentials, body)
        assert status in (200, 201), answer
        return json.loads(answer)


@contextmanager
def run_server(
    command: list[str], address: str, environment: Mapping[str, str], log: Path, trusted: Path | None = None
) -> Iterator[RunningServer]:
    """Run a server until the block ends; enter the block when /health of ``address`` answers. It dies with the tests."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *command],
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
        )
    server = RunningServer(address, process, log, trusted)
    try:
        deadline = time.monotonic() + 180
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                if server.status("GET", "/health") == 200:
                    break
            except OSError:
                pass
            time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def run_prefect(template: Path, folder: Path, auth: str | None, **more: str) -> Iterator[RunningServer]:
    """Run Prefect's server on a copy of ``template``. ``auth``: user:password for each request; None: no authentication."""
    shutil.copytree(template, folder)
    port = free_port()
    own = {} if auth is None else {"PREFECT_SERVER_API_AUTH_STRING": auth}
    environment = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", **own, **more}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with run_server(command, f"http://127.0.0.1:{port}/api", environment, folder / "log") as server:
        yield server


def mlflow_environment(database: Path, folder: Path, port: int, password: str) -> dict[str, str]:
    """Return the environment of MLflow's server from the production page."""
    (folder / "basic_auth.ini").write_text(SETTINGS.format(folder=folder))
    return {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{database}",
        "MLFLOW_ARTIFACTS_DESTINATION": str(folder / "files"),
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "1",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port},mlflow.example.org",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "planted-for-mlflows-forms",
    }


MLFLOW = ["-m", "mlflow", "server", "--app-name", "basic-auth"]


@contextmanager
def run_mlflow(template: Path, folder: Path, password: str, **more: str) -> Iterator[RunningServer]:
    """Run MLflow's server on a copy of the database ``template``, with ``password`` for its admin."""
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    port = free_port()
    environment = {**mlflow_environment(folder / "mlflow.db", folder, port, password), **more}
    with run_server([sys.executable, *MLFLOW], f"http://127.0.0.1:{port}", environment, folder / "log") as server:
        yield server


@contextmanager
def run_nginx(servers: list[str], folder: Path, address: str, trusted: Path) -> Iterator[RunningServer]:
    """Run nginx with these server blocks; ``address``: one of them that answers /health."""
    assert NGINX is not None
    user = "user root;" if os.geteuid() == 0 else ""  # its workers write to the tests' folder
    (folder / "nginx.conf").write_text(HTTP.format(user=user, folder=folder, servers="\n".join(servers)))
    command = [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with run_server(command, address, {}, folder / "nginx.log", trusted) as server:
        yield server


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Make the files of a private authority, of a certificate for localhost, and of its key."""
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out asked.pem",
        "x509 -req -in asked.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out certificate.pem",
    ):
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    return folder / "ca.pem", folder / "certificate.pem", folder / "key.pem"
