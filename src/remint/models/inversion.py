"""Latent of an example by optimisation, for a generator without an encoder.

    z = argmin_z  mean |G(z) - x|^2  +  PRIOR mean z^2

Zhu et al., Generative visual manipulation on the natural image manifold (2016). The error has many local minima. The search
therefore begins at those STARTS of DRAWS latents whose examples are nearest to x, and makes STEPS steps of Adam (Kingma & Ba,
2015) from each; the best latent on the way counts. The second term chooses, among latents that give nearly the same example,
one that the prior draws too. The latents are the same for all examples: the result is a function of the example and its class
alone.

Cost of an example: STARTS * STEPS passes of the generator, forward and backward. DRAWS forward passes are shared by the
examples of one call that have one class.

Shapes: B examples, D draws, R rows that are optimised (the starts of an example after each other), S axes of one example as
the generator gives it, Z latent.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from remint.models.contract import standard_normal

DRAWS, STARTS, STEPS = 256, 4, 100
FIRST_RATE, LAST_RATE = 0.1, 0.005  # Adam's learning rate, falling geometrically
BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8  # of Adam
PRIOR = 1e-3
PART = 64  # draws at a time
EXAMPLES = 16  # that are optimised at a time, always so many: rounding depends on their number
NUMBERS = 2**16  # of these examples: the generator's numbers and their gradients are in memory for STARTS of each

Generate = Callable[[Tensor, Tensor | None], Tensor]  # latents and classes of some rows to their examples


def invert(generate: Generate, x_BS: Tensor, y_B: Tensor | None, latent: int) -> Tensor:
    """Return z_BZ for examples ``x_BS`` of classes ``y_B``, in their precision. The caller may have turned gradients off."""
    if not len(x_BS):
        return x_BS.new_empty(0, latent)
    with torch.inference_mode(False):
        x_BS, y_B = x_BS.clone(), None if y_B is None else y_B.clone()  # a tensor of inference mode cannot have a gradient
        place_N, of_B = _without_repetitions(x_BS, y_B)
        draws_DZ = standard_normal((DRAWS, latent), "inversion").to(x_BS)
        starts_BRZ = draws_DZ[_nearest_draws(generate, x_BS, y_B, draws_DZ)]
        count = max(1, min(EXAMPLES, NUMBERS // x_BS[:1].numel()))
        parts = []
        for part_M in torch.split(place_N, count):
            filled_M = torch.cat([part_M, part_M[:1].expand(count - len(part_M))])
            z_MZ = _optimise(generate, x_BS[filled_M], None if y_B is None else y_B[filled_M], starts_BRZ[filled_M])
            parts.append(z_MZ[: len(part_M)])
        return torch.cat(parts)[of_B]


def _without_repetitions(x_BS: Tensor, y_B: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the places of all examples but repetitions of the first, which fill up blocks, and for each example its own."""
    same_B = (x_BS == x_BS[:1]).flatten(1).all(1)
    if y_B is not None:
        same_B &= y_B == y_B[:1]
    same_B[:1] = False
    place_N = (~same_B).nonzero().flatten()
    return place_N, torch.where(same_B, 0, (~same_B).cumsum(0) - 1)


@torch.no_grad()
def _nearest_draws(generate: Generate, x_BS: Tensor, y_B: Tensor | None, draws_DZ: Tensor) -> Tensor:
    """Return the indices of the STARTS draws whose examples are nearest, int64 (B, STARTS)."""
    found_BR = torch.zeros(len(x_BS), STARTS, dtype=torch.int64, device=x_BS.device)
    for y in [None] if y_B is None else torch.unique(y_B):
        of_class_B = torch.ones(len(x_BS), dtype=torch.bool) if y is None else y_B == y
        drawn_DS = torch.cat([generate(z, None if y is None else y.expand(len(z))) for z in torch.split(draws_DZ, PART)])
        for place in of_class_B.nonzero().flatten().tolist():  # one by one: the choice does not depend on other examples
            error_D = (drawn_DS - x_BS[place]).square().flatten(1).mean(1)
            found_BR[place] = error_D.topk(STARTS, largest=False).indices
    return found_BR


def _optimise(generate: Generate, x_BS: Tensor, y_B: Tensor | None, starts_BRZ: Tensor) -> Tensor:
    """Return the best latent of each example on the way of Adam from each of its starts."""
    x_RS = x_BS.repeat_interleave(STARTS, 0)
    y_R = None if y_B is None else y_B.repeat_interleave(STARTS, 0)

    def losses(z_RZ: Tensor) -> Tensor:
        return (generate(z_RZ, y_R) - x_RS).square().flatten(1).mean(1) + PRIOR * z_RZ.square().mean(1)

    z_RZ = starts_BRZ.flatten(0, 1)
    first_RZ, second_RZ = torch.zeros_like(z_RZ), torch.zeros_like(z_RZ)  # Adam's moments
    best_R, best_RZ = (
        z_RZ.new_full((len(z_RZ),), torch.inf),
        z_RZ,
    )  # lowest loss so far, and its latent: a step may leave a minimum
    for step in range(STEPS + 1):
        with torch.enable_grad():
            z_RZ = z_RZ.detach().requires_grad_(True)
            loss_R = losses(z_RZ)
            (gradient_RZ,) = torch.autograd.grad(loss_R.sum(), z_RZ)
        with torch.no_grad():
            better_R = loss_R < best_R
            best_R, best_RZ = torch.where(better_R, loss_R, best_R), torch.where(better_R.unsqueeze(1), z_RZ, best_RZ)
            first_RZ = BETA1 * first_RZ + (1 - BETA1) * gradient_RZ
            second_RZ = BETA2 * second_RZ + (1 - BETA2) * gradient_RZ.square()
            mean_RZ, scale_RZ = first_RZ / (1 - BETA1 ** (step + 1)), (second_RZ / (1 - BETA2 ** (step + 1))).sqrt()
            z_RZ = z_RZ - FIRST_RATE * (LAST_RATE / FIRST_RATE) ** (step / STEPS) * mean_RZ / (scale_RZ + EPSILON)
    lowest_B = best_R.view(-1, STARTS).argmin(1)
    return best_RZ.view(-1, STARTS, z_RZ.shape[1])[torch.arange(len(lowest_B)), lowest_B]
