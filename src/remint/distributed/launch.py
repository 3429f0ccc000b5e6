"""Start N ranks on this machine with torchrun, which ends when this process ends.

``run_process`` (remint.runtime.processes) starts this file as a program. The program asks the kernel for a signal at its
parent's death, and becomes torchrun. Each rank asks for a signal at torchrun's death (run_step). If any process
above the ranks is killed, the ranks get SIGTERM, finish their step, write a checkpoint and end. The ranks report through a
file of events. A rank that is stopped while all others wait for it is killed (watchdog.py), and all ranks start again.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remint.distributed import watchdog
from remint.errors import Interrupted, RemintError, StepError, by_name
from remint.runtime import processes, scratch
from remint.runtime.events import EVENTS, emit
from remint.runtime.parent import die_with_parent

PARENT_EVENTS = {"started", "ended", "error"}  # events that this process emits itself, and does not forward
PROGRAM = "remint.distributed.launch"
RESTARTS = 3  # most restarts after a stopped rank


def run_ranks(command: Sequence[str], count: int, threads: int) -> None:
    """Run ``python *command`` as ``count`` ranks of ``threads`` CPU threads, until all have ended.

    Their events are forwarded. If one rank was stopped, all start again, and training resumes from its last checkpoint.
    Raises the RemintError of a rank with its class (a user's mistake stays a UserError); StepError if a rank fails in
    another way; Interrupted if this process is asked to stop.
    """
    for restart in range(RESTARTS + 1):
        with watchdog.kill_stopped_ranks(PROGRAM) as killed:
            try:
                return _run_once(command, count, threads)
            except RemintError:  # the other ranks' errors only report the killed rank
                if not killed or restart == RESTARTS or processes.stopping.is_set():
                    raise
        emit("restarted", processes=count, message=f"process {killed[0]} was stopped, and all others waited for it")


def _run_once(command: Sequence[str], count: int, threads: int) -> None:
    failures: list[RemintError] = []
    seen = 0

    def forward_event(event: dict[str, Any]) -> None:
        nonlocal seen
        seen += 1
        kind = event.pop("event")
        event.pop("at")
        if kind == "error":
            failures.append(by_name(event["kind"], event["message"]))
        elif kind not in PARENT_EVENTS:
            emit(kind, **event)

    with scratch.folder() as folder:
        log, events = folder / "log", folder / "events.jsonl"
        env = {**os.environ, EVENTS: str(events), "OMP_NUM_THREADS": str(threads)}
        program = [sys.executable, "-m", PROGRAM, str(count), *command]
        try:
            status = processes.run_process(program, cwd=Path.cwd(), env=env, log=log, events=events, on_event=forward_event)
        except Interrupted:
            remaining = events.read_text().splitlines()[seen:] if events.exists() else []
            for line in remaining:  # written after the listener stopped
                forward_event(json.loads(line))
            raise
        if status:
            lines = log.read_text(errors="replace").splitlines()
            if not failures:
                print("\n".join(lines[-60:]), file=sys.stderr)
            raise (
                failures[0] if failures else StepError(f"one of {count} processes failed (status {status}): {_error_line(lines)}")
            )


def _error_line(lines: Sequence[str]) -> str:
    """Return the line of a log that names the error: the last line of the first traceback, or the last line of the log."""
    for index, line in enumerate(lines):
        if "Traceback (most recent call last)" in line:
            prefix = line.partition("Traceback")[0]
            for later in lines[index + 1 :]:
                if later.startswith(prefix) and not later.removeprefix(prefix).startswith(" "):
                    return later.removeprefix(prefix)
    return lines[-1] if lines else "no output"


def _become_torchrun(count: str, *command: str) -> None:
    die_with_parent()  # before the import, which takes seconds
    from torch.distributed.run import main

    main(["--standalone", f"--nproc-per-node={count}", *command])


if __name__ == "__main__":
    _become_torchrun(*sys.argv[1:])
