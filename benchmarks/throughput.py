"""Compare steps per second of remint's loop and of a plain DataLoader loop, on the digits, in one run on one thread.

    python benchmarks/throughput.py [FAMILY ...]

The plain loop does the same work in the usual way: a Dataset that makes a float tensor of each image, a shuffling
DataLoader, AdamW with its defaults, an average of the weights parameter by parameter, ``loss.item()`` in every step. The
two alternate, so that a busy machine slows both. The median is printed.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from remint.distributed.machine import deterministic
from remint.distributed.world import World
from remint.models.contract import Batch
from remint.models.families import family
from remint.records import DataSpec
from remint.settings.recipe import MODEL_SETTINGS, TrainingSettings
from remint.training.checkpoint import Checkpoints
from remint.training.loop import training_loop

STEPS, TURNS = 200, 5
TRAINING = TrainingSettings(steps=STEPS, validate_every=STEPS, checkpoint_every=STEPS)


class Images(Dataset[Tensor]):
    def __init__(self, x_NCHW: np.ndarray[Any, Any]) -> None:
        self.x_NCHW = x_NCHW

    def __len__(self) -> int:
        return len(self.x_NCHW)

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(self.x_NCHW[index], dtype=torch.float32)


def plain(name: str, x_NCHW: np.ndarray[Any, Any], spec: DataSpec) -> None:
    settings = MODEL_SETTINGS[name]()
    model = family(name).build(settings, spec)
    model.initialise(torch.from_numpy(x_NCHW))
    average = [parameter.detach().clone() for parameter in model.parameters()]
    phases = family(name).phases(model, settings)
    optimizers = [torch.optim.AdamW(phase.parameters(), lr=TRAINING.learning_rate, betas=phase.betas) for phase in phases]
    loader = DataLoader(Images(x_NCHW), batch_size=TRAINING.batch_size, shuffle=True, drop_last=True)
    losses = []

    def forever() -> Iterator[Tensor]:
        while True:
            yield from loader

    for step, x_BCHW in zip(range(STEPS), forever(), strict=False):
        for phase, optimizer in zip(phases, optimizers, strict=True):
            noise_BN = torch.randn(len(x_BCHW), phase.noise_size)
            loss = phase(Batch(x_BCHW, noise_BN, step / STEPS, step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        with torch.no_grad():
            for mean, parameter in zip(average, model.parameters(), strict=True):
                mean.mul_(TRAINING.ema).add_(parameter, alpha=1 - TRAINING.ema)


def ours(name: str, x_NCHW: np.ndarray[Any, Any], spec: DataSpec) -> None:
    settings = MODEL_SETTINGS[name]()
    model = family(name).build(settings, spec)
    x = torch.from_numpy(x_NCHW)
    model.initialise(x)
    with tempfile.TemporaryDirectory() as folder:
        training_loop(
            model,
            family(name).phases(model, settings),
            x,
            None,
            TRAINING,
            score=None,
            guard=None,
            world=World(0, 1, torch.device("cpu")),
            machine={},
            checkpoints=Checkpoints(Path(folder), "benchmark"),
            stop=lambda: False,
        )


def rate(loop: Callable[[str, np.ndarray[Any, Any], DataSpec], None], *arguments: Any) -> float:
    began = time.perf_counter()
    loop(*arguments)
    return STEPS / (time.perf_counter() - began)


def main(*names: str) -> None:
    from sklearn.datasets import load_digits

    os.environ["REMINT_EVENTS"] = os.devnull  # do not measure the terminal
    x_NCHW = load_digits().images.astype(np.uint8)[:, None]
    spec = DataSpec(shape=(1, 8, 8), levels=17)
    print(f"{'family':8}{'plain':>12}{'remint':>12}{'ratio':>8}   (steps per second, batch {TRAINING.batch_size}, one thread)")
    with deterministic(threads=1):
        for name in names or sorted(MODEL_SETTINGS):
            turns = [(rate(plain, name, x_NCHW, spec), rate(ours, name, x_NCHW, spec)) for _ in range(TURNS)]
            slow, fast = (statistics.median(column) for column in zip(*turns, strict=True))
            print(f"{name:8}{slow:12.0f}{fast:12.0f}{statistics.median(b / a for a, b in turns):8.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
