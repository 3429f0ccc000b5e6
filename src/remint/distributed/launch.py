"""N processes on this machine: torchrun starts this same program N times, and dies with us.

``run`` (remint.runtime.processes) starts this file as a program, which asks the kernel for a signal at its parent's death
and becomes torchrun; each rank asks the same of torchrun (step.run). So whoever is killed, however, the ranks get
SIGTERM, finish their step, write a checkpoint and end. What the ranks say comes back through a file of events.
A rank that was stopped, and for which all others wait, is killed (watchdog.py), and the ranks are started again.
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

PARENT_EVENTS = {"started", "ended", "error"}  # events that this process speaks for itself
PROGRAM = "remint.distributed.launch"
RESTARTS = 3  # times that ranks are started again since one was stopped


def run_ranks(command: Sequence[str], count: int, threads: int) -> None:
    """Runs ``python *command`` as ``count`` ranks of ``threads`` CPU threads, until all have ended.

    Their progress is handed on. Where one was stopped all are started again: a training goes on from its last checkpoint.
    Raises what a rank raised, if that was one of ours (a user's mistake stays one); StepError where one ended otherwise;
    Interrupted where this process was asked to stop.
    """
    for restart in range(RESTARTS + 1):
        with watchdog.watched(PROGRAM) as killed:
            try:
                return _run_once(command, count, threads)
            except RemintError:  # the other ranks' words are about the one that was killed
                if not killed or restart == RESTARTS or processes.stopping.is_set():
                    raise
        emit("restarted", processes=count, message=f"process {killed[0]} was stopped, and all others waited for it")


def _run_once(command: Sequence[str], count: int, threads: int) -> None:
    failures: list[RemintError] = []
    seen = 0

    def hand_on(event: dict[str, Any]) -> None:
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
            status = processes.run_process(program, cwd=Path.cwd(), env=env, log=log, events=events, on_event=hand_on)
        except Interrupted:
            for line in (
                events.read_text().splitlines()[seen:] if events.exists() else ()
            ):  # last words, after it stopped listening
                hand_on(json.loads(line))
            raise
        if status:
            words = log.read_text(errors="replace").splitlines()
            if not failures:
                print("\n".join(words[-60:]), file=sys.stderr)
            raise (
                failures[0] if failures else StepError(f"one of {count} processes failed (status {status}): {_error_line(words)}")
            )


def _error_line(words: Sequence[str]) -> str:
    """The line of a log that says what went wrong: the first traceback's last, or the last of all."""
    for index, line in enumerate(words):
        if "Traceback (most recent call last)" in line:
            prefix = line.partition("Traceback")[0]
            for later in words[index + 1 :]:
                if later.startswith(prefix) and not later.removeprefix(prefix).startswith(" "):
                    return later.removeprefix(prefix)
    return words[-1] if words else "it said nothing"


def _become_torchrun(count: str, *command: str) -> None:
    die_with_parent()  # before the import, which takes seconds
    from torch.distributed.run import main

    main(["--standalone", f"--nproc-per-node={count}", *command])


if __name__ == "__main__":
    _become_torchrun(*sys.argv[1:])
