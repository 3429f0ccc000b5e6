"""Calls of dvc's Python interface in a separate process; question and answer are JSON.

dvc is imported only in that process: its import costs time and memory, which end with the process.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from remint.errors import VersioningError
from remint.runtime import processes, scratch
from remint.runtime.addresses import TRUST_S3, s3_distrusted
from remint.runtime.home import Home
from remint.runtime.parent import die_with_parent
from remint.stores.dvc.lock import SUFFIX
from remint.stores.dvc.settings import addresses, read_config, workspace_environment, write_config


def ask(module: str, home: Home, question: dict[str, Any], checkout: Path | None = None, log: Path | None = None) -> Any:
    """Run ``module`` as a program (see ``answer_question``) and return its answer.

    It uses the stores of ``checkout`` (None: a temporary folder with a job's addresses), and its output goes to ``log``.
    Raises VersioningError with dvc's message if it fails, Interrupted as remint.runtime.processes does.
    """
    with scratch.folder() as temporary, nullcontext(checkout) if checkout else folder(home) as place:
        asked, answered = (temporary / name for name in ("question.json", "answer.json"))
        log = log or temporary / "log"
        asked.write_text(json.dumps(question))
        status = processes.run_process(
            [sys.executable, "-P", "-m", module, str(place), str(asked), str(answered)],
            cwd=place,
            env={
                **os.environ,
                **workspace_environment(place, home),
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            log=log,
        )
        if status:
            lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
            last = lines[-1] if lines else f"exit status {status}"
            raise VersioningError(f"dvc failed: {TRUST_S3 if s3_distrusted(last) else last}")
        return json.loads(answered.read_bytes())


def answer_question(answer: Callable[[Path, dict[str, Any]], Any]) -> None:
    """Main function of the separate process. Its arguments: dvc's folder, the question's file, the answer's file."""
    die_with_parent()
    place, asked, answered = map(Path, sys.argv[1:])
    try:
        said = answer(place, json.loads(asked.read_bytes()))
    except Exception as error:  # noqa: BLE001  the parent raises VersioningError
        text = str(error).strip() or type(error).__name__
        raise SystemExit(text.splitlines()[0]) from None
    answered.write_text(json.dumps(said))


@contextmanager
def folder(home: Home) -> Iterator[Path]:
    """Yield a temporary folder in which dvc has the addresses of a job's workspace."""
    with scratch.folder() as place:
        (place / ".dvc").mkdir()
        write_config(read_config(home.repository / ".dvc" / "config"), place / ".dvc" / "config")
        addresses(home, place, git=False)
        yield place


def md5_of(odb: Any, md5: str) -> str:
    """Return the MD5 of the stored bytes of object ``md5``, with its suffix."""
    from dvc_data.hashfile.hash import file_md5

    suffix = SUFFIX if md5.endswith(SUFFIX) else ""
    return str(file_md5(odb.oid_to_path(md5), odb.fs)) + suffix
