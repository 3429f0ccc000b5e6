"""Check that DVC's remote answers, and that it takes, returns and deletes an object.

python -m remint.stores.dvc.reach FOLDER    the process that imports dvc (remint.stores.dvc.ask)
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from remint.errors import VersioningError
from remint.runtime import scratch
from remint.runtime.home import Home, nearest_existing
from remint.stores.dvc.ask import answer_question, ask

PATIENCE = 5  # seconds


def reach(home: Home) -> None:
    """Raise VersioningError if there is no remote, or it is out of reach or refuses. Writes nothing."""
    with scratch.folder() as elsewhere:  # ``ask`` makes a folder in the home
        ask(__name__, home if home.dvc.exists() else Home(home.repository, elsewhere), {})


def probe(home: Home) -> str:
    """Write an object beside those of the remote, read it back and delete it. Return why it could not be deleted, or "".

    Raises VersioningError if it could not be written, or if other bytes came back.
    """
    return str(ask(__name__, home, {"probe": True}))


def _answer(folder: Path, question: dict[str, Any]) -> str:
    os.environ["AWS_MAX_ATTEMPTS"] = "1"
    from dvc.repo import Repo

    repo = Repo(str(folder))
    name = repo.config["core"].get("remote")
    if name is None:
        raise VersioningError("no remote is set: dvc remote add --default NAME ADDRESS")
    settings = repo.config["remote"][name]
    if settings["url"].startswith("s3://"):
        settings |= {"connect_timeout": PATIENCE, "read_timeout": PATIENCE}
    remote = repo.cloud.get_remote_odb()
    if question.get("probe"):
        return _probe(remote.fs, remote.fs.parent(remote.fs.parent(remote.path)))  # above dvc's files/md5
    elif remote.fs.protocol != "local":
        remote.fs.exists(remote.path)
    elif not os.access(nearest_existing(Path(remote.path)), os.W_OK):  # the first push makes its folder
        raise VersioningError(f"{remote.path} cannot be written")
    return ""


def _probe(files: Any, root: str) -> str:
    content = secrets.token_bytes(64)
    place = files.join(root, f"remint-probe-{secrets.token_hex(8)}")
    files.makedirs(root, exist_ok=True)
    files.pipe_file(place, content)
    if files.cat_file(place) != content:
        raise VersioningError(f"{place} was written, and other bytes came back")
    try:
        files.rm_file(place)
    except Exception as error:  # noqa: BLE001  each file system has its own, and this process ends now
        return f"{place}: {str(error).strip() or type(error).__name__}".splitlines()[0]
    return ""


if __name__ == "__main__":
    answer_question(_answer)
