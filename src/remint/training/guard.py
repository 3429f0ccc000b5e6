"""The collapse guard: how much of the validation split a model's samples cover, looked at while it trains.

    reached   share of the real examples that are among the k nearest real examples of at least one sample
    coverage  share of those whose own ball, up to their k-th nearest real neighbour, holds such a sample too

``reached`` asks whether samples are everywhere, whatever their quality: a model that has lost half of the modes reaches
half. The verdict is by it, as a share of what as many training examples reach, so that it does not depend on the data.
``coverage`` asks for quality too, and chooses what to go back to. It is that of Naeem et al., Reliable fidelity and
diversity metrics for generative models (2020), but for what makes a sample count for its own neighbours only: in many
dimensions the mean of all images lies in nearly every ball, so that a generator of grey images would cover everything.
Neither says how wide a mode is: k is large enough for a generator that has all of them, each a third too narrow.
A loss of a GAN says nothing of all this: it looks the same while modes are lost.

The verdict is read off the rows of the curve, so that a resumed training comes to the same one.

Shapes: N real examples, M samples, D coordinates, X the axes of one example, 2 for reached and covered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remint.distributed.world import World
from remint.models.contract import CanSample, HasElbo, HasLogProb, Model, standard_normal
from remint.records import DataSpec
from remint.settings.recipe import TrainingSettings
from remint.training.randomness import COLLAPSE_CHECK
from remint.training.state import Row

MAX_EXAMPLES = 500  # most validation examples, and samples, that a look takes
NEIGHBOUR_SHARE = 0.02  # k as a share of the real examples ...
MIN_NEIGHBOURS = 5  # ... and at least
MAX_CHECKS = 50  # most looks of a training, each of which costs what one or two steps do
CHUNK = 250  # samples; the same at every world size, so that what is seen is too

DEFAULT_LIMIT = 0.6  # share of the reference below which a model has lost modes, where the settings name none
FRACTION_OF_BEST = 0.75  # share of its own best below which it is losing them
WARMUP = 0.3  # share of the steps in which a model may reach little ...
MIN_STEPS = 500  # ... and as many steps at least, for one that has hardly begun has not collapsed
PATIENCE = 5  # looks in a row that must say so


@dataclass(frozen=True)
class Guard:
    """Looks at a model that trains, and says whether it has collapsed."""

    measure: Callable[[Model], Row]  # coverage and reached
    reference: float  # what as many training examples reach
    limit: float  # least share of it
    every: int  # steps between two looks
    steps: int  # of the whole training

    def due(self, step: int) -> bool:
        return step == self.steps or step % self.every == 0

    def collapsed(self, rows: Sequence[Row]) -> str | None:
        """One clause that says how, or None: the last PATIENCE looks reached too little, and none of them was a new best."""
        looks = [(row["step"], row["reached"] / self.reference) for row in rows if "reached" in row]
        late = [share for step, share in looks[-PATIENCE:] if step > max(MIN_STEPS, WARMUP * self.steps)]
        best = max((share for _, share in looks[:-PATIENCE]), default=0.0)
        if len(late) < PATIENCE or max(late) > best:
            return None
        if max(late) < self.limit:
            return f"its samples reach {late[-1]:.0%} of what real examples reach, less than {self.limit:.0%}"
        if max(late) < FRACTION_OF_BEST * best:
            return f"its samples reach {late[-1]:.0%} of what real examples reach, and reached {best:.0%} before"
        return None


def build_guard(
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
        limit = 0.0 if isinstance(model, (HasElbo, HasLogProb)) else DEFAULT_LIMIT
    count = min(len(validation_NX), MAX_EXAMPLES)
    k = max(MIN_NEIGHBOURS, round(NEIGHBOUR_SHARE * count))
    if limit == 0.0 or count <= k or not isinstance(model, CanSample):
        return None
    real_ND = coordinates(evenly_spaced(validation_NX, count), spec)
    # Of all that is here the example itself is nearest to it.
    radius_N1 = distances(real_ND, real_ND, spec).topk(k + 1, dim=1, largest=False).values[:, -1:]

    def cover(sample_MD: Tensor) -> Tensor:
        """For how many samples each example is reached, and is covered, shape (2, N)."""
        apart_NM = distances(real_ND, sample_MD, spec)
        near_NM = apart_NM <= apart_NM.topk(k, dim=0, largest=False).values[-1]
        return torch.stack([near_NM.sum(1), (near_NM & (apart_NM <= radius_N1)).sum(1)]).cpu()

    reference = float((cover(coordinates(evenly_spaced(train_NX, count), spec))[0] > 0).double().mean())
    noise = standard_normal((count, model.sample_noise), settings.seed, COLLAPSE_CHECK)
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    chunks = torch.split(noise.to(validation_NX.device, dtype), CHUNK)

    @torch.no_grad()
    def measure(judged: Model) -> Row:
        assert isinstance(judged, CanSample)
        counts_2N = torch.zeros((2, count), dtype=torch.int64)  # whole numbers, whose sum over the ranks is exact
        for chunk in chunks[world.rank :: world.size]:
            counts_2N += cover(coordinates(judged.sample(chunk), spec))
        reached, covered = (world.gather(counts_2N).sum(0) > 0).double().mean(1).tolist()
        return {"coverage": covered, "reached": reached}

    rows = max(1, -(-settings.steps // (MAX_CHECKS * settings.validate_every)))
    return Guard(measure, reference, limit, rows * settings.validate_every, settings.steps)


def evenly_spaced(x_NX: Tensor, count: int) -> Tensor:
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
