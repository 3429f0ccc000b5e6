"""Time the console's overview on a full registry: 50 pipelines, 10,000 versions, and one decision for each.

    python -m benchmarks.console

One version is really registered, with three metrics. The others, in MLflow and in the ledger, are written by SQL as copies of
it, with valid hashes; both use SQLite. The server runs in this process, and the pages are asked over HTTP. Seconds of GET /, with
all charts:

start          from the start of the server to its first answer: MLflow is imported, and read for each pipeline's charts
overview       median and longest of REPEATS, and the processor's seconds of each
after a night  the first one after each pipeline got a new version; the server had two looks at the ledger since

Prints the numbers, writes docs/results/console.json, and ends with status 1 if a page after the start takes LIMIT seconds.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from benchmarks.pipelines import line, write
from benchmarks.registry import insert_rows
from flows.stack.console import EVERY, pages
from remint.records import MetricValue, canonical
from remint.runtime.home import Home
from remint.serving.app import run
from remint.serving.app.limits import Limits
from remint.settings.params import Params, validate_params
from remint.stores.mlflow import VersionTags
from tests.support import registry_cases
from tests.support.ports import free_port

PIPELINES, VERSIONS = 50, 200  # versions of each
FIRST = "digits-flow"  # the one whose version is registered
REPEATS, LIMIT = 20, 1.0  # seconds
METRICS = {
    name: MetricValue(name=name, value=2.0, low=1.9, high=2.1, n=359, seed=0, unit="bits/dim").to_json()
    for name in ("nll", "fd_domain", "novelty")
}


def names() -> list[str]:
    return [FIRST, *(f"pipeline-{number:02}" for number in range(1, PIPELINES))]


def settings() -> Params:
    pipeline = {
        "dataset": "digits",
        "family": "flow",
        "model": {},
        "training": {},
        "evaluation": {"metrics": ["nll", "fd_domain", "novelty"]},
        "promotion": {"require": {"nll": {"max": 9.0}}, "improve": {"metric": "nll"}},
        "schedule": {"cron": "0 3 * * *"},
    }
    digits = {"source": "sklearn:digits", "kind": "image", "shape": [1, 8, 8], "levels": 17}
    return validate_params({"datasets": {"digits": digits}, "pipelines": dict.fromkeys(names(), pipeline)})


def copy_versions(home: Home, wanted: list[tuple[str, int]]) -> None:
    """Add versions to MLflow as copies of the registered one, and their models where they are missing."""
    with sqlite3.connect(home.path / "mlflow/mlflow.db") as database:
        database.execute("CREATE TEMP TABLE made (name TEXT, number INTEGER)")
        database.executemany("INSERT INTO made VALUES (?, ?)", wanted)

        def copy(table: str, replaced: dict[str, str], where: str) -> None:
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            values = ", ".join(replaced.get(column, f"old.{column}") for column in columns)
            database.execute(
                f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) SELECT {values} FROM made, {table} old {where}"
            )

        first = f"WHERE old.name = '{FIRST}'"
        copy("registered_models", {"name": "made.name"}, first)
        copy("model_versions", {"name": "made.name", "version": "made.number"}, f"{first} AND old.version = 1")
        key = "CASE old.key WHEN 'remint.key' THEN made.name || made.number ELSE old.value END"
        tags = {"name": "made.name", "version": "made.number", "value": key}
        copy("model_version_tags", tags, f"{first} AND old.version = 1")
    database.close()


def decide(home: Home, name: str, numbers: range) -> None:
    """Add one ledger row for each version, every twentieth a promotion."""
    actions = ((number, "promoted" if number % 20 == 1 else ("kept", "refused")[number % 2]) for number in numbers)
    at = (
        (number, action, f"2026-{number // 28 + 1:02}-{number % 28 + 1:02}T03:00:00.000000+00:00") for number, action in actions
    )
    insert_rows(home, name, at)


def fill(home: Home) -> None:
    registry_cases.make_bundle(home.path / "bundle")
    tags = registry_cases.TAGS.updated(VersionTags(metrics=canonical(METRICS), verdict="kept"))
    registry_cases.register(registry_cases.tracking(home.path), home.path / "bundle", tags=tags)
    copy_versions(home, [(name, number) for name in names() for number in range(1, VERSIONS + 1)])
    for name in names():
        decide(home, name, range(1, VERSIONS + 1))


def seconds(address: str) -> float:
    """Return the seconds of one overview."""
    began = time.perf_counter()
    page = httpx.get(address, timeout=120)
    taken = time.perf_counter() - began
    assert page.status_code == 200 and page.text.count('class="chart"') == PIPELINES, page.text[:500]
    return taken


def main() -> int:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder), Path(folder)).ensure()
        began = time.perf_counter()
        fill(home)
        print(
            f"{PIPELINES} pipelines with {PIPELINES * VERSIONS} versions made in {time.perf_counter() - began:.0f} s", flush=True
        )
        began = time.perf_counter()
        app = run.build(run.Serving(home, (), Limits(), 3600.0, "cpu", None, print), pages(home, settings))
        server = uvicorn.Server(uvicorn.Config(app, port=free_port(), log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        address = f"http://127.0.0.1:{server.config.port}/"
        seconds(address)
        rows.append({"page": "start", "seconds": time.perf_counter() - began})
        processor = time.process_time()
        times = [seconds(address) for _ in range(REPEATS)]
        each = (time.process_time() - processor) / REPEATS
        found = {"seconds": statistics.median(times), "longest": max(times), "processor_seconds": each}
        rows.append({"page": "overview", **found})
        new = VERSIONS + 2  # not a promotion
        copy_versions(home, [(name, new) for name in names()])
        for name in names():
            decide(home, name, range(new, new + 1))
        time.sleep(2 * EVERY)
        rows.append({"page": "after a night", "seconds": seconds(address)})
        server.should_exit = True
        thread.join()
    for row in rows:
        row["load_average"] = os.getloadavg()[0]
        print(line(row))
    print(f"written: {write('console', rows)}")
    missed = [
        f"{row['page']}: {row['seconds']:.2f} s" for row in rows[1:] if max(row["seconds"], row.get("longest", 0.0)) >= LIMIT
    ]
    print("\n".join(f"MISSED  {miss}" for miss in missed) or "every bound is held")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
