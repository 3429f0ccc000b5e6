"""Time commands on a full registry: 10,000 versions and 50,000 runs in MLflow, and one decision per version in the ledger.

    .venv/bin/python -m benchmarks.registry

All versions are of one model, which is the hardest case. The last versions are really registered (small flows with their
bytes). The others, their runs and the ledger's rows are written by SQL as copies of the first, with valid hashes. The same is
done with 100 versions and 500 runs. Both use SQLite.

Two times: a command from the shell (median of three, with its imports), and, in one process with everything imported, remint's
share of it: the time outside MLflow's client and the child that loads a model (best of five). Writes
docs/results/registry.json.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from remint.distributed.machine import fingerprint
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.records import canonical, digest
from remint.runtime.home import Home
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import VersionTags
from remint.stores.open import open_ledger
from tests.support import registry_cases

HERE = Path(__file__).parents[1]
OUT = HERE / "docs/results/registry.json"
MODEL = "digits-flow"
SIZES = {"small": (100, 500), "full": (10_000, 50_000)}  # versions, runs
REAL = 5  # versions with bytes, the newest
LIMIT, SHARE = 3.0, 2.0  # seconds of a command; own share with 10,000 versions over that with 100
REPEATS = 5
TAGS = registry_cases.TAGS.updated(
    VersionTags(
        data=canonical({"name": "digits", "source": "sklearn:digits", "raw_sha256": "0" * 64, "train": 1078, "held_out": 359}),
        metrics=canonical({}),
        overrides=canonical({}),
        verdict="kept",
    )
)


def fill(home: Home, versions: int, runs: int) -> None:
    """Register one version, copy it, and register the last ones for real."""
    registry_cases.make_bundle(home.path / "bundles/0", 0)
    store = registry_cases.tracking(home.path)
    registry_cases.register(store, home.path / "bundles/0", tags=TAGS)
    with sqlite3.connect(home.path / "mlflow/mlflow.db") as database:
        _copy(database, versions - REAL, runs - REAL)
    _decisions(home, versions - REAL)
    champion = versions - REAL
    for seed in range(1, REAL + 1):
        registry_cases.make_bundle(home.path / f"bundles/{seed}", seed)
        number = registry_cases.register(store, home.path / f"bundles/{seed}", tags=TAGS).version
        before, champion = champion, number if number == versions - 2 else champion
        open_ledger(home).append(
            MODEL,
            "promoted" if champion != before else "kept",
            number,
            champion_after=champion,
            who="gate",
            why="benchmark",
            evidence=digest(seed),
            expected_champion=before,
        )
    sync_mlflow_to_ledger(home, MODEL)


def _copy(database: sqlite3.Connection, versions: int, runs: int) -> None:
    """Copy the first run's rows in MLflow's tables, for ``runs`` runs in total, of which ``versions`` have a version."""

    def columns(table: str, but: tuple[str, ...]) -> str:
        return ", ".join(row[1] for row in database.execute(f"PRAGMA table_info({table})") if row[1] not in but)

    (first,) = database.execute("SELECT run_id FROM model_versions").fetchone()
    database.execute("CREATE TEMP TABLE made (number INTEGER, run TEXT)")
    database.executemany("INSERT INTO made VALUES (?, ?)", [(number, uuid.uuid4().hex) for number in range(2, runs + 1)])
    rest = columns("runs", ("run_uuid",))
    database.execute(f"INSERT INTO runs (run_uuid, {rest}) SELECT run, {rest} FROM made, runs WHERE run_uuid = ?", (first,))
    for table in ("tags", "params"):
        rest = columns(table, ("run_uuid",))
        database.execute(
            f"INSERT INTO {table} (run_uuid, {rest}) SELECT run, {rest} FROM made, {table} WHERE run_uuid = ?", (first,)
        )
    rest = columns("model_versions", ("version", "run_id"))
    database.execute(
        f"INSERT INTO model_versions (version, run_id, {rest}) SELECT number, run, {rest} FROM made, model_versions "
        f"WHERE number <= {versions}"
    )
    rest = columns("model_version_tags", ("version", "value", "key"))
    database.execute(
        f"INSERT INTO model_version_tags (version, key, value, {rest}) "
        f"SELECT number, key, CASE key WHEN 'remint.key' THEN run || run ELSE value END, {rest} FROM made, model_version_tags "
        f"WHERE number <= {versions}"
    )


def _decisions(home: Home, versions: int) -> None:
    """Write one ledger row per version, every hundredth a promotion."""
    actions = ((number, "promoted" if number % 100 == 1 or number == versions else "kept") for number in range(1, versions + 1))
    insert_rows(home, MODEL, [(number, action, f"2026-01-01T00:00:00.{number:06d}+00:00") for number, action in actions])


def insert_rows(home: Home, model: str, decided: Iterable[tuple[int, str, str]]) -> None:
    """Add a ledger row for each (version, action, time), with hashes as ``Ledger.append`` writes them."""
    last = open_ledger(home).last(model)
    champion, previous, place = (last.champion_after, last.hash, last.sequence) if last else (None, "", 0)
    rows = []
    for sequence, (number, action, at) in enumerate(decided, place + 1):
        said: dict[str, Any] = {
            "model": model,
            "sequence": sequence,
            "action": action,
            "champion_before": champion,
            "champion_after": number if action == "promoted" else champion,
            "version": number,
            "who": "gate",
            "why": "benchmark",
            "evidence": digest(number),
            "at": at,
            "previous": previous,
        }
        champion, previous = said["champion_after"], digest(said)
        rows.append(LedgerRow(**said, hash=previous).to_json())
    with sqlite3.connect(home.path / "ledger.db") as database:
        names = list(rows[0])
        database.executemany(f"INSERT INTO ledger ({', '.join(names)}) VALUES ({', '.join(':' + name for name in names)})", rows)
    database.close()


def commands(versions: int) -> dict[str, Callable[[int], list[str]]]:
    """Return the timed commands. Promotions alternate between two versions; the second one is champion first."""
    newest = versions - 1
    return {
        "models": lambda _: ["models", MODEL],
        "why": lambda _: ["why", f"{MODEL}@champion"],
        "promote": lambda k: [
            "promote",
            f"{MODEL}/{newest - k % 2}",
            "--reason",
            "benchmark",
            "--against",
            f"{newest - (k + 1) % 2}",
        ],
    }


def from_the_shell(repository: Path, arguments: list[str]) -> float:
    """Return the seconds of one command."""
    began = time.perf_counter()
    done = subprocess.run(
        [str(Path(sys.executable).parent / "remint"), *arguments], cwd=repository, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"remint {' '.join(arguments)} failed:\n{done.stderr}")
    return time.perf_counter() - began


@contextmanager
def others_timed() -> Iterator[dict[str, float]]:
    """Measure the seconds in MLflow's client and in children. Nested calls count once."""
    import mlflow.artifacts
    from mlflow import MlflowClient

    from remint.runtime import processes

    spent, depth = {"others": 0.0}, 0

    def timed(real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal depth
            depth += 1
            began = time.perf_counter()
            try:
                return real(*arguments, **more)
            finally:
                depth -= 1
                if not depth:
                    spent["others"] += time.perf_counter() - began

        return call

    places: list[tuple[Any, str]] = [
        (MlflowClient, name) for name, value in vars(MlflowClient).items() if callable(value) and not name.startswith("_")
    ]
    places += [(mlflow.artifacts, "download_artifacts"), (processes, "run")]
    kept = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, real in kept:
        setattr(owner, name, timed(real))
    try:
        yield spent
    finally:
        for owner, name, real in kept:
            setattr(owner, name, real)


def own_share(arguments: Callable[[int], list[str]]) -> float:
    """Return the seconds of one command outside MLflow and children, with everything imported."""
    from remint import cli

    shares = []
    with others_timed() as spent:
        for k in range(1, REPEATS + 2):
            spent["others"] = 0.0
            began = time.perf_counter()
            with redirect_stdout(StringIO()):
                cli.app(arguments(k), standalone_mode=False)
            shares.append(time.perf_counter() - began - spent["others"])
    return min(shares[1:])


def measure(folder: Path, size: str) -> dict[str, dict[str, float]]:
    """Shell seconds and own share of each command at one size."""
    versions, runs = SIZES[size]
    repository = folder / size
    subprocess.run(["git", "clone", "--quiet", str(HERE), str(repository)], check=True)
    home = Home(repository, repository / ".remint").ensure()
    began = time.perf_counter()
    fill(home, versions, runs)
    print(f"{size}: {versions} versions and {runs} runs made in {time.perf_counter() - began:.0f} s", flush=True)
    results = {}
    for name, arguments in commands(versions).items():
        shell = statistics.median(from_the_shell(repository, arguments(k)) for k in range(3))
        inside = [sys.executable, "-m", "benchmarks.registry", "inside", size, name, str(repository)]
        share = subprocess.run(inside, cwd=HERE, check=True, capture_output=True, text=True).stdout.split()[-1]
        results[name] = {"seconds": shell, "own_seconds": float(share)}
    return results


def main() -> None:
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with tempfile.TemporaryDirectory(prefix="registry-") as folder:
        results = {size: measure(Path(folder), size) for size in SIZES}
    missed = []
    for name, full in results["full"].items():
        small = results["small"][name]
        ratio = full["own_seconds"] / small["own_seconds"]
        print(
            f"{name}: {full['seconds']:.2f} s (at {SIZES['small'][0]} versions {small['seconds']:.2f} s), own share "
            f"{1000 * full['own_seconds']:.0f} ms, {ratio:.2f} times that at {SIZES['small'][0]}"
        )
        missed += [name] if full["seconds"] > LIMIT or ratio > SHARE else []
    machine = fingerprint(torch.device("cpu"), torch.get_num_threads(), 1)
    OUT.write_text(json.dumps({"machine": machine, "sizes": SIZES, **results}, indent=1) + "\n")
    if missed:
        raise SystemExit(f"slower than {LIMIT} s, or own share more than {SHARE} times: {', '.join(missed)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        size, name, repository = sys.argv[2:]
        os.chdir(repository)
        print(own_share(commands(SIZES[size][0])[name]))
    else:
        main()
