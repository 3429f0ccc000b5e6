"""Real S3 server for tests (JuiceFS's gateway, which is MinIO's, over a folder), and a proxy that corrupts its answers."""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.ports import free_port

USER, PASSWORD = "remint-tests", "planted-secret-8d3fb1"
JUICEFS = str(Path(sys.executable).parent / "juicefs")
# The server dies with the tests, even if they are killed.
SERVE = (
    "import os, sys; from remint.runtime.parent import die_with_parent; die_with_parent(); os.execv(sys.argv[1], sys.argv[1:])"
)
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
AWS_VARIABLES = (
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL_S3",
)


@dataclass
class Server:
    """A running S3 server."""

    address: str

    def environment(self) -> dict[str, str]:
        """Return the environment that selects this server and no other."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
            "AWS_CONFIG_FILE": f"{os.devnull}/none",
            "AWS_SHARED_CREDENTIALS_FILE": f"{os.devnull}/none",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @cached_property
    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.address, aws_access_key_id=USER, aws_secret_access_key=PASSWORD, region_name="us-east-1"
        )

    def bucket(self, objects: Mapping[str, bytes]) -> str:
        """Make a new bucket with these objects."""
        name = f"b{uuid.uuid4().hex}"
        self.client.create_bucket(Bucket=name)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: self.put(name, key, objects[key]), objects))
        return name

    def put(self, bucket: str, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=bucket, Key=key, Body=content)

    def delete(self, bucket: str, key: str) -> None:
        self.client.delete_object(Bucket=bucket, Key=key)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Gateway on a free port, until the tests end."""
    with gateway(tmp_path_factory.mktemp("s3")) as server:
        yield server


@contextmanager
def gateway(folder: Path, host: str = "127.0.0.1") -> Iterator[Server]:
    """Yield a gateway on a free port of an address of this host while the block runs."""
    (folder / "data").mkdir()
    meta = f"sqlite3://{folder}/meta.db"
    environment = {**os.environ, "MINIO_ROOT_USER": USER, "MINIO_ROOT_PASSWORD": PASSWORD, "HOME": str(folder)}
    make = [JUICEFS, "format", "--storage", "file", "--bucket", f"{folder}/data/", meta, "remint"]
    subprocess.run(make, check=True, capture_output=True, env=environment)
    port = free_port()
    serve = [JUICEFS, "gateway", "--multi-buckets", "--keep-etag", "--no-banner", "--cache-dir", f"{folder}/cache"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, *serve, "--log", f"{folder}/log", meta, f"{host}:{port}"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        server = Server(f"http://{host}:{port}")
        _wait(server.address, process, folder / "log")
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(address: str, gateway: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and gateway.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5)
        except urllib.error.HTTPError:
            return  # 403: the server answers
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"the S3 server did not start: {log.read_text()[-2000:]}")


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The S3 server, configured for boto3 by environment variables as for a user."""
    for name in AWS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    forget_clients()
    return s3_server


def forget_clients() -> None:
    """Drop MLflow's cached S3 clients: its cache does not know that the endpoint changed."""
    repository = sys.modules.get("mlflow.store.artifact.s3_artifact_repo")
    if repository is not None:
        repository._cached_get_s3_client.cache_clear()


@dataclass
class Proxy:
    """Proxy between boto3 and the server. Keys in ``object_paths`` and in the hooks are plain text."""

    upstream: str
    address: str = ""
    failing: float = 0.0  # share of requests answered with 503
    resetting: float = 0.0  # share of requests with a connection reset, half of them within the body
    stalling: float = 0.0  # share of requests whose connection is reset after ``stall`` seconds
    stall: float = 0.0
    rewrite: Callable[[str, bytes], bytes] = lambda _path, body: body  # changes the body of a GET
    keeps_content_length: bool = False  # keep the old Content-Length for a rewritten body
    on_request: Callable[[str], None] = lambda _path: None  # called with the path before a request is forwarded
    object_paths: list[str] = field(default_factory=list)  # paths of the GETs of objects
    listings: int = 0
    refused: int = 0
    dice: random.Random = field(default_factory=lambda: random.Random(0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fate(self) -> str:
        """Draw the fate of the next request: "" means a normal answer."""
        with self.lock:
            thrown, ends = self.dice.random(), 0.0
            for fate in ("failing", "resetting", "stalling"):
                ends += getattr(self, fate)
                if thrown < ends:
                    self.refused += 1
                    return "cut" if fate == "resetting" and thrown > ends - self.resetting / 2 else fate
            return ""


@pytest.fixture
def proxy(s3: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Proxy, configured as boto3's endpoint."""
    made = Proxy(s3.address)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            if self.command == "GET":
                with made.lock:
                    if "list-type=" in parts.query:
                        made.listings += 1
                    else:
                        made.object_paths.append(path.split("/", 2)[2])
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fate = made.fate()
            if fate == "failing":
                self._answer(503, {"Content-Type": "application/xml"}, SLOW_DOWN)
                return
            if fate in ("resetting", "stalling"):
                time.sleep(made.stall if fate == "stalling" else 0.0)
                self._reset()
                return
            made.on_request(path)
            connection = http.client.HTTPConnection(urlsplit(made.upstream).netloc)
            connection.request(self.command, self.path, sent, dict(self.headers))  # the signature covers the Host header too
            reply = connection.getresponse()
            body = reply.read()
            if fate == "cut":
                self._answer(reply.status, dict(reply.headers), body[: len(body) // 2], len(body))
                self._reset()
            else:
                rewritten = made.rewrite(path, body)
                self._answer(reply.status, dict(reply.headers), rewritten, len(body) if made.keeps_content_length else None)
            connection.close()

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        def _reset(self) -> None:
            """Reset the connection, like a router that has lost its state."""
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def _answer(self, status: int, headers: Mapping[str, str], body: bytes, length: int | None = None) -> None:
            if self.command == "HEAD":
                length = int(headers.get("Content-Length", 0))
            self.close_connection = length not in (None, len(body)) and self.command != "HEAD"
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "date", "server", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)
                self.wfile.flush()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", made.address)
    yield made
    server.shutdown()
    server.server_close()
