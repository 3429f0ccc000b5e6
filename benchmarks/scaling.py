"""Time two processes of one thread against one, and the training noise of a rank in worlds of many sizes.

    .venv/bin/python -m benchmarks.scaling [CASE ...]
    .venv/bin/python -m benchmarks.scaling launchers [ROUNDS [SECONDS]]

Each training runs for SECONDS seconds: alone; as two ranks, by remint's own launcher, with the same global batch; and twice at
once without a link, which shows what the machine itself allows. Steps per second come from the progress events, so that the start
is not in them. Two cores of a virtual machine may be two threads of one core; then the last figure is well below 2.

The noise of a rank's rows is timed for the last rank of 1, 8 and 64, with as many rows per rank in each.

``launchers`` trains LAUNCHED in turns by two ranks under torchrun, and under Ray on two machines of one processor each. A cluster
starts and ends with its training, so that it takes nothing from torchrun. A start is the time from the call to the first progress
event, which needs up to a second from a machine to the job. Then it trains by 1, 2 and 4 ranks under torchrun, in turns too.

Writes docs/results/scaling.json, and docs/results/launchers.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.loops import CONVOLUTIONAL, FAMILIES, build, loop
from remint.distributed import cluster
from remint.distributed.launch import run_ranks
from remint.distributed.machine import deterministic, fingerprint
from remint.distributed.world import World, join
from remint.errors import Interrupted
from remint.runtime.events import EVENTS, emit
from remint.settings.recipe import TrainingSettings
from remint.stores import git
from remint.training.feed import InMemory
from remint.training.randomness import batch_noise
from tests.support.ray_cluster import RayCluster, ray_cluster

CASES: dict[str, tuple[str, int, dict[str, Any], int]] = {  # family, side, model, global batch
    **{f"{name}-32": (name, 32, CONVOLUTIONAL[name], 64) for name in FAMILIES},
    "vae-mlp-28": ("vae", 28, {"hidden": 512}, 512),
}
SECONDS = 8.0
TIMES = 1.7  # the claim: two processes against one, for the networks at 32 px
WORLDS, ROWS, NUMBERS, CALLS = (1, 8, 64), 64, 128, 200  # ranks; rows of a rank, numbers of a row; timed calls
NOISE = 1.25  # the claim: time of a rank in the largest world against that in a world of one
LAUNCHED, ROUNDS, LONG = "gan-32", 5, 30.0  # case of the launchers; rounds; seconds of each training
RAY = 0.97  # the claim: steps a second under Ray against torchrun, median of the rounds
RANKS = (1, 2, 4)
SOURCE = Path(__file__).parents[1]


def train(case: str, seconds: float, out: str = "") -> None:
    """Train in this process, one of N or the only one, until the time is over. ``out``: folder to make, which a cluster sends."""
    name, side, model, batch = CASES[case]
    with deterministic(threads=1), join() as world, suppress(Interrupted):
        training = build(name, side, model)
        settings = TrainingSettings(steps=10**6, batch_size=batch, validate_every=10**6, checkpoint_every=10**6)
        end = time.monotonic() + seconds
        feed = InMemory(training.x_NX, None)
        loop(training.model, training.phases, feed, settings, world, stop=lambda: time.monotonic() > end)
    if out:
        Path(out).mkdir(exist_ok=True)


def rate(events: Path) -> float:
    """Return steps per second between the second and the last progress event. The first follows the first step."""
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    rows = [row for row in rows if row["event"] == "progress"][1:]
    if len(rows) < 2:
        raise SystemExit(f"{len(rows)} progress events: SECONDS is too short for this machine")
    return float((rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["seconds"] - rows[0]["seconds"]))


def alone(case: str, count: int) -> list[float]:
    """Return the rate of each of ``count`` separate trainings that run at once."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.jsonl" for i in range(count)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.scaling", "train", case, str(SECONDS)]
        programs = [subprocess.Popen(command, env={**environment, EVENTS: str(file)}) for file in files]
        failed = sum(program.wait() != 0 for program in programs)
        if failed:
            raise SystemExit(f"{case}: a training failed")
        return [rate(file) for file in files]


def ranks(case: str, count: int, seconds: float = SECONDS) -> tuple[float, float]:
    """Return the rate of one training by ``count`` ranks under torchrun, and the seconds of its start."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "events.jsonl"
        os.environ[EVENTS] = str(file)
        emit("called")
        run_ranks(["-m", "benchmarks.scaling", "train", case, str(seconds)], count, 1)
        return rate(file), start(file)


def ranks_by_ray(case: str, machines: RayCluster, seconds: float) -> tuple[float, float]:
    """Return the rate of one training by a rank on each of two machines, and the seconds of its start on a running cluster."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "events.jsonl"
        environment = {**machines.environment(0), EVENTS: str(file), "PYTHONPATH": f"{SOURCE}/src:{SOURCE}"}
        program = [sys.executable, "-m", "benchmarks.scaling", "ray", case, str(seconds)]  # a process knows one token only
        subprocess.run(program, env=environment, cwd=folder, check=True)
        return rate(file), start(file)


def train_by_ray(case: str, seconds: float) -> None:
    """Train on two machines of the cluster that the environment names, with files in the current folder."""
    emit("called")
    command = ["-m", "benchmarks.scaling", "train", case, str(seconds), "trained"]
    kept = Path("checkpoints/none").absolute()
    kept.mkdir(parents=True)
    cluster.train_on_nodes(cluster.Nodes(2, 2, 1, 1), command, ["-c", "pass"], {}, git.pack(SOURCE), kept, [], Path("trained"))


def start(events: Path) -> float:
    """Return the seconds from the call to the first progress event."""
    first: dict[str, float] = {}
    for row in map(json.loads, events.read_text().splitlines()):
        first.setdefault(row["event"], row["at"])
    return first["progress"] - first["called"]


def launchers(rounds: int = ROUNDS, seconds: float = LONG) -> None:
    """Compare Ray with torchrun, and worlds of several sizes with each other."""
    before = os.getloadavg()[0]
    by_torchrun, by_ray, clusters = [], [], []
    for number in range(rounds):
        if number % 2:
            by_torchrun.append(ranks(LAUNCHED, 2, seconds))
        began = time.monotonic()
        with ray_cluster(2) as machines:
            clusters.append(time.monotonic() - began)
            by_ray.append(ranks_by_ray(LAUNCHED, machines, seconds))
        if not number % 2:
            by_torchrun.append(ranks(LAUNCHED, 2, seconds))
    ratio = statistics.median(ray[0] / torchrun[0] for ray, torchrun in zip(by_ray, by_torchrun, strict=True))
    rates: dict[int, list[float]] = {size: [] for size in RANKS}
    for _ in range(rounds):
        for size in RANKS:
            rates[size].append(ranks(LAUNCHED, size, seconds)[0])
    milliseconds = {size: 1000 / statistics.median(values) for size, values in rates.items()}
    starts = {
        name: statistics.median(found)
        for name, found in (
            ("torchrun", [second for _, second in by_torchrun]),
            ("ray", [second for _, second in by_ray]),
            ("cluster", clusters),
        )
    }
    print(f"{LAUNCHED}: steps a second under Ray {ratio:.3f} of those under torchrun; seconds of a start: {starts}")
    print("milliseconds of a step:", ", ".join(f"{size} ranks {value:.1f}" for size, value in milliseconds.items()))
    found = {"case": LAUNCHED, "seconds": seconds, "ratio": ratio, "by_ray": by_ray, "by_torchrun": by_torchrun}
    write("launchers", before, {**found, "starts": starts, "step_milliseconds": milliseconds})
    if ratio < RAY:
        raise SystemExit(f"bound missed: Ray has {ratio:.3f} of torchrun's steps a second, at least {RAY} is claimed")


def write(name: str, load_before: float, found: dict[str, Any]) -> None:
    machine = fingerprint(torch.device("cpu"), 1, 1)
    head = {"date": date.today().isoformat(), "machine": machine, "load_average": (load_before, os.getloadavg()[0])}
    (SOURCE / f"docs/results/{name}.json").write_text(json.dumps({**head, **found}, indent=1) + "\n")


def noise() -> dict[int, float]:
    """Return the median microseconds of the noise of the last rank's rows, by the number of ranks."""
    times: dict[int, list[float]] = {size: [] for size in WORLDS}
    for step in range(CALLS):
        for size in WORLDS:
            rows = World(size - 1, size, torch.device("cpu")).rows(ROWS * size)
            began = time.perf_counter()
            batch_noise(rows, NUMBERS, seed=0, step=step, phase=0, device=torch.device("cpu"))
            times[size].append(time.perf_counter() - began)
    return {size: statistics.median(values) * 1e6 for size, values in times.items()}


def main(*chosen: str) -> None:
    before = os.getloadavg()[0]
    microseconds = noise()
    print("noise of a rank, microseconds:", ", ".join(f"{size} ranks {value:.0f}" for size, value in microseconds.items()))
    results: dict[str, Any] = {}
    for case in chosen or CASES:
        (one,), (two, _), both = alone(case, 1), ranks(case, 2), alone(case, 2)
        results[case] = {"one": one, "two_ranks": two, "times": two / one, "separate": both, "limit": sum(both) / one}
        print(
            f"{case:12} {one:8.2f} steps a second   two ranks {two / one:.2f} times   two trainings {sum(both) / one:.2f} times"
        )
    write("scaling", before, {"noise_microseconds": microseconds, "results": results})
    missed = [f"{case}: {r['times']:.2f} times" for case, r in results.items() if case.endswith("-32") and r["times"] < TIMES]
    if microseconds[WORLDS[-1]] > NOISE * microseconds[1]:
        missed.append("the noise of a rank takes longer in a larger world")
    if missed:
        raise SystemExit(f"bounds missed (two processes at least {TIMES} times one): {', '.join(missed)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train(sys.argv[2], float(sys.argv[3]), *sys.argv[4:])
    elif sys.argv[1:2] == ["ray"]:
        train_by_ray(sys.argv[2], float(sys.argv[3]))
    elif sys.argv[1:2] == ["launchers"]:
        launchers(*(kind(each) for kind, each in zip((int, float), sys.argv[2:], strict=False)))
    else:
        main(*sys.argv[1:])
