"""The memory of an evaluation does not grow with the data: each part runs in a process that may take little of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

IMAGES, SIDE = 130_000, 32  # 399 MB, of zeros that take no room on the disk
ALLOWED = 280 * 2**20  # bytes beyond those of a process with all modules

CHILD = """
import resource, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from remint.data.arrays import Dataset, Split
from remint.evaluation import drift, exhibits, features, leakage, likelihood, near_copies
from remint.evaluation.context import EvaluationContext
from remint.records import DatasetVersion, DataSpec
from remint.settings.judging import EvaluationSettings

torch.set_num_threads(1)
torch.randn(64, 64) @ torch.randn(64, 64)
spec = DataSpec(shape=(3, 32, 32), levels=256, classes=2)
version = DatasetVersion(name="x", source="x", raw_sha256="", spec=spec, split={}, counts={"train": 130000}, files={})
train = Split(np.load(sys.argv[2], mmap_mode="r"), np.load(sys.argv[3], mmap_mode="r"))
held_out = Split(np.random.default_rng(0).integers(256, size=(300, 3, 32, 32), dtype=np.uint8), np.arange(300) % 2)
dataset = Dataset(version, train, held_out, held_out)
near_copies.REDUCED, features.STEPS, drift.SHUFFLES, drift.MAX_EXAMPLES, drift.MAX_TESTED = 2**20, 2, 2, 500, 20_000
parts = {
    "features": lambda: features.fit(dataset, Path(sys.argv[4])),
    "baseline": lambda: likelihood.independent_baseline(EvaluationContext(dataset, {}, EvaluationSettings())),
    "leakage": lambda: leakage.find(held_out, train, spec),
    "nearest": lambda: exhibits.nearest(held_out.x_NX[:64], dataset),
    "drift": lambda: drift.measure_drift(
        replace(dataset, version=version.model_copy(update={"source": "y"})),
        replace(dataset, train=Split(train.x_NX[:120_000], train.y_N[:120_000])), lambda x: x[:, 0, 0, :2].astype(float), ""
    ),
    "a copy": lambda: np.array(train.x_NX),
}
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used + int(sys.argv[5]), resource.RLIM_INFINITY))
try:
    parts[sys.argv[1]]()
except (MemoryError, RuntimeError) as error:
    sys.exit(f"{sys.argv[1]}: {type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("large")
    np.lib.format.open_memmap(folder / "x.npy", mode="w+", dtype=np.uint8, shape=(IMAGES, 3, SIDE, SIDE)).flush()
    np.save(folder / "y.npy", np.arange(IMAGES) % 2)
    return [str(folder / "x.npy"), str(folder / "y.npy")]


def run(what: str, files: list[str], out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, what, *files, str(out), str(ALLOWED)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.soak
@pytest.mark.parametrize("part", ["features", "baseline", "leakage", "nearest", "drift"])
def test_a_part_of_an_evaluation_takes_less_memory_than_the_data(part: str, files: list[str], tmp_path: Path) -> None:
    done = run(part, files, tmp_path / "out")
    assert done.returncode == 0, done.stderr


@pytest.mark.soak
def test_the_limit_refuses_a_copy_of_the_data(files: list[str], tmp_path: Path) -> None:
    done = run("a copy", files, tmp_path / "out")
    assert done.returncode == 1 and "a copy: " in done.stderr and "MemoryError" in done.stderr
