"""HTTP requests to servers: real servers, proxies, certificates, and no import of vendor libraries."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import proxy_bypass

import pytest

from flows.server import client, server
from flows.server.client import NoAnswer, Server
from remint.errors import SettingsError
from remint.runtime.addresses import LOOPBACK, loopback_without_proxy
from remint.runtime.home import Home
from remint.stores.dvc import workspace_environment
from tests.support import access
from tests.support.ports import free_port

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


class Requests(BaseHTTPRequestHandler):
    """Handler that answers by path and records the requests."""

    seen: list[tuple[str, str, str | None]]

    def do_GET(self) -> None:
        self.seen.append((self.command, self.path, self.headers.get("Authorization")))
        if self.path == "/api/moved":
            self.send_response(301)
            self.send_header("Location", "/api/health")
        else:
            self.send_response(401 if self.path == "/api/admin/version" and not self.headers.get("Authorization") else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"asked": self.path}).encode())

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


class Running:
    """Server and the requests that it got."""

    def __init__(self, context: ssl.SSLContext | None = None, family: socket.AddressFamily = socket.AF_INET) -> None:
        self.seen: list[tuple[str, str, str | None]] = []
        host, made = LOOPBACK[2 if family == socket.AF_INET6 else 0], type("Server", (HTTPServer,), {"address_family": family})
        self.http = made((host, 0), type("Handler", (Requests,), {"seen": self.seen}))
        if context:
            self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.port = self.http.server_address[1]
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    servers: list[Running] = []

    def make(context: ssl.SSLContext | None = None, family: socket.AddressFamily = socket.AF_INET) -> Running:
        servers.append(Running(context, family))
        return servers[-1]

    yield make
    for each in servers:
        each.http.shutdown()
        each.http.server_close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*PROXIES, "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # so that monkeypatch also removes what a test sets by itself
        monkeypatch.delenv(name)
    yield
    for name in (*PROXIES, "NO_PROXY", "no_proxy"):
        os.environ.pop(name, None)
    client.configure_proxy("http://other.example.org/api")


def test_every_http_status_is_returned(start: Callable[..., Running]) -> None:
    running = start()
    served = client.prefect(f"http://ada:hunter2@127.0.0.1:{running.port}/api/")
    assert client.status(served) == 401
    assert client.status(served, {"Authorization": "Basic x"}) == 200
    assert client.status(served, path="health") == 200
    assert server.healthy(f"http://127.0.0.1:{running.port}/api")
    asked = [("GET", "/api/admin/version", None), ("GET", "/api/admin/version", "Basic x")]
    assert running.seen == [*asked, ("GET", "/api/health", None), ("GET", "/api/health", None)], "no password of an address"


def test_a_body_is_posted_and_a_redirect_is_followed(start: Callable[..., Running]) -> None:
    served = client.prefect(f"http://127.0.0.1:{start().port}/api")
    assert client.ask(served, "moved", {}).json() == {"asked": "/api/health"}
    answer = client.ask(served, "filter", {"Content-Type": "application/json"}, b"{}")
    assert (answer.request.method, answer.json()) == ("POST", {"asked": "/api/filter"})


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}/api", "http://127.0.0.1:no/api", "nonsense", "gopher://x/"])
def test_a_missing_answer_raises_one_error(address: str) -> None:
    served = Server("Prefect", address.format(port=free_port()), "health", None)
    assert client.status(served) is None and not client.distrusted(served)
    with pytest.raises(NoAnswer):
        client.ask(served, "health", {})


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:{port}", "socks5://127.0.0.1:{port}", "nonsense://x"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_requests_to_this_machine_never_use_a_proxy(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, proxy: str, host: str
) -> None:
    for name in PROXIES:
        monkeypatch.setenv(name, proxy.format(port=free_port()))
    assert client.status(client.prefect(f"http://{host}:{start().port}/api"), path="health") == 200


def test_requests_to_another_machine_use_the_proxy(start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = start()
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    served = client.prefect("http://prefect.example.org/api")
    assert client.status(served, path="health") == 200
    assert proxy.seen == [("GET", "http://prefect.example.org/api/health", None)]
    monkeypatch.setenv("HTTP_PROXY", f"socks5://127.0.0.1:{proxy.port}")
    assert client.status(served) is None, "the package for it is not installed"


def test_the_clients_of_prefect_and_mlflow_do_not_use_the_proxy_for_this_machine(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prefect uses httpx, MLflow uses requests: each client is made as its vendor does, under our environment."""
    import httpx
    import requests

    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("NO_PROXY", "")
    address = f"http://127.0.0.1:{start().port}/api/health"
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)
    for name, value in server.environment(Home(tmp_path, tmp_path)).items():
        monkeypatch.setenv(name, value)
    assert httpx.get(address).status_code == requests.get(address, timeout=10).status_code == 200


@pytest.mark.parametrize("name", PROXIES)
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "socks4://127.0.0.1:9", "nonsense://x"])
def test_prefects_client_reaches_this_machine_with_any_proxy(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, name: str, proxy: str
) -> None:
    """httpx makes a transport for each proxy in the environment, also for those that NO_PROXY then leaves unused."""
    import httpx

    monkeypatch.setenv(name, proxy)
    monkeypatch.setenv("NO_PROXY", "[::1]")  # an entry that httpx cannot read
    address = f"http://127.0.0.1:{start().port}/api"
    with pytest.raises((ImportError, ValueError, httpx.InvalidURL)):
        httpx.Client()
    client.configure_proxy(address)
    with httpx.Client() as made:
        assert made.get(f"{address}/health").status_code == 200

    async def ask() -> int:
        async with httpx.AsyncClient() as made:
            return (await made.get(f"{address}/health")).status_code

    assert asyncio.run(ask()) == 200
    assert {"[::1]", *LOOPBACK} == set(os.environ["no_proxy"].split(","))


def test_a_proxy_that_prefects_client_cannot_use_is_named_in_one_line(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://ada:hunter2@127.0.0.1:9")
    with pytest.raises(
        SettingsError, match=r"ALL_PROXY: .*http://prefect.example.org/api.*NO_PROXY=prefect.example.org"
    ) as caught:
        client.configure_proxy("http://prefect.example.org/api")
    monkeypatch.setenv("NO_PROXY", "[::1]")
    with pytest.raises(SettingsError, match=r"^ALL_PROXY(, NO_PROXY)?: Prefect's client"):
        client.configure_proxy("http://prefect.example.org/api")
    assert "\n" not in str(caught.value) and "hunter2" not in str(caught.value)
    monkeypatch.setenv("NO_PROXY", "prefect.example.org")
    monkeypatch.delenv("no_proxy")
    client.configure_proxy("http://prefect.example.org/api")
    monkeypatch.delenv("ALL_PROXY")
    proxy = start()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
    client.configure_proxy("http://other.example.org/api")
    import httpx

    with httpx.Client() as made:
        assert made.get("http://other.example.org/api/health").status_code == 200
    assert proxy.seen == [("GET", "http://other.example.org/api/health", None)], "another machine's server is reached by it"


def test_commands_of_ours_never_ask_the_proxy_for_this_machine(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line sets the variables first of all, so its children (git, dvc, steps, servers, workers) have them."""
    proxy, running = start(), start()
    for name in PROXIES:
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    child = f"import urllib.request as u, requests as r; u.urlopen('http://localhost:{running.port}/a'); r.get('http://127.0.0.1:{running.port}/b')"
    program = (
        "import subprocess, sys; import remint.cli; app = sys.modules['remint.cli.app']; "
        f"app.app = lambda: subprocess.run([sys.executable, '-c', {child!r}], check=True); app.main()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert [path for _, path, _ in running.seen] == ["/a", "/b"] and proxy.seen == []


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_s3_on_this_machines_ipv6_address_is_not_asked_through_a_proxy(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    from remint.stores.s3 import bucket

    proxy, running = start(), start(family=socket.AF_INET6)
    for variable in PROXIES:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv(name, f"http://[::1]:{running.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with suppress(BotoCoreError, ClientError):  # the answer is not S3's
        bucket._client(1).list_objects_v2(Bucket="bucket")
    assert len(running.seen) == 1 and proxy.seen == []


def test_dvc_asks_no_proxy_for_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its remote may have an endpoint of its own, which no variable names."""
    monkeypatch.setenv("NO_PROXY", "example.org")
    for variable, value in workspace_environment(tmp_path, Home.of(tmp_path)).items():
        if variable.lower() == "no_proxy":
            monkeypatch.setenv(variable, value)
    for host in ("127.0.0.1:9000", "localhost:9000", "[::1]:9000", "[::1]", "example.org"):
        assert proxy_bypass(host), host
    assert not proxy_bypass("[::2]:9000")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("", "127.0.0.1,localhost,::1"),
        ("example.org, localhost", "example.org,localhost,127.0.0.1,::1"),
        ("*", "*"),
        ("a.example.org, *", "*"),
    ],
)
def test_hosts_that_the_user_excluded_stay_excluded(monkeypatch: pytest.MonkeyPatch, given: str, wanted: str) -> None:
    monkeypatch.setenv("NO_PROXY", given)
    assert loopback_without_proxy() == {"NO_PROXY": wanted, "no_proxy": wanted}
    monkeypatch.setenv("no_proxy", wanted)
    assert loopback_without_proxy() == {"NO_PROXY": wanted, "no_proxy": wanted}, "it does not grow"
    monkeypatch.setenv("no_proxy", "b.example.org")
    monkeypatch.setenv("NO_PROXY", "c.example.org")
    assert loopback_without_proxy()["NO_PROXY"] == "b.example.org,c.example.org,127.0.0.1,localhost,::1", "in either spelling"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://[::1]:9000")
    assert "[::1]" not in loopback_without_proxy()["NO_PROXY"], "httpx cannot read it, and without a proxy nothing needs it"


def test_a_certificate_is_verified_with_the_configured_file(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tls").mkdir()
    authority, certificate, key = access.make_certificates(tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    address = f"https://localhost:{start(context).port}/api"
    assert client.status(client.prefect(address), path="health") is None and client.distrusted(client.prefect(address))
    monkeypatch.setenv("PREFECT_API_SSL_CERT_FILE", str(authority))
    assert client.status(client.prefect(address), path="health") == 200 and not client.distrusted(client.prefect(address))
    monkeypatch.setenv("PREFECT_API_SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    assert client.status(client.prefect(address)) is None and client.distrusted(client.prefect(address))
    assert client.distrusted(client.mlflow(address)), "each tool has its own variable"
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(authority))
    assert client.status(client.mlflow(address)) == 200


def test_the_client_imports_neither_prefect_nor_mlflow() -> None:
    program = (
        "import sys; from flows.server import client; client.status(client.prefect('http://127.0.0.1:9/api')); "
        "print([name for name in ('prefect', 'mlflow', 'torch') if name in sys.modules], 'httpx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout == "[] True\n"
