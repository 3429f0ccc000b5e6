"""dvc asked by its own interface, in a process of its own: a question and an answer, both JSON.

dvc is imported there and nowhere else, so that a question costs its import once and leaves nothing of it behind.
"""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from remint.errors import VersioningError
from remint.home import Home
from remint.step import PARENT, die_with_parent
from remint.versioning.workspace import addresses, environment

SUFFIX = ".dir"  # of the digest of a folder's listing


def ask(module: str, home: Home, question: dict[str, Any]) -> Any:
    """What ``answering`` of that module answers. Raises VersioningError with dvc's own words where it fails."""
    with folder(home) as place:
        child = subprocess.run(
            [sys.executable, "-P", "-m", module, str(place)],
            input=json.dumps(question),
            env={
                **os.environ,
                **environment(place, home),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                PARENT: str(os.getpid()),
            },
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
    if child.returncode:
        words = [line.strip() for line in child.stderr.splitlines() if line.strip()]
        raise VersioningError(f"dvc could not be asked: {words[-1] if words else f'exit status {child.returncode}'}")
    return json.loads(child.stdout)


def answering(answer: Callable[[Path, dict[str, Any]], Any]) -> None:
    """The process that is asked: the folder is its argument, the question comes on standard input."""
    die_with_parent()
    try:
        said = answer(Path(sys.argv[1]), json.load(sys.stdin))
    except Exception as error:  # noqa: BLE001  the parent turns it into ours
        text = str(error).strip() or type(error).__name__
        raise SystemExit(text.splitlines()[0]) from None
    json.dump(said, sys.stdout)


@contextmanager
def folder(home: Home) -> Iterator[Path]:
    """A folder in which dvc has the addresses of a job's workspace."""
    with tempfile.TemporaryDirectory(prefix="remint-") as temporary:
        place = Path(temporary)
        (place / ".dvc").mkdir()
        settings = configparser.ConfigParser(interpolation=None)
        settings.read(home.repository / ".dvc" / "config")
        settings.read_dict({"core": {"no_scm": "true"}})  # there is no git around this folder
        with (place / ".dvc" / "config").open("w") as stream:
            settings.write(stream)
        addresses(home, place)
        yield place


def md5_of(odb: Any, md5: str) -> str:
    """The MD5 of the bytes that lie under this one, with its suffix."""
    from dvc_data.hashfile.hash import file_md5

    suffix = SUFFIX if md5.endswith(SUFFIX) else ""
    return str(file_md5(odb.oid_to_path(md5), odb.fs)) + suffix
