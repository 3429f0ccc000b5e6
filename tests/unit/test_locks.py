"""File locks: exclusive or shared, waited for, freed by a kill, and correct if their holder deletes the file."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from remint.runtime.locks import is_free, locked, locked_if_free

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys
from pathlib import Path
from remint.runtime.locks import locked
with locked(Path(sys.argv[1]), shared=sys.argv[2] == "shared", make=sys.argv[3] == "make"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path, *, shared: bool = False, make: bool = True) -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds the lock."""
    arguments = [str(path), "shared" if shared else "alone", "make" if make else "there"]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_lock_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as process:
        assert not is_free(path)
        with locked_if_free(path) as free:
            assert not free
        process.send_signal(signal.SIGKILL)
        with locked(path):
            assert not is_free(path)
    assert is_free(path)


def test_a_shared_lock_blocks_only_exclusive_locks(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path, shared=True):
        assert not is_free(path)
        with locked(path, shared=True):
            assert not is_free(path)
        assert not is_free(path)


def test_an_error_of_the_pause_ends_the_wait(tmp_path: Path) -> None:
    pauses: list[int] = []

    def pause() -> None:
        pauses.append(1)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    with holder(tmp_path / "lock"), pytest.raises(KeyboardInterrupt), locked(tmp_path / "lock", pause=pause):
        raise AssertionError("the lock was held")
    with locked(tmp_path / "lock", pause=pause):
        assert len(pauses) == 3, "a free lock is not waited for"


def test_after_its_holder_deletes_the_lock_file_the_new_file_is_locked(tmp_path: Path) -> None:
    path, entered, free = tmp_path / "lock", threading.Event(), []

    def wait() -> None:
        with locked(path):
            entered.set()
            free.append(is_free(path))

    with locked(path):
        waiter = threading.Thread(target=wait)
        waiter.start()
        entered.wait(0.2)
        path.unlink()
        path.touch()
    waiter.join(60)
    assert free == [False], "it would be free if the lock were on the file that was deleted"


def test_locking_in_a_missing_folder_raises_file_not_found(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    assert is_free(folder / "lock")
    with pytest.raises(FileNotFoundError), locked(folder / "lock"):
        pass
    with pytest.raises(FileNotFoundError), locked(folder, make=False):
        pass
    assert not folder.exists()


def test_a_folder_can_be_locked(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with holder(folder, make=False), locked_if_free(folder, make=False) as free:
        assert not free
    with locked_if_free(folder, make=False) as free:
        assert free
        shutil.rmtree(folder)


def test_all_file_locks_are_in_one_module() -> None:
    """The exceptions are remint.runtime.parent and remint.distributed.node, which import only the standard library."""
    sources = [path for part in ("src", "flows", "pipelines") for path in (ROOT / part).rglob("*.py")]
    naming = {path.name for path in sources if "fcntl" in path.read_text()}
    assert naming == {"locks.py", "parent.py", "node.py"}
