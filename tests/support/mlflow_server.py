"""Real MLflow server for tests that can be killed and restarted quickly, and a proxy that loses its replies.

python -m tests.support.mlflow_server PORT DATABASE FILES    imports the server once; for each line on standard input, forks a server
                                                     and prints its process id
"""

from __future__ import annotations

import gc
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from remint.runtime.parent import die_with_parent
from tests.support.ports import free_port


@dataclass
class Server:
    """MLflow server on a SQLite database; it also serves the artifacts."""

    port: int
    parent: subprocess.Popen[str]
    log: Path
    pid: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert self.parent.stdin is not None and self.parent.stdout is not None
        self.parent.stdin.write("serve\n")
        self.parent.stdin.flush()
        self.pid = int(self.parent.stdout.readline())

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until the server answers."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                probe = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
                probe.request("GET", "/health")
                if probe.getresponse().status == 200:
                    return
            except OSError:
                assert self.parent.poll() is None, "the server did not start"
                time.sleep(0.05)
        raise AssertionError(f"the server does not answer: {self.log.read_text()[-2000:]}")


@contextmanager
def run_server(home: Path) -> Iterator[Server]:
    """Run a server on the MLflow database of a home."""
    port = free_port()
    database = f"sqlite:///{home}/mlflow/mlflow.db"
    command = [sys.executable, "-m", "tests.support.mlflow_server", str(port), database, str(home / "files")]
    with (home / "server.log").open("w") as log:
        parent = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    server = Server(port, parent, home / "server.log")
    try:
        server.start()
        server.wait()
        yield server
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()


@dataclass
class LossyProxy:
    """Proxy that forwards every request and loses a share of the replies to POSTs, after the server has handled them."""

    port: int  # of the server
    share: float
    dice: random.Random
    cut: bool = False  # lose the reply after its header, instead of before it
    address: str = ""
    lost: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def drops_reply(self) -> bool:
        with self.lock:
            drops = self.dice.random() < self.share
            self.lost += drops
            return drops


@contextmanager
def lossy_proxy(port: int, share: float, dice: random.Random, *, cut: bool = False) -> Iterator[LossyProxy]:
    made = LossyProxy(port, share, dice, cut)

    class Handler(BaseHTTPRequestHandler):
        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            server = http.client.HTTPConnection("127.0.0.1", made.port, timeout=60)
            headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")}
            server.request(self.command, self.path, body, headers)
            reply = server.getresponse()
            content = reply.read()
            server.close()
            if self.command == "POST" and made.drops_reply():
                self.close_connection = True
                if made.cut:
                    self.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(reply.status)
            for key, value in reply.getheaders():
                if key.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    made.address = f"http://127.0.0.1:{proxy.server_port}"
    try:
        yield made
    finally:
        proxy.shutdown()
        proxy.server_close()


def main(port: str, database: str, files: str) -> None:
    os.environ.update(
        {
            "_MLFLOW_SERVER_FILE_STORE": database,
            "_MLFLOW_SERVER_REGISTRY_STORE": database,
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": files,
        }
    )
    die_with_parent()
    import uvicorn
    from mlflow.server.fastapi_app import app

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies: killed servers need no wait()
    for _ in sys.stdin:
        gc.freeze()  # else the child's first collection copies all pages
        child = os.fork()
        if not child:
            die_with_parent()
            os.dup2(2, 1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")
            os._exit(0)
        print(child, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
