"""Killed at each boundary of a registration and promotion: one version, loadable, and the alias is what the ledger says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.postgres import Postgres

SEED = 20261121
EFFECTS = {  # what a registration and promotion leave behind, each with a moment before and after it
    "create_experiment",
    "create_run",
    "log_batch",
    "log_artifacts",
    "copy of a file",
    "check in another process",
    "log_artifact",
    "create_registered_model",
    "create_model_version",
    "set_tag",
    "set_terminated",
    "rename",
    "commit of mlflow",
    "commit of ledger",
    "set_registered_model_alias",
    "set_model_version_tag",
    "set_registered_model_tag",
}


def killed(folder: Path, count: int, *server: str) -> int:
    """Kills ``count`` times (0: at each boundary once), and looks; how often."""
    program = [sys.executable, "-m", "tests.registry_kills", str(folder), str(count), str(SEED), *server]
    done = subprocess.run(program, capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, *kills = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    moments = {name for _, name in first["moments"]}
    assert moments == {f"{when} {effect}" for when in ("before", "after") for effect in EFFECTS}
    wrong = [kill for kill in kills if kill["found"]]
    assert not wrong, f"seed {SEED}: {wrong}"
    return len(kills)


def test_killed_at_twelve_boundaries(tmp_path: Path) -> None:
    assert killed(tmp_path, 12) == 12


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_at_every_boundary(tmp_path: Path) -> None:
    assert killed(tmp_path, 0) >= 100


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_killed_at_a_hundred_boundaries_on_postgres(tmp_path: Path, postgres: Postgres) -> None:
    assert killed(tmp_path, 100, postgres.url) == 100
