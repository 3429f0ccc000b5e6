"""Densities of a person's examples, streamed.

Shapes: N examples, B examples of one block, K draws of noise, D noise numbers of one draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from remint.errors import SettingsError, UserError
from remint.models import density
from remint.models.contract import HasElbo, HasLogProb
from remint.serving import blocks
from remint.serving.blocks import Progress, content_noise, silent

if TYPE_CHECKING:
    from remint.serving.inputs import Examples
    from remint.serving.model import ServedModel

MOST_DRAWS = 10_000

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LogProb:
    """log p(x) of each example in nats, and which bound it is. Of a row: the density of its standardised values."""

    values: Array  # float64 (N,)
    bound: str

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.values, dtype, copy=copy)


def log_prob(
    served: ServedModel,
    data: Any,
    of_class: Any = None,
    *,
    draws: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
    **options: Any,
) -> LogProb:
    """Return log p(x) of each example of an input. A conditional model takes its class, if known, else sums over the classes.

    ``of_class``: of all or of each, if the input has none. ``draws``: of noise, for a bound. Raises UserError if the family has
    neither a density nor a bound.
    """
    with served.examples(data, **options) as examples:
        y_N = examples.y_N if of_class is None else served.given_classes(of_class, len(examples))
        return of_examples(served, examples, y_N, draws=draws, seed=seed, progress=progress)


def of_examples(
    served: ServedModel,
    examples: Examples,
    y_N: Array | None,
    *,
    draws: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> LogProb:
    """Return ``log_prob`` of examples in the model's form."""
    model = served.model
    if not isinstance(model, HasLogProb | HasElbo):
        raise UserError(f"{served.ref}: its family has no density: use a vae, vaegan, flow or flow_matching")
    if draws is not None and not (isinstance(draws, int | np.integer) and 1 <= draws <= MOST_DRAWS):
        raise SettingsError(f"draws {draws!r}: expected a whole number from 1 to {MOST_DRAWS:,}")
    count, size = density.noise_shape(model, draws)
    dtype = next(model.parameters()).dtype

    def of_block(x_BX: Tensor, y_B: Tensor | None) -> Tensor:
        noise_BKD = content_noise(x_BX, count * size, "density", seed).view(len(x_BX), count, size)
        return density.log_prob(model, x_BX, noise_BKD.transpose(0, 1).to(dtype), y_B)

    parts = list(blocks.apply(of_block, examples.x_NX, y_N, served.device, progress))
    return LogProb(np.concatenate(parts), density.describe(model, draws))
