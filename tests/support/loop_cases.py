"""Model of two weights and its training phases, small enough for exact oracles of the training loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from remint.data.sampler import batch_indices
from remint.distributed.world import World
from remint.models.contract import Batch, Model, Phase
from remint.settings.recipe import TrainingSettings
from remint.training.checkpoint import Checkpoints
from remint.training.feed import InMemory
from remint.training.loop import training_loop
from remint.training.randomness import batch_noise
from remint.training.state import TrainingState
from remint.training.step import learning_rate_factor

ONE_PROCESS = World(0, 1, torch.device("cpu"))
SETTINGS: dict[str, Any] = {
    "steps": 8,
    "batch_size": 4,
    "learning_rate": 0.05,
    "warmup": 0.25,
    "final_learning_rate": 0.1,
    "weight_decay": 0.0,
    "gradient_clip": 0.0,
    "ema": 0.9,
    "ema_images": None,
    "seed": 11,
    "precision": "fp32",
    "validate_every": 2,
    "patience": 0,
    "checkpoint_every": 100,
    "skip_limit": 5,
    "skip_share": 1.0,
    "rollbacks": 2,
    "rollback_learning_rate": 0.5,
}
X_NCHW = torch.from_numpy(np.random.default_rng(0).integers(0, 3, size=(10, 1, 1, 1), dtype=np.uint8))


class Line(Model):
    """y = w x: the model that all phases here train."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0, -1.0]))
        self.register_buffer("seen", torch.zeros(()))


class Fit(Phase):
    """Mean squared distance of w to (pixel, noise)."""

    name: ClassVar[str] = "fit"

    def __init__(self, model: Line) -> None:
        super().__init__()
        self.model = model
        self.noise_size = 1
        self.watch: Callable[[Batch], None] = lambda batch: None

    def forward(self, batch: Batch) -> Tensor:
        self.watch(batch)
        self.model.seen += 1
        target = torch.stack([batch.x_BX.flatten(1)[:, 0], batch.noise_BN[:, 0]], dim=1)
        return (self.model.weight - target).square().sum(1).mean()


class Cliff(Fit):
    """Loss that is NaN after a step has moved a weight by more than ``bound``, as a too high learning rate does."""

    name: ClassVar[str] = "cliff"

    def __init__(self, model: Line, bound: float) -> None:
        super().__init__(model)
        self.bound = bound
        self.register_buffer("last", model.weight.detach().clone())

    def forward(self, batch: Batch) -> Tensor:
        moved = (self.model.weight.detach() - self.last).abs().max()
        self.last.copy_(self.model.weight.detach())
        return super().forward(batch) + torch.where(moved > self.bound, math.nan, 0.0)


def train_line(
    folder: Path,
    model: Line,
    phases: list[Phase],
    score: Any = None,
    stop: Any = lambda: False,
    guard: Any = None,
    **changed: Any,
) -> TrainingState:
    checkpoints = Checkpoints(folder, "d")
    with checkpoints.held("the test"):
        return training_loop(
            model,
            phases,
            InMemory(X_NCHW, None),
            TrainingSettings.model_validate(SETTINGS | changed),
            score=score,
            guard=guard,
            world=ONE_PROCESS,
            machine={},
            checkpoints=checkpoints,
            stop=stop,
        )


def reference_training(
    steps: Iterable[int], *, weight_decay: float, clip: float | None
) -> tuple[nn.Parameter, Tensor, list[float]]:
    """Compute the oracle: train Line for these steps with torch's AdamW and SETTINGS. Return weight, average, losses."""
    weight = nn.Parameter(torch.tensor([2.0, -1.0]))
    optimizer = torch.optim.AdamW([weight], lr=1.0, weight_decay=weight_decay)
    average, losses = torch.tensor([2.0, -1.0]), []
    for step in steps:
        x = X_NCHW[batch_indices(10, 4, 11, step).tolist()].float().flatten()
        noise = batch_noise(slice(0, 4), 1, seed=11, step=step, phase=0, device=X_NCHW.device).flatten()
        loss = ((weight[0] - x).square() + (weight[1] - noise).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_([weight], clip)
        optimizer.param_groups[0]["lr"] = 0.05 * learning_rate_factor(step, 8, 0.25, 0.1)
        optimizer.step()
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight.detach()
        losses.append(loss.item())
    return weight, average, losses
