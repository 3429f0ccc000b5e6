"""Link that takes its time, because netem is not in every kernel: python -m tests.support.slow_link SECONDS HOST SWITCH PORT.

Makes a tap ``eth0`` in the namespace HOST and a tap PORT in the namespace SWITCH, prints "ready", and carries each frame from
one to the other after SECONDS, in order, until it is killed.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
LONGEST = 65_536
MOST = 20_000  # frames on the way in one direction; a router has a limit too


def _tap(name: str, namespace: str, final: str) -> int:
    """Return the handle of a new tap, which becomes ``final`` in a namespace."""
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", name, "netns", namespace, "name", final], check=True)
    return handle


def main(seconds: str, host: str, switch: str, port: str) -> None:
    delay, pid = float(seconds), os.getpid()
    ends = _tap(f"rh{pid}", host, "eth0"), _tap(f"rs{pid}", switch, port)
    other = dict(zip(ends, reversed(ends), strict=True))
    carried: dict[int, deque[tuple[float, bytes]]] = {end: deque() for end in ends}  # by the end at which they arrive
    print("ready", flush=True)
    while True:
        first = min((frames[0][0] for frames in carried.values() if frames), default=None)
        readable, _, _ = select.select(ends, [], [], None if first is None else max(0.0, first - time.monotonic()))
        for end in readable:
            if (frame := _read(end)) and len(carried[other[end]]) < MOST:
                carried[other[end]].append((time.monotonic() + delay, frame))
        for end, frames in carried.items():
            while frames and frames[0][0] <= time.monotonic():
                _write(end, frames.popleft()[1])


def _read(end: int) -> bytes:
    try:
        return os.read(end, LONGEST)
    except OSError:  # the link is down
        time.sleep(0.01)
        return b""


def _write(end: int, frame: bytes) -> None:
    try:
        os.write(end, frame)
    except OSError:
        return


if __name__ == "__main__":
    main(*sys.argv[1:])
