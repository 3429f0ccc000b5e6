"""Free port for a test's server."""

from __future__ import annotations

import secrets
import socket

FIRST, LAST = 12_000, 32_000


def free_port() -> int:
    """Return a free port below the kernel's range for outgoing connections (from 32768 on Linux).

    Otherwise a server that is killed and restarted would sometimes find its port in use: by a connection of another test, or
    by its own client, which retries until the kernel gives it the same port and it connects to itself.
    """
    while True:
        port = FIRST + secrets.randbelow(LAST - FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
