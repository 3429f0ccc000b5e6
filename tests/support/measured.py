"""Cost of reading hostile files: each is read in its own forked process, whose memory and time are measured.

python -m tests.support.measured    a line of JSON on standard input: {"kind": .., "paths": [..]}; a line for each path on standard output

If a process crashes, hangs or fills the memory, only that process ends, and its line reports how.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from remint.errors import RemintError

LIMIT = 30  # seconds after which a reading process counts as hung


@dataclass(frozen=True)
class ReadResult:
    """Result of reading one file."""

    ended: str  # "read", "refused" (RemintError), "raised" (another error), "signal 11" (crashed; 14: hung)
    said: str
    seconds: float  # CPU time
    grown: int  # bytes of peak memory above the peak at the start
    notes: dict[str, Any]


class Reader:
    """Connection to the process that forks."""

    def __init__(self, stdin: IO[str], stdout: IO[str]) -> None:
        self.stdin, self.stdout = stdin, stdout

    def __call__(self, kind: str, *paths: Path) -> list[ReadResult]:
        self.stdin.write(json.dumps({"kind": kind, "paths": [str(path) for path in paths]}) + "\n")
        self.stdin.flush()
        return [ReadResult(**json.loads(self.stdout.readline())) for _ in paths]


@contextmanager
def start_reader() -> Iterator[Reader]:
    arguments = [sys.executable, "-m", "tests.support.measured"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        try:
            yield Reader(process.stdin, process.stdout)
        finally:
            process.stdin.close()


def _source(path: Path) -> dict[str, Any]:
    """Import a dataset's source of any kind, including the checks."""
    from remint.data import sources
    from remint.settings.dataset import DatasetSettings

    kind = "table" if path.suffix in sources.TABLES else "image"
    sources.snapshot("x", DatasetSettings(source=path.name, kind=kind), path.parent, path.parent / "out")
    return {}


def _images(path: Path) -> dict[str, Any]:
    """Read a folder of images. Return the number of decoded files, the reasons for the others, and the slowest file."""
    from remint.data import blocks, folder, pictures
    from remint.settings.dataset import DatasetSettings, ResizeSettings

    seconds: dict[str, float] = {}

    def timed() -> Iterator[folder.File]:
        for file in folder.files(path):
            began = time.process_time()
            yield file
            seconds[file.name] = time.process_time() - began

    settings = DatasetSettings(source="x", channels=3, resize=ResizeSettings(size=[8, 8]), undecodable=1.0)
    raw = pictures.read(str(path), folder.Walk(timed), settings, blocks.Spool())
    slowest = max(seconds, key=lambda name: seconds[name])
    return {"good": len(raw.x), "aside": dict(raw.set_aside), "slowest": slowest, "seconds": seconds[slowest]}


KINDS = {"source": _source, "images": _images}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _child(kind: str, path: Path, out: int) -> None:
    """Read one file and report the result. Never returns."""
    signal.alarm(LIMIT)
    before, began = _peak(), time.process_time()
    notes: dict[str, Any] = {}
    try:
        ended, said, notes = "read", "", KINDS[kind](path)
    except RemintError as error:
        ended, said = "refused", str(error)
    except BaseException as error:
        ended, said = "raised", f"{type(error).__name__}: {error}"
    line = {"ended": ended, "said": said, "seconds": time.process_time() - began, "grown": _peak() - before, "notes": notes}
    with os.fdopen(out, "w") as stream:
        stream.write(json.dumps(line))
    os._exit(0)


def _read(kind: str, path: Path) -> str:
    readable, writable = os.pipe()
    gc.freeze()  # else the child's first collection copies all pages
    child = os.fork()
    if not child:
        _child(kind, path, writable)
    os.close(writable)
    with os.fdopen(readable) as stream:
        line = stream.read()
    _, status, usage = os.wait4(child, 0)
    if line:
        return line
    died = {"ended": f"signal {os.WTERMSIG(status)}", "said": "", "seconds": usage.ru_utime + usage.ru_stime}
    return json.dumps({**died, "grown": usage.ru_maxrss * 1024 - _peak(), "notes": {}})


def main() -> None:
    from remint.data import idx, pictures, sources, tables  # noqa: F401 (imported once, before the forks)

    for line in sys.stdin:
        asked = json.loads(line)
        for path in asked["paths"]:
            print(_read(asked["kind"], Path(path)), flush=True)


if __name__ == "__main__":
    main()
