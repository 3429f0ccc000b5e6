"""Proxies in the environment: nothing on this machine is reached through them, by the command or any of its children."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.support.team import Team

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


class Proxy:
    """Proxy that records the first line of each request and answers nothing."""

    def __init__(self) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.asked: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self.asked.append(connection.recv(200))


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    made = Proxy()
    yield made
    made.listening.close()


@pytest.mark.parametrize("scheme", ["http", pytest.param("socks5h", marks=pytest.mark.soak)])
def test_commands_do_not_ask_a_proxy_for_their_own_servers(new_team: Team, proxy: Proxy, scheme: str) -> None:
    """`deploy` starts a temporary server and asks it by Prefect's client."""
    _, environment = new_team.programs(new=True)
    environment |= dict.fromkeys(VARIABLES, f"{scheme}://127.0.0.1:{proxy.port}")
    environment |= {"NO_PROXY": "mirror.example.org", "no_proxy": ""}
    for command in ("init", "deploy"):
        done = subprocess.run(
            [f"{environment['PATH'].partition(os.pathsep)[0]}/remint", command],
            cwd=new_team.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert proxy.asked == []
