"""The collapse guard: how much of the validation split a model's samples cover, looked at while it trains.

    ball      of a real example: all that is as near to it as its k-th nearest among the real examples
    coverage  share of the real examples whose ball holds at least one sample
    density   balls that hold a sample, over k, a mean over the samples

Naeem et al., Reliable fidelity and diversity metrics for generative models (2020). Samples as good as real examples
have about 1 - 2^-k and 1. A model that has lost half of the modes covers about half, however good each sample is; and
what it covers is held against what as many training examples cover, so that the verdict does not depend on the data.
A loss of a GAN says nothing of this: it looks the same while modes are lost.

The verdict is read off the rows of the curve, so that a resumed training comes to the same one.

Shapes: N real examples, M samples, D coordinates, X the axes of one example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remint.models.contract import CanSample, HasElbo, HasLogProb, Model, standard_normal
from remint.recipe import TrainingSettings
from remint.records import DataSpec
from remint.training.randomness import LOOK
from remint.training.state import Row
from remint.training.world import World

K = 5  # neighbours that a ball holds, as in the paper
EXAMPLES = 1000  # most validation examples, and samples, that a look takes
LOOKS = 50  # most looks of a training: at 1,000 examples they cost it a few percent
CHUNK = 250  # samples; the same at every world size, so that what is seen is too

LIMIT = 0.6  # share of the reference below which a model has lost modes, where the settings name none
FALL = 0.75  # share of its own best below which it is losing them
WARMUP = 0.3  # share of the steps in which a model may cover little
PATIENCE = 5  # looks in a row that must say so


@dataclass(frozen=True)
class Guard:
    """Looks at a model that trains, and says whether it has collapsed."""

    look: Callable[[Model], Row]  # coverage and density of its samples
    reference: float  # what as many training examples cover
    limit: float  # share of it
    every: int  # steps between two looks
    steps: int  # of the whole training

    def due(self, step: int) -> bool:
        return step == self.steps or step % self.every == 0

    def collapsed(self, rows: Sequence[Row]) -> str | None:
        """One clause that says how, or None: the last PATIENCE looks covered too little, and none of them was a new best."""
        looks = [(row["step"], row["coverage"] / self.reference) for row in rows if "coverage" in row]
        late = [share for step, share in looks[-PATIENCE:] if step > WARMUP * self.steps]
        best = max((share for _, share in looks[:-PATIENCE]), default=0.0)
        if len(late) < PATIENCE or max(late) > best:
            return None
        if max(late) < self.limit:
            return f"its samples cover {late[-1]:.0%} of what real examples cover, less than {self.limit:.0%}"
        if max(late) < FALL * best:
            return f"its samples cover {late[-1]:.0%} of what real examples cover, and covered {best:.0%} before"
        return None


def guard(
    model: Model,
    train_NX: Tensor,
    validation_NX: Tensor,
    spec: DataSpec,
    settings: TrainingSettings,
    world: World,
) -> Guard | None:
    """The guard of a training; None where none is asked for, the model cannot sample, or there is next to no data.

    Where the settings do not say, it watches what has no likelihood: a score finds a collapse by itself. All
    ranks share the samples of a look, and all must call it. The splits are on the device.
    """
    limit = settings.collapse
    if limit is None:
        limit = 0.0 if isinstance(model, (HasElbo, HasLogProb)) else LIMIT
    count = min(len(validation_NX), EXAMPLES)
    if limit == 0.0 or count <= K or not isinstance(model, CanSample):
        return None
    real_ND = coordinates(spread(validation_NX, count), spec)
    radius_N = torch.kthvalue(distances(real_ND, real_ND, spec), K + 1, dim=1).values  # itself is the nearest
    others_MD = coordinates(spread(train_NX, count), spec)
    reference = float((distances(real_ND, others_MD, spec) <= radius_N.unsqueeze(1)).any(1).double().mean())
    noise = standard_normal((count, model.sample_noise), settings.seed, LOOK)
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    chunks = torch.split(noise.to(validation_NX.device, dtype), CHUNK)

    @torch.no_grad()
    def look(judged: Model) -> Row:
        assert isinstance(judged, CanSample)
        held_N = torch.zeros(count, dtype=torch.int64)  # samples in each ball: whole numbers, whose sum over ranks is exact
        for chunk in chunks[world.rank :: world.size]:
            sample_MD = coordinates(judged.sample(chunk), spec)
            held_N += (distances(real_ND, sample_MD, spec) <= radius_N.unsqueeze(1)).sum(1).cpu()
        held_N = world.gather(held_N).sum(0)
        return {"coverage": float((held_N > 0).double().mean()), "density": float(held_N.sum()) / (K * count)}

    rows = max(1, -(-settings.steps // (LOOKS * settings.validate_every)))
    return Guard(look, max(reference, 1 / count), limit, rows * settings.validate_every, settings.steps)


def spread(x_NX: Tensor, count: int) -> Tensor:
    """``count`` examples, evenly spaced."""
    return x_NX[torch.linspace(0, len(x_NX) - 1, count, dtype=torch.float64).round().long().to(x_NX.device)]


def coordinates(x_NX: Tensor, spec: DataSpec) -> Tensor:
    """Where an example lies, float64, shape (N, D).

    Of an image its pixel values. Of a row its standardised numbers, and each category a corner of a simplex with sides of
    1; a number that is missing is at the mean and 1 from where it would be, a missing category as far from each.
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
    """Euclidean, shape (N, M), exactly 0 between equals: pixels are whole numbers, so that their products are exact too."""
    mode = "donot_use_mm_for_euclid_dist" if spec.is_table else "use_mm_for_euclid_dist"
    return torch.cdist(a_ND, b_MD, compute_mode=mode)
