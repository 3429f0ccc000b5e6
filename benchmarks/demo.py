"""Measure the README's claims about the demo: time, memory, quality over three seeds, equality to the bit.

    python benchmarks/demo.py [--part demo|noop|quality|bits]

Uses a fresh clone of this repository's HEAD in a temporary folder, and the Python environment that runs this script. Prints
one line per claim: measured value, bound, and whether it holds. Exit status 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).parents[1]
REMINT = [str(Path(sys.executable).parent / "remint")]
PIPELINES = ["digits-vae", "digits-gan", "digits-flow"]
SEEDS = (0, 1, 2)

failures: list[str] = []


def claim(what: str, value: float, unit: str, bound: float) -> None:
    holds = value <= bound
    print(f"{'ok  ' if holds else 'MISS'} {what}: {value:.3f} {unit} (bound {bound:g})", flush=True)
    if not holds:
        failures.append(what)


def clone(folder: Path) -> Path:
    subprocess.run(["git", "clone", "-q", str(REPOSITORY), str(folder)], check=True)
    subprocess.run([*REMINT, "init"], cwd=folder, check=True, stderr=subprocess.DEVNULL)
    return folder


def run(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [*REMINT, "run", *arguments, "--json"], cwd=folder, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    outcomes: list[dict[str, Any]] = json.loads(done.stdout)
    return outcomes


class PeakMemory:
    """Largest sum of the proportional set sizes of this process's descendants, in bytes, sampled four times a second."""

    def __enter__(self) -> PeakMemory:
        self.peak, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.over.wait(0.25):
            total = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    total += child.memory_full_info().pss
                except psutil.Error:
                    continue
            self.peak = max(self.peak, total)


def demo(folder: Path) -> None:
    began = time.monotonic()
    with PeakMemory() as memory:
        outcomes = run(folder, *PIPELINES)
    claim("remint run of the three pipelines", time.monotonic() - began, "s", 240)
    claim("its peak memory, all processes", memory.peak / 2**30, "GiB", 3)
    for outcome in outcomes:
        assert outcome["decision"]["verdict"] == "promoted", outcome


def noop(folder: Path) -> None:
    run(folder, "digits-vae")
    claim("no-op run, no server running (median of 3)", statistics.median(_timed(folder) for _ in range(3)), "s", 25)
    environment = {**os.environ, "REMINT_PREFECT_PORT": "4297", "REMINT_MLFLOW_PORT": "5097", "REMINT_CONSOLE_PORT": "8097"}
    stack = subprocess.Popen([*REMINT, "up"], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait("http://127.0.0.1:4297/api/health")
        time.sleep(15)  # for the worker to start
        claim("no-op run, local stack up (median of 3)", statistics.median(_timed(folder) for _ in range(3)), "s", 8)
    finally:
        stack.terminate()
        stack.wait()


def _timed(folder: Path) -> float:
    began = time.monotonic()
    (outcome,) = run(folder, "digits-vae")
    assert outcome["unchanged"] and not outcome["trained"], outcome
    return time.monotonic() - began


def _wait(url: str) -> None:
    for _ in range(1200):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


def quality(folder: Path) -> None:
    for seed in SEEDS:
        outcomes = {o["pipeline"]: o for name in PIPELINES for o in run(folder, name, "--set", f"training.seed={seed}")}
        metrics = {name: o["metrics"] for name, o in outcomes.items()}
        floor = outcomes["digits-gan"]["context"]["fd_domain_floor"]["value"]
        claim(f"seed {seed}: flow NLL on held-out digits", metrics["digits-flow"]["nll"]["value"], "bits/dim", 2.05)
        claim(f"seed {seed}: VAE IWAE-500 on held-out digits", metrics["digits-vae"]["iwae"]["value"], "bits/dim", 1.95)
        claim(f"seed {seed}: GAN fd_domain over the floor", metrics["digits-gan"]["fd_domain"]["value"] / floor, "times", 3)
        print(
            "     "
            + "  ".join(f"{name} fd_domain {m['fd_domain']['value']:.2f}" for name, m in metrics.items())
            + f"  floor {floor:.2f}"
        )


def bits(folder: Path) -> None:
    """Train each pipeline from scratch in two homes, and compare the SHA-256 of the weights."""
    first, second = (_weights(folder, folder.parent / f"home{i}") for i in range(2))
    for name in PIPELINES:
        claim(f"{name}: weights of two trainings from scratch that differ", float(first[name] != second[name]), "files", 0)


def _weights(folder: Path, home: Path) -> dict[str, str]:
    environment = {**os.environ, "REMINT_HOME": str(home)}
    done = subprocess.run(
        [*REMINT, "run", *PIPELINES, "--json"],
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return {o["pipeline"]: o["weights_sha256"] for o in json.loads(done.stdout)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", action="append", choices=["demo", "noop", "quality", "bits"])
    parts = parser.parse_args().part or ["demo", "noop", "quality", "bits"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = clone(Path(temporary) / "team")
        for part in parts:
            {"demo": demo, "noop": noop, "quality": quality, "bits": bits}[part](folder)
    print(f"{len(failures)} claims missed" if failures else "every claim holds")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
