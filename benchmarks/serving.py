"""Measure the server under load while champions change, and beside other servers of the same model.

    python -m benchmarks.serving [SECONDS]

switches    16 clients ask `remint serve` for samples for SECONDS (60) while the champion changes ten times: failed requests,
            mixed answers (each must equal what its version gives alone), and the milliseconds of an answer, with and without
throughput  answers per second for 16 clients, one sample each, of `remint serve`, `mlflow models serve`, LitServe and BentoML:
            the same model on the same machine, one after the other

LitServe and BentoML are in an environment of their own, which sees this one too; PEERS_PYTHON names its python:

    python -m venv /tmp/peers && echo $PWD/.venv/lib/python3.11/site-packages > /tmp/peers/lib/python3.11/site-packages/remint.pth
    /tmp/peers/bin/pip install litserve bentoml

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

from benchmarks.pipelines import ROOT, line, prepared, train_into, write
from remint.records import TrainedModel
from remint.runtime.home import Home
from remint.serving.model import load
from remint.settings.params import load_params
from remint.stores.mlflow import VersionTags
from remint.stores.open import open_ledger, open_serving_events, open_tracking

NAME, VERSIONS, CLIENTS, SWITCHES = "digits-vae", 3, 16, 10
PORT, PEER_PORT = 8765, 8766
LEAST_RATIO = 3.0
BODY = {"count": 4, "seed": 3}
PEERS: dict[str, tuple[str, str, Any]] = {  # path of a request, path that answers when it is ready, body
    "litserve": ("/predict", "/health", {"seed": 0}),
    "bentoml": ("/sample", "/readyz", {"seeds": [0]}),
}

Ask = Callable[[httpx.Client], str]  # one request; returns its problem


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
        train_into(out, recipe.model_copy(update={"training": training}), NAME, dataset)
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
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
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


def load_of(ask: Ask, seconds: float) -> tuple[list[float], list[str]]:
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


def case(name: str, ask: Ask, seconds: float) -> dict[str, Any]:
    """Measure one load, print it, and return its row."""
    times, problems = load_of(ask, seconds)
    p50, p99 = (float(value) for value in np.percentile(times, [50, 99]) * 1e3)
    row = {"case": name, "answers": len(times), "per_s": len(times) / seconds, "p50_ms": p50, "p99_ms": p99}
    row |= {"problems": len(problems), "load_average": os.getloadavg()[0]}
    print(line(row), *problems[:3], flush=True)
    return row


def posted(address: str, body: Any) -> Ask:
    """Return a request of one sample."""

    def ask(http: httpx.Client) -> str:
        said = http.post(address, json=body)
        return "" if said.status_code == 200 else f"failed: {said.status_code} {said.text[:200]}"

    return ask


def of_remint(home: Home, drawn: dict[int, Any], seconds: float) -> list[dict[str, Any]]:
    """Measure `remint serve`: without and with switches, and one sample a request."""
    address = f"http://127.0.0.1:{PORT}"
    url = f"{address}/v1/models/{NAME}:sample"

    def ask(http: httpx.Client) -> str:
        said = http.post(url, json=BODY)
        if said.status_code != 200:
            return f"failed: {said.status_code} {said.text[:200]}"
        answer = said.json()
        return "" if answer["values"] == drawn[answer["version"]] else f"mixed: version {answer['version']}"

    with running(
        [sys.executable, "-m", "remint", "serve", NAME, "--port", str(PORT), "--every", "0.2"], home, f"{address}/readyz"
    ):
        rows = [case("remint, 0 switches", ask, seconds)]
        stop = threading.Event()
        changing = threading.Thread(target=change, args=(home, stop, seconds))
        changing.start()
        rows.append(case(f"remint, {SWITCHES} switches", ask, seconds))
        stop.set()
        changing.join()
        events = open_serving_events(home).of(NAME)
        rows[-1]["switched"] = sum(event.event == "switched" for event in events)
        return [*rows, case("remint, one sample", posted(url, {}), seconds / 2)]


def of_peers(home: Home, bundle: Path, seconds: float) -> list[dict[str, Any]]:
    """Measure one sample a request of `mlflow models serve`, and of the peers that are installed."""
    mlflow = f"{sys.executable} -m mlflow models serve -m models:/{NAME}/1 --env-manager local -p {PEER_PORT}".split()
    address = f"http://127.0.0.1:{PEER_PORT}"
    with running(mlflow, home, f"{address}/ping"):
        rows = [case("mlflow", posted(f"{address}/invocations", {"dataframe_records": [{"seed": 0}]}), seconds)]
    python = os.environ.get("PEERS_PYTHON", sys.executable)
    for peer, (path, ready, body) in PEERS.items():
        if subprocess.run([python, "-c", f"import {peer}"], capture_output=True, check=False).returncode:
            print(f"{peer} is not installed: left out")
            continue
        command = [python, "-m", f"benchmarks.peer_{peer}", str(bundle), str(PEER_PORT)]
        with running(command, home, f"{address}{ready}"):
            rows.append(case(peer, posted(f"{address}{path}", body), seconds))
    return rows


def main(seconds: float = 60.0) -> int:
    with tempfile.TemporaryDirectory() as name:
        home, drawn = registered(Path(name))
        rows = of_remint(home, drawn, seconds)
        rows += of_peers(home, Path(name) / "trained-0", seconds / 2)
    per_s = {row["case"]: row["per_s"] for row in rows}
    ratios = {f"over_{peer}": per_s["remint, one sample"] / per_s[peer] for peer in ("mlflow", *PEERS) if peer in per_s}
    rows.append({"case": "remint over its peers", **ratios})
    print(f"{line(rows[-1])}\nwritten: {write('serving', rows)}")
    failed = sum(row["problems"] for row in rows if row["case"].startswith("remint, "))
    missed = [f"{failed} requests failed or were mixed"] * bool(failed)
    missed += [f"{rows[1]['switched']} of {SWITCHES} switches"] * (rows[1]["switched"] != SWITCHES)
    missed += [f"ratio {ratios['over_mlflow']:.2f}"] * (ratios["over_mlflow"] < LEAST_RATIO)
    print("\n".join(f"MISSED  {miss}" for miss in missed) or "every bound is held")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:])))
