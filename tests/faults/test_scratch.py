"""Temporary folders of killed and of live processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from remint.runtime import scratch

HOLDER = """
import sys, time
from remint.runtime import scratch
with scratch.folder() as folder:
    (folder / "weights").write_text("a copy")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_only_temporary_folders_of_killed_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "remint-held-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "somebody-elses").mkdir()
    command = [sys.executable, "-c", HOLDER]
    holders = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)})
        for _ in range(2)
    ]
    folders = [Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout]
    try:
        holders[0].kill()
        holders[0].wait()
        assert all((folder / "weights").exists() for folder in folders)
        with scratch.folder() as own:
            assert own.is_dir() and not folders[0].exists() and (folders[1] / "weights").exists()
    finally:
        holders[1].kill()
        holders[1].wait()
    with pytest.raises(ZeroDivisionError), scratch.folder() as own:
        (own / "file").touch()
        raise ZeroDivisionError
    assert {path.name for path in tmp_path.iterdir()} == {"remint-held-link", "somebody-elses"}


def test_a_hidden_folder_beside_a_result_is_removed_after_a_kill_too(tmp_path: Path) -> None:
    source = HOLDER.replace("scratch.folder()", "scratch.folder(Path(sys.argv[1]))").replace(
        "import sys", "from pathlib import Path\nimport sys"
    )
    with subprocess.Popen([sys.executable, "-c", source, tmp_path / "x.npy"], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        left = Path(holder.stdout.readline().strip())
        holder.kill()
    assert left.parent == tmp_path and left.name.startswith(".") and left.is_dir()
    with scratch.folder(tmp_path / "x.npy") as own:
        assert list(tmp_path.iterdir()) == [own]
    assert not list(tmp_path.iterdir())
