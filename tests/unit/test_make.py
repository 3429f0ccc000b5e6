"""`make setup` uses the newest interpreter that can create environments, and prints one line if there is none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NEEDS = ("constraints.txt", "pyproject.toml", "examples/pixelcnn/pyproject.toml", "examples/diversity/pyproject.toml")
WHOLE, NO_VENV, OLD, SHIM = "exit 0", 'case "$2" in *ensurepip*) exit 1; esac', 'case "$2" in *version*) exit 1; esac', "exit 127"


def make(folder: Path, pythons: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make with shell scripts as the only interpreters on PATH."""
    shutil.copy(REPOSITORY / "Makefile", folder)
    for name in NEEDS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "bin").mkdir()
    for name in ("make", "sh", "test"):
        (folder / "bin" / name).symlink_to(shutil.which(name) or "")
    for name, script in pythons.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    command = ["make", ".venv/installed", *arguments]
    # `make test` passes its settings to every make below it in MAKEFLAGS.
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    environment = {**kept, "PATH": str(folder / "bin")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("pythons", "arguments", "taken"),
    [
        ({"python3.11": WHOLE, "python3.12": WHOLE, "python3.13": WHOLE, "python3.14": WHOLE}, [], "python3.13"),
        ({"python3.11": WHOLE, "python3.12": WHOLE, "python3": WHOLE}, [], "python3.12"),
        ({"python3.11": WHOLE, "python3.12": NO_VENV, "python3.13": SHIM}, [], "python3.11"),
        ({"python3.13": WHOLE, "python3": WHOLE}, ["PYTHON=python3"], "python3"),
    ],
)
def test_make_uses_the_newest_interpreter_that_can_create_environments(
    tmp_path: Path, pythons: dict[str, str], arguments: list[str], taken: str
) -> None:
    done = make(tmp_path, pythons, "-n", *arguments)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"\|\| (\S+) -m venv .venv", done.stdout) == [taken]


@pytest.mark.parametrize(
    ("pythons", "arguments", "words"),
    [
        ({"python3": WHOLE, "python3.10": WHOLE}, [], "none of python3.13 python3.12 python3.11 is on PATH with its module venv"),
        ({"python3.13": NO_VENV}, [], "none of python3.13 python3.12 python3.11 is on PATH with its module venv"),
        ({"python3.13": WHOLE, "python3": OLD}, ["PYTHON=python3"], "python3 is not a Python from 3.11 to 3.13"),
        ({"python3.13": WHOLE}, ["PYTHON=/nowhere/python"], "/nowhere/python is not a Python from 3.11 to 3.13"),
    ],
)
def test_without_a_suitable_interpreter_one_line_says_what_to_do(
    tmp_path: Path, pythons: dict[str, str], arguments: list[str], words: str
) -> None:
    done = make(tmp_path, pythons, *arguments)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and words in line
    assert not (tmp_path / ".venv").exists()
