"""Check that DVC's remote answers.

python -m remint.stores.dvc.reach FOLDER    the process that imports dvc (remint.stores.dvc.ask)
"""

from __future__ import annotations

import os
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


def _answer(folder: Path, _question: dict[str, Any]) -> None:
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
    if remote.fs.protocol != "local":
        remote.fs.exists(remote.path)
    elif not os.access(nearest_existing(Path(remote.path)), os.W_OK):  # the first push makes its folder
        raise VersioningError(f"{remote.path} cannot be written")


if __name__ == "__main__":
    answer_question(_answer)
