"""AdamW (Loshchilov & Hutter, Decoupled weight decay regularization, 2019) in one fused operation that a flag can stop.

It computes the bits of torch.optim.AdamW with ``fused=True``. That class sorts tensors and looks at its options in each step,
which takes as long as the arithmetic of a small network, and it makes the moments only in the first step.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

EPSILON = 1e-8


class AdamW:
    """Optimizer of the parameters of one phase, which are on one device and of one type."""

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float) -> None:
        self.parameters, self.weight_decay = list(parameters), weight_decay
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]  # moments of the gradient
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = [torch.zeros((), device=parameter.device) for parameter in self.parameters]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All moments and counts of steps, by the number of their parameter and a name."""
        parts = {"exp_avg": self.first, "exp_avg_sq": self.second, "step": self.steps}
        return {f"{index}.{name}": tensor for name, part in parts.items() for index, tensor in enumerate(part)}

    @torch.no_grad()
    def step(self, learning_rate: float, betas: tuple[float, float], broken: Tensor) -> None:
        """Make a step, unless ``broken`` is 1. A parameter without a gradient is left as it is."""
        every = zip(self.parameters, self.first, self.second, self.steps, strict=True)
        used = [(parameter, parameter.grad, *rest) for parameter, *rest in every if parameter.grad is not None]
        if not used:
            return
        parameters, gradients, first, second, steps = (list(part) for part in zip(*used, strict=True))
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            parameters,
            gradients,
            first,
            second,
            [],
            steps,
            lr=learning_rate,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=self.weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
            found_inf=broken,
        )
        torch._foreach_sub_(steps, [broken] * len(steps))
