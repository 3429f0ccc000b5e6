"""Measure the server under load while champions change, and beside `mlflow models serve`.

    python -m benchmarks.serving [SECONDS]

switches    16 clients ask `remint serve` for samples for SECONDS (60) while the champion changes ten times: failed requests,
            mixed answers (each must equal what its version gives alone), and the milliseconds of an answer, with and without
throughput  answers per second for 16 clients, one sample each, of `remint serve` over `mlflow models serve`: the same model on
            the same machine, one after the other

Prints the numbers, writes docs/results/serving.json, and ends with status 1 if a request failed, an answer was mixed, or the
ratio is below LEAST_RATIO.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.pipelines import ROOT, line, prepared, write
from remint.records import TrainedModel
from remint.runtime.home import Home
from remint.serving.model import load
from remint.settings.params import load_params
from remint.stores.mlflow import VersionTags
from remint.stores.open import open_ledger, open_tracking
from remint.training import train

NAME, VERSIONS, CLIENTS, SWITCHES = "digits-vae", 3, 16, 10
PORT, MLFLOW_PORT = 8765, 8766
LEAST_RATIO = 3.0
BODY = {"count": 4, "seed": 3}


def registered(folder: Path) -> tuple[Home, dict[int, Any]]:
    """Train and register the versions in a repository of their own. Return its home, and what each draws for BODY."""
    repository = folder / "repository"
    repository.mkdir()
    shutil.copy(ROOT / "params.yaml", repository)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=b", "-c", "user.email=b@b", "commit", "-qm", "b"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    home = Home.of(repository).ensure()
    dataset, _ = prepared("digits", folder)
    drawn = {}
    for seed in range(VERSIONS):
        recipe = load_params(ROOT).pipeline(NAME).recipe
        training = recipe.training.model_copy(update={"seed": seed, "steps": 300, "validate_every": 100})
        out = folder / f"trained-{seed}"
        train.train_pipeline(
            recipe.model_copy(update={"training": training}),
            NAME,
            dataset,
            checkpoints=folder / "checkpoints",
            out=out,
            code_sha256="benchmark",
            command=[],
        )
        tags = VersionTags(commit="c" * 40, dirty="false")
        version = open_tracking(home).register(out, TrainedModel.read(out / "training.json"), NAME, None, tags, {}, lambda _: "")
        drawn[version.version] = load(out).sample(BODY["count"], BODY["seed"]).tolist()
    promote(home, 1)
    return home, drawn


def promote(home: Home, version: int) -> None:
    book = open_ledger(home)
    about = {"who": "benchmark", "why": "it is next", "evidence": ""}
    book.append(NAME, "promoted", version, champion_after=version, expected_champion=book.champion(NAME), **about)


@contextmanager
def running(command: list[str], home: Home, ready: str) -> Iterator[None]:
    """Run a server until the block ends; the block begins when it answers."""
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": home.tracking_uri,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    environment.pop("REMINT_HOME", None)
    with (home.path / "server.log").open("a") as log:
        process = subprocess.Popen(command, cwd=home.repository, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        while True:
            assert process.poll() is None, (home.path / "server.log").read_text()[-2000:]
            try:
                if httpx.get(ready).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def load_of(ask: Callable[[httpx.Client], str], seconds: float) -> tuple[list[float], list[str]]:
    """Let the clients ask for some seconds. Return the seconds of each answer, and a line for each problem."""
    end, times, problems = time.monotonic() + seconds, [[] for _ in range(CLIENTS)], []

    def client(place: int) -> None:
        with httpx.Client(timeout=60) as http:
            while time.monotonic() < end:
                began = time.monotonic()
                problem = ask(http)
                times[place].append(time.monotonic() - began)
                if problem:
                    problems.append(problem)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for asked in [pool.submit(client, place) for place in range(CLIENTS)]:
            asked.result()
    return [one for each in times for one in each], problems


def change(home: Home, stop: threading.Event, seconds: float) -> None:
    """Promote SWITCHES times within some seconds."""
    for place in range(SWITCHES):
        if stop.wait(seconds / (SWITCHES + 1)):
            return
        promote(home, (place + 1) % VERSIONS + 1)


def summary(times: list[float], seconds: float) -> dict[str, float]:
    p50, p99 = np.percentile(times, [50, 99]) * 1e3
    return {"answers": len(times), "per_s": len(times) / seconds, "p50_ms": float(p50), "p99_ms": float(p99)}


def main(seconds: float = 60.0) -> int:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        home, drawn = registered(Path(name))
        address = f"http://127.0.0.1:{PORT}"

        def ask(http: httpx.Client) -> str:
            said = http.post(f"{address}/v1/models/{NAME}:sample", json=BODY)
            if said.status_code != 200:
                return f"failed: {said.status_code} {said.text[:200]}"
            answer = said.json()
            return "" if answer["values"] == drawn[answer["version"]] else f"mixed: version {answer['version']}"

        def one(http: httpx.Client) -> str:
            return "" if http.post(f"{address}/v1/models/{NAME}:sample", json={}).status_code == 200 else "failed"

        serve = [sys.executable, "-m", "remint", "serve", NAME, "--port", str(PORT), "--every", "0.2"]
        with running(serve, home, f"{address}/readyz"):
            for switching in (False, True):
                stop = threading.Event()
                changing = threading.Thread(target=change, args=(home, stop, seconds))
                if switching:
                    changing.start()
                times, problems = load_of(ask, seconds)
                stop.set()
                rows.append(
                    {
                        "case": f"remint, {SWITCHES if switching else 0} switches",
                        **summary(times, seconds),
                        "problems": len(problems),
                    }
                )
                print(line(rows[-1]), *problems[:3], flush=True)
            page = httpx.get(f"{address}/metrics").text
            print(next(text for text in page.splitlines() if text.startswith("remint_version")))
            times, problems = load_of(one, seconds / 2)
            rows.append({"case": "remint, one sample", **summary(times, seconds / 2), "problems": len(problems)})
            print(line(rows[-1]), flush=True)

        def of_mlflow(http: httpx.Client) -> str:
            said = http.post(f"http://127.0.0.1:{MLFLOW_PORT}/invocations", json={"dataframe_records": [{"seed": 0}]})
            return "" if said.status_code == 200 else f"failed: {said.text[:200]}"

        mlflow = [
            sys.executable,
            "-m",
            "mlflow",
            "models",
            "serve",
            "-m",
            f"models:/{NAME}/1",
            "--env-manager",
            "local",
            "-p",
            str(MLFLOW_PORT),
        ]
        with running(mlflow, home, f"http://127.0.0.1:{MLFLOW_PORT}/ping"):
            times, problems = load_of(of_mlflow, seconds / 2)
        rows.append({"case": "mlflow models serve, one sample", **summary(times, seconds / 2), "problems": len(problems)})
        print(line(rows[-1]), *problems[:3], flush=True)
    ratio = rows[2]["per_s"] / rows[3]["per_s"]
    rows.append({"case": "remint over mlflow", "ratio": ratio})
    print(f"{line(rows[-1])}\nwritten: {write('serving', rows)}")
    failed = sum(row.get("problems", 0) for row in rows)
    missed = ([f"{failed} requests failed or were mixed"] if failed else []) + (
        [f"ratio {ratio:.2f}"] if ratio < LEAST_RATIO else []
    )
    print("\n".join(f"MISSED  {miss}" for miss in missed) or "every bound is held")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:])))
