"""Trainings over a real Ray cluster, as processes, and the weights that one process gives."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from remint.training.checkpoint import Checkpoints
from tests.support import training_cases as cases
from tests.support.ray_cluster import RayCluster

EXACT = {"precision": "fp64", "steps": 40, "learning_rate": 2e-4, "batch_size": 13}
DRIVER = """
import json, os, sys
from pathlib import Path
from remint.distributed import cluster
from remint.stores import git
from remint.training import train
from tests.support import training_cases as cases

nodes, command, checkpoints, out, source = json.loads(sys.argv[1])
with train._stopping_on_signals():
    os.chdir(out)
    cluster.train_on_nodes(cluster.Nodes(*nodes), command, ["-c", "pass"], {}, git.pack(Path(source)), Path(checkpoints), sorted(Path(checkpoints).glob("step-*")), Path("work/out"))
"""
SOURCE = Path(__file__).parents[2]


class Job:
    """A training of one case over a cluster, as a process."""

    def __init__(
        self, cluster: RayCluster, folder: Path, home: Path, case: str, nodes: tuple[int, int], *options: str, **more: object
    ) -> None:
        self.home, recipe = home, cases.recipe(case, **(EXACT | more))
        settings = json.dumps(EXACT | more | {"home": "."})
        command = ["tests/support/training_cases.py", str(folder), case, settings, "node", *options]
        kept = Checkpoints(home / "checkpoints", cases.training_digest(recipe, cases.load(folder)))
        kept.folder.mkdir(parents=True, exist_ok=True)
        self.kept = kept
        asked = json.dumps([[*nodes, 1, 1], command, str(kept.folder), str(home), str(SOURCE)]).replace("work/out", f"{case}/out")
        environment = cluster.environment(0) | {
            "PYTHONPATH": cases.environment()["PYTHONPATH"],
            "REMINT_EVENTS": str(home / "events"),
        }
        self.log = (home / "log").open("ab")
        program = DRIVER.replace("work/out", f"{case}/out")
        driver = cluster.command(0, [sys.executable, "-c", program, asked])
        self.process = subprocess.Popen(driver, env=environment, stdout=self.log, stderr=self.log)
        self.case = case

    def wait_for(self, what: str, seconds: float = 180.0) -> float:
        """Wait for a word in the events of the job, or for its first checkpoint. Return the seconds that it took."""
        began = time.monotonic()
        while not (self.kept.steps() if what == "checkpoint" else what in self.events()):
            assert self.process.poll() is None and time.monotonic() - began < seconds, (self.home / "log").read_text()[-3000:]
            time.sleep(0.1)
        return time.monotonic() - began

    def events(self) -> str:
        events = self.home / "events"
        return events.read_text() if events.exists() else ""

    def machines(self) -> list[int]:
        """Return the number of machines of each start."""
        events = map(json.loads, self.events().splitlines())
        return [each["machines"] for each in events if each["event"] in ("machines", "machine_lost")]

    def weights(self) -> dict[str, torch.Tensor]:
        assert self.process.wait(600) == 0, (self.home / "log").read_text()[-3000:]
        return load_file(self.home / self.case / "out/weights.safetensors")


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0.0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def one_process(folder: Path, home: Path, case: str, **more: object) -> dict[str, torch.Tensor]:
    cases.train_into(cases.recipe(case, **(EXACT | more)), cases.load(folder), home)
    return load_file(home / "out/weights.safetensors")
