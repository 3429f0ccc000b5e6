"""Collapse guard: measures during training how much of the validation split the model's samples cover.

    reached   share of the real examples that are among the k nearest real examples of at least one sample
    coverage  share of the real examples that such a sample reaches and that have it in their own ball, whose radius is the
              distance to their k-th nearest real neighbour

``reached`` measures diversity without quality: a model that has lost half of the modes reaches half. It decides the verdict,
relative to the share that equally many training examples reach, so that the verdict does not depend on the data.
``coverage`` also measures quality, and selects the row that is served after a collapse. It is the coverage of Naeem et al.,
Reliable fidelity and diversity metrics for generative models (2020), with one change: a sample counts only for its own
nearest neighbours. In many dimensions the mean of all images lies in nearly every ball, and without the change a generator
of grey images would cover everything. Neither measures the width of a mode: k is large enough that a generator with all
modes, each a third too narrow, passes. The loss of a GAN does not show a collapse: it looks the same while modes are lost.

The verdict depends only on the rows of the curve, so a resumed training reaches the same one.

Shapes: N real examples, M samples, D coordinates, X the axes of one example, 2 for reached and covered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from remint.data.arrays import Array
from remint.distributed.world import World
from remint.models.contract import CanSample, HasElbo, HasLogProb, Model, standard_normal
from remint.records import DataSpec
from remint.settings.recipe import TrainingSettings
from remint.training.randomness import COLLAPSE_CHECK
from remint.training.state import Row

MAX_EXAMPLES = 500  # maximum number of validation examples, and of samples, in a check
NEIGHBOUR_SHARE = 0.02  # k as a share of the real examples ...
MIN_NEIGHBOURS = 5  # ... and at least
MAX_CHECKS = 50  # maximum number of checks in a training; a check costs as much as one or two steps
CHUNK = 250  # samples at a time; the same at every world size, so that the result is too

DEFAULT_LIMIT = 0.6  # share of the reference below which a model has lost modes, if the settings give none
FRACTION_OF_BEST = 0.75  # share of its own best value below which a model is losing modes
WARMUP = 0.3  # share of the steps at the start without a verdict ...
MIN_STEPS = 500  # ... and their least number, because samples are poor at first
PATIENCE = 5  # consecutive checks that must agree


@dataclass(frozen=True)
class Guard:
    """Regular check of a model in training for a collapse."""

    measure: Callable[[Model], Row]  # coverage and reached
    reference: float  # ``reached`` of equally many training examples
    limit: float  # least share of the reference
    every: int  # steps between two checks
    steps: int  # of the whole training

    def due(self, step: int) -> bool:
        return step == self.steps or step % self.every == 0

    def collapsed(self, rows: Sequence[Row]) -> str | None:
        """Describe the collapse, or return None. Collapse: the last PATIENCE checks reached too little, none a new best."""
        looks = [(row["step"], row["reached"] / self.reference) for row in rows if "reached" in row]
        late = [share for step, share in looks[-PATIENCE:] if step > max(MIN_STEPS, WARMUP * self.steps)]
        best = max((share for _, share in looks[:-PATIENCE]), default=0.0)
        if len(late) < PATIENCE or max(late) > best:
            return None
        if max(late) < self.limit:
            return f"its samples reach {late[-1]:.0%} as much as real examples do, less than the limit of {self.limit:.0%}"
        if max(late) < FRACTION_OF_BEST * best:
            return f"its samples reach {late[-1]:.0%} as much as real examples do, and reached {best:.0%} before"
        return None


def build_guard(
    model: Model,
    train_NX: Array | Tensor,
    validation_NX: Array | Tensor,
    spec: DataSpec,
    settings: TrainingSettings,
    world: World,
) -> Guard | None:
    """Return the guard of a training; None if it is switched off, the model cannot sample, or there are too few examples.

    Without a setting only models without a likelihood are guarded: for the others the validation score shows a collapse. The
    ranks share the samples of a check, and all must call it. The splits are on the host, or on disk.
    """
    limit = settings.collapse
    if limit is None:
        limit = 0.0 if isinstance(model, (HasElbo, HasLogProb)) else DEFAULT_LIMIT
    count = min(len(validation_NX), MAX_EXAMPLES)
    k = max(MIN_NEIGHBOURS, round(NEIGHBOUR_SHARE * count))
    if limit == 0.0 or count <= k or not isinstance(model, CanSample):
        return None

    def some(x_NX: Array | Tensor) -> Tensor:
        return coordinates(torch.tensor(evenly_spaced(x_NX, count), device=world.device), spec)

    real_ND = some(validation_NX)
    # k + 1, because the nearest real example of each example is itself.
    radius_N1 = distances(real_ND, real_ND, spec).topk(k + 1, dim=1, largest=False).values[:, -1:]

    def cover(sample_MD: Tensor) -> Tensor:
        """Return the number of samples that reach each example, and that cover it, shape (2, N)."""
        apart_NM = distances(real_ND, sample_MD, spec)
        near_NM = apart_NM <= apart_NM.topk(k, dim=0, largest=False).values[-1]
        return torch.stack([near_NM.sum(1), (near_NM & (apart_NM <= radius_N1)).sum(1)]).cpu()

    reference = float((cover(some(train_NX))[0] > 0).double().mean())
    noise = standard_normal((count, model.sample_noise), settings.seed, COLLAPSE_CHECK)
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    chunks = torch.split(noise.to(world.device, dtype), CHUNK)

    @torch.no_grad()
    def measure(judged: Model) -> Row:
        assert isinstance(judged, CanSample)
        counts_2N = torch.zeros((2, count), dtype=torch.int64)  # integers, so that the sum over the ranks is exact
        for chunk in chunks[world.rank :: world.size]:
            counts_2N += cover(coordinates(judged.sample(chunk), spec))
        reached, covered = (world.gather(counts_2N).sum(0) > 0).double().mean(1).tolist()
        return {"coverage": covered, "reached": reached}

    rows = max(1, -(-settings.steps // (MAX_CHECKS * settings.validate_every)))
    return Guard(measure, reference, limit, rows * settings.validate_every, settings.steps)


def evenly_spaced(x_NX: Array | Tensor, count: int) -> Array:
    """Return ``count`` evenly spaced examples; all of them, in order, if there are no more."""
    return np.asarray(x_NX[np.linspace(0, len(x_NX) - 1, min(count, len(x_NX))).round().astype(np.int64)])


def coordinates(x_NX: Tensor, spec: DataSpec) -> Tensor:
    """Return the coordinates of examples, float64, shape (N, D).

    Images: pixel values. Rows: standardised numbers, and each category as a corner of a simplex with sides of 1. A missing
    number is at the mean, with an indicator of 1 in an extra coordinate. A missing category is equally far from all corners.
    """
    if not spec.is_table:
        return x_NX.flatten(1).double()
    parts_NC: list[Tensor] = []
    for value_N, column in zip(x_NX.double().unbind(1), spec.columns, strict=True):
        if column.numeric:
            parts_NC.append(value_N.nan_to_num(0.0).unsqueeze(1))
            if column.missing:
                parts_NC.append(value_N.isnan().double().unsqueeze(1))
        else:
            places_C = torch.arange(len(column.categories), device=x_NX.device)
            parts_NC.append((value_N.unsqueeze(1) == places_C) * 0.5**0.5)
    return torch.cat(parts_NC, dim=1)


def distances(a_ND: Tensor, b_MD: Tensor, spec: DataSpec) -> Tensor:
    """Return Euclidean distances, shape (N, M), exactly 0 between equal examples: products of integer pixels are exact."""
    mode = "donot_use_mm_for_euclid_dist" if spec.is_table else "use_mm_for_euclid_dist"
    return torch.cdist(a_ND, b_MD, compute_mode=mode)
