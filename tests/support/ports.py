"""A port of this machine that a server of a test may listen on."""

from __future__ import annotations

import secrets
import socket

FIRST, LAST = 12_000, 32_000


def free_port() -> int:
    """Below those that the kernel gives to connections (from 32768 on Linux).

    A server that is killed and started again at its port would else find it taken now and then: by a connection of another test, or
    by a client's of its own, which knocks at the empty port until it is given the same number and talks to itself.
    """
    while True:
        port = FIRST + secrets.randbelow(LAST - FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
