"""Programs that answer a line on standard input with a line of JSON, so that many trials share one import."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Ask = Callable[[int | None], dict[str, Any]]  # a number; None: only read the next answer


@contextmanager
def start_program(module: str, arguments: Sequence[str], log: Path) -> Iterator[Ask]:
    """Run ``python -m module``. Its standard error goes to the file ``log``."""
    with log.open("w") as stream:
        command = [sys.executable, "-m", module, *arguments]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True)
    assert child.stdin and child.stdout
    requests, answers = child.stdin, child.stdout

    def ask(number: int | None) -> dict[str, Any]:
        if number is not None:
            print(number, file=requests, flush=True)
        for line in answers:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise AssertionError(log.read_text()[-3000:])

    try:
        yield ask
    finally:
        requests.close()
        child.wait(60)
    assert child.returncode == 0, log.read_text()[-3000:]
