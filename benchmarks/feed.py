"""Measure the steps per second of a training that reads its examples from disk, beside one that has them in memory.

    python -m benchmarks.feed

A GAN of 64 x 64 colour pictures trains on random ones, as many as are four times LIMIT. From disk (``data: mapped``), its process
is in a memory cgroup of LIMIT, which counts the page cache too, and the files are not cached at its start. In memory
(``data: device``) there is no limit. The two alternate. Where no cgroup can be made, RLIMIT_DATA is the limit, which does not
count the page cache; the result says which.

Prints one line for each round, and writes docs/results/feed.json; ends with status 1 if the median share is below LEAST.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
LIMIT = 448 << 20  # bytes; the program alone takes about 300 MiB
TIMES, SHARDS = 4, 16
SIDE = 64
WARMUP, STEPS, ROUNDS = 5, 40, 3
LEAST = 0.9


def write(folder: Path) -> int:
    """Write shards of random pictures and return their number."""
    count = TIMES * LIMIT // (3 * SIDE * SIDE)
    generator = np.random.default_rng(0)
    for number, part in enumerate(np.array_split(np.arange(count), SHARDS)):
        pictures = generator.integers(256, size=(len(part), 3, SIDE, SIDE), dtype=np.uint8)
        np.save(folder / f"train-{number:05d}.npy", pictures)
    return count


def train(folder: Path, mode: str) -> None:
    """Train, and print the steps per second after WARMUP steps, and the peak of the memory that is no file."""
    import torch

    from benchmarks.loops import loop
    from remint.data.arrays import ShardedArray, Split
    from remint.distributed.machine import deterministic
    from remint.distributed.world import SINGLE_PROCESS
    from remint.models.families import family
    from remint.records import DataSpec
    from remint.settings.recipe import GanSettings, TrainingSettings
    from remint.training.feed import open_feed

    shards = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("train-*.npy"))]
    split = Split(ShardedArray(shards), None)  # type: ignore[arg-type]
    settings = GanSettings(network="dcgan", width=16)
    every = WARMUP + STEPS
    training = TrainingSettings.model_validate({"steps": every, "validate_every": every, "checkpoint_every": every, "data": mode})
    generator = family("gan")
    model = generator.build(settings, DataSpec(shape=(3, SIDE, SIDE)))
    times: list[float] = []

    def stop() -> bool:  # asked after each step
        times.append(time.perf_counter())
        return False

    with deterministic(threads=1), open_feed(split, training, SINGLE_PROCESS) as feed:
        phases = generator.phases(model, settings)
        torch.manual_seed(0)
        loop(model, phases, feed, training, SINGLE_PROCESS, stop=stop)
    status = Path("/proc/self/status").read_text()
    anonymous = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    print(
        json.dumps({"steps_per_second": (len(times) - WARMUP) / (times[-1] - times[WARMUP - 1]), "megabytes": anonymous / 1000})
    )


@contextlib.contextmanager
def limited() -> Iterator[tuple[str, Path | None]]:
    """Yield the kind of the limit, and the file that takes a process into a memory cgroup of LIMIT; None: RLIMIT_DATA."""
    own = {line.split(":")[1]: line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
    first = Path("/sys/fs/cgroup")
    place = first / "memory" / own["memory"].strip("/") if "memory" in own else first / own.get("", "").strip("/")
    group = place / f"remint-benchmark-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield "RLIMIT_DATA, without the page cache", None
        return
    try:
        file = "memory.limit_in_bytes" if "memory" in own else "memory.max"
        (group / file).write_text(str(LIMIT))
        yield "cgroup, with the page cache", group / "cgroup.procs"
    except OSError:
        yield "RLIMIT_DATA, without the page cache", None
    finally:
        group.rmdir()


def run(folder: Path, mode: str, procs: Path | None) -> dict[str, float]:
    for path in folder.glob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def limit() -> None:
        if mode == "mapped" and procs is not None:
            procs.write_text(str(os.getpid()))
        elif mode == "mapped":
            resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))

    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "REMINT_EVENTS": os.devnull}
    command = [sys.executable, "-m", "benchmarks.feed", str(folder), mode]
    done = subprocess.run(command, env=environment, cwd=ROOT, preexec_fn=limit, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{mode}: {done.returncode} {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="remint-feed-") as temporary, limited() as (kind, procs):
        folder = Path(temporary)
        count = write(folder)
        rounds = []
        for _ in range(ROUNDS):
            rounds.append({mode: run(folder, mode, procs) for mode in ("device", "mapped")})
            print(json.dumps(rounds[-1]), flush=True)
    share = statistics.median(each["mapped"]["steps_per_second"] / each["device"]["steps_per_second"] for each in rounds)
    results = {
        "pictures": count,
        "megabytes": count * 3 * SIDE * SIDE / 1e6,
        "limit_megabytes": LIMIT / 1e6,
        "limit": kind,
        "share": share,
        "load": os.getloadavg()[0],
        "rounds": rounds,
    }
    (ROOT / "docs/results/feed.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"{results['megabytes']:.0f} MB within {results['limit_megabytes']:.0f} MB ({kind}): {share:.2f} of the rate in memory")
    if share < LEAST:
        raise SystemExit(f"missed: less than {LEAST} of the rate in memory")


if __name__ == "__main__":
    train(Path(sys.argv[1]), sys.argv[2]) if sys.argv[1:] else main()
