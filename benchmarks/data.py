"""Measure a whole run on pictures: peak memory at several sizes; and of preparation the images per second beside a DataLoader.

    python -m benchmarks.data [SIZE ...] [--side PIXELS] [--large]

memory   peak memory (largest resident set) of each step on SIZE times BASE colour JPEGs of 64 x 64, each step a process of
         its own, as in a run. REMINT_MEMORY is MEMORY, so that a training reads every size from disk. The peak of the first
         two may grow by GROWTH bytes for each picture: its path, class and hash, and no pixels, which have 12,288; that of
         the others by FLAT. --side: pictures of another size, and as much less memory as they are smaller
rate     images per second of ``snapshot`` and ``prepare`` together, and of one epoch of a torch DataLoader that opens, decodes
         and stacks the same files, with no worker and with two. The steps run once per version of the data, the DataLoader in
         each epoch
--large  in addition LARGE pictures, 1.3 GB as bytes, which must take less than 2 GB of memory

Prints one line for each size, and writes docs/results/data.json; ends with status 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
BASE, SIZES, LARGE = 5_000, (1, 4, 16), 105_800
SIDE = 64
GROWTH, FLAT, MOST = 200, 0.1, 2_000.0  # bytes of a picture, share, megabytes
MEMORY = 32  # MiB, of pictures of SIDE pixels
PREPARATION = ("snapshot", "prepare")
STEPS = (*PREPARATION, "features", "train", "evaluate")
PARAMS = """
datasets: {pictures: {source: pictures}}
pipelines:
  pictures:
    dataset: pictures
    family: gan
    model: {network: dcgan, width: 8}
    training: {steps: 20, validate_every: 10}
    evaluation: {metrics: [fd_domain, novelty], samples: 256, draws: 2}
    promotion: {}
    schedule: {}
"""
LOADER = """
import resource, sys, time
from pathlib import Path
import numpy as np, torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

class Pictures(Dataset):
    def __init__(self, folder):
        self.paths = sorted(folder.rglob("*.jpg"))
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        return torch.from_numpy(np.array(Image.open(self.paths[index]).convert("RGB")).transpose(2, 0, 1))

def processor():
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)

torch.set_num_threads(1)
began, before, count = time.perf_counter(), processor(), 0
for x_BCHW in DataLoader(Pictures(Path(sys.argv[1])), batch_size=64, shuffle=True, num_workers=int(sys.argv[2])):
    count += len(x_BCHW)
print(count / (time.perf_counter() - began), count / (processor() - before))
"""


def draw(folder: Path, first: int, count: int, side: int) -> None:
    """Write JPEGs of smooth noise, with a folder for each of ten classes. A picture is a function of its number."""
    for number in range(first, count):
        rough_HWC = np.random.default_rng(number).integers(256, size=(8, 8, 3), dtype=np.uint8)
        path = folder / str(number % 10) / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rough_HWC).resize((side, side), Image.Resampling.BILINEAR).save(path, quality=85)


def step(folder: Path, name: str, side: int) -> dict[str, float]:
    """Run one step as a run does. Return its seconds, its seconds of processor time, and its peak memory in megabytes.

    The kernel counts the memory of the starting process too, so this process imports neither torch nor remint.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        "REMINT_HOME": str(folder / "home"),
        "REMINT_MEMORY": f"{MEMORY * side**2 // SIDE**2}MiB",
    }
    began = time.perf_counter()
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", f"pipelines.{name}", "pictures"], cwd=folder, env=environment, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name} failed: {(folder / f'{name}.log').read_text()[-2000:]}")
    return {
        "seconds": time.perf_counter() - began,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_megabytes": usage.ru_maxrss * 1024 / 1e6,
    }


def loader(folder: Path, workers: int) -> dict[str, float]:
    """Return the images per second of one epoch of a DataLoader, and per second of processor time."""
    command = [sys.executable, "-c", LOADER, str(folder / "pictures"), str(workers)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return {"images_per_second": float(found[0]), "images_per_processor_second": float(found[1])}


def measure(folder: Path, count: int, side: int) -> dict[str, Any]:
    """Run all steps on ``count`` pictures. Return one row of the results."""
    steps = {name: step(folder, name, side) for name in STEPS}
    return {
        "images": count,
        "side": side,
        "megabytes": count * side * side * 3 / 1e6,
        "images_per_second": count / sum(steps[name]["seconds"] for name in PREPARATION),
        "images_per_processor_second": count / sum(steps[name]["processor_seconds"] for name in PREPARATION),
        "files": len(list((folder / "outs").rglob("*.npy"))),
        **steps,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    rows, drawn = [], 0
    with tempfile.TemporaryDirectory(prefix="remint-data-") as temporary:
        folder = Path(temporary)
        (folder / "params.yaml").write_text(PARAMS)
        for count in [BASE * size for size in arguments.sizes] + [LARGE] * arguments.large:
            draw(folder / "pictures", drawn, count, arguments.side)
            drawn = count
            row = measure(folder, count, arguments.side)
            if not rows:
                row |= {f"loader of {workers} workers": loader(folder, workers) for workers in (0, 2)}
            rows.append(row)
            print(json.dumps(row), flush=True)
    (ROOT / "docs/results/data.json").write_text(json.dumps(rows, indent=1) + "\n")
    problems = []
    for name in STEPS:
        peaks = [row[name]["peak_megabytes"] for row in rows]
        grown = 1e6 * (peaks[-1] - peaks[0]) / max(1, rows[-1]["images"] - rows[0]["images"])
        print(f"{name}: from {peaks[0]:.1f} to {peaks[-1]:.1f} MB, {grown:.0f} bytes for each further picture")
        if name in PREPARATION and grown > GROWTH:
            problems.append(f"the peak of {name} grows by {grown:.0f} bytes for each picture")
        if name not in PREPARATION and peaks[-1] > (1 + FLAT) * peaks[0]:
            problems.append(f"the peak of {name} grows by {peaks[-1] / peaks[0] - 1:.0%}")
        if arguments.large and peaks[-1] > MOST:
            problems.append(f"the peak of {name} with {LARGE:,} pictures is {peaks[-1]:,.0f} MB")
    if problems:
        raise SystemExit("missed: " + "; ".join(problems))


if __name__ == "__main__":
    main()
