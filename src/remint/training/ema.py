"""Exponential moving average of the weights. The averaged model is scored and served."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from remint.models.contract import Model


class AveragedModel:
    """A copy of the model whose parameters follow the trained ones: w_avg <- d w_avg + (1 - d) w.

    d = min(decay, (1 + step) / (10 + step)): the average forgets the initial weights within the first steps, so that a short
    training does not serve its initialisation. Buffers are copied and not averaged: the mean of two buffer values may be
    meaningless.
    """

    def __init__(self, model: Model) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._average: list[Tensor] = list(self.model.parameters())
        self._current: list[Tensor] = list(model.parameters())
        self._buffers = [
            (average, owner, name)
            for module, owner in zip(self.model.modules(), model.modules(), strict=True)
            for name, average in module.named_buffers(recurse=False)
        ]

    @torch.no_grad()
    def update(self, decay: float, step: int) -> None:
        """Update the average with the weights after a step. ``step``: number of steps done before it."""
        torch._foreach_lerp_(self._average, self._current, 1.0 - min(decay, (1 + step) / (10 + step)))
        for average, owner, name in self._buffers:
            average.copy_(getattr(owner, name))  # looked up anew: a forward may put another tensor in its place
