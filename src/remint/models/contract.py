"""What a model family is: a model with capabilities, and the phases that train it.

Shapes: B batch, N noise numbers or examples, K importance samples, X the axes of one example: C, H, W of an image
(channels, height, width), D of a table's row.

A family is one module with two functions,

    build(settings, spec) -> Model          the network that is served
    phases(model, settings) -> list[Phase]  what the loop runs, in this order, in every step

and a class of settings in recipe.py. Nothing asks a model for its family: what it can do is
said by the protocols below. All randomness comes in as ``noise``, standard normal numbers that the
caller draws: so a sample, a score and a loss are pure functions of their arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class CanSample(Protocol):
    """Draws examples."""

    sample_noise: int  # N: standard normal numbers that one sample takes

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        """x_BX: images uint8, values 0 .. levels-1; rows of a table as records.DataSpec says.

        Row i depends on row i of the noise only. ``y_B``: the classes that a conditional model is to draw of; without
        them it draws each from the training split's shares, by the last of the noise numbers.
        """
        ...


@runtime_checkable
class HasLogProb(Protocol):
    """Has an exact density of the dequantised example."""

    density_noise: int  # N: standard normal numbers that place one example within its levels

    def log_prob(self, x_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        """log p(x) in nats, shape (B,), of discrete x (any dtype, values 0 .. levels-1) or of a table's rows.

        Of a conditional model log p(x | y), with y given.

        With x + u, u in [0, 1) made from the noise: its mean over u is a lower bound of the log of
        the discrete probability (Theis et al., A note on the evaluation of generative models, 2016).
        """
        ...


@runtime_checkable
class HasElbo(Protocol):
    """Has an evidence lower bound."""

    latent_noise: int  # N: standard normal numbers that one latent sample takes

    def elbo(self, x_BX: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
        """log p(x, z_k) - log q(z_k | x) in nats, shape (K, B), no constant dropped; all given y of a conditional model.

        The mean over k estimates the ELBO (Kingma & Welling, 2013); logmeanexp over k is IWAE-K
        (Burda et al., Importance Weighted Autoencoders, 2016).
        """
        ...


class Model(nn.Module):
    """The network that is served. It is in eval mode and without gradients wherever a protocol's method is called."""

    conditional: bool = False  # whether everything is given the class

    def initialise(self, x_NX: Tensor, y_N: Tensor | None = None) -> None:
        """Sets buffers, and whatever starts from the data, from the whole training split, once, before step 0.

        By default nothing. Every process calls it with the same examples, in float64 where it trains so.
        """


@dataclass
class Batch:
    """What a phase is given in one step: this process's slice of the global batch."""

    x_BX: Tensor  # floating point, on the device: pixel values 0 .. levels-1, or a table's rows
    noise_BN: Tensor  # standard normal, N = the phase's noise_size; a function of (seed, step, phase, global position)
    progress: float  # share of the steps already done, 0 <= progress < 1
    step: int  # steps already done
    y_B: Tensor | None = None  # int64 labels


class Phase(nn.Module):
    """One optimizer and the loss that it descends.

    ``forward(batch)`` returns the scalar loss, a mean over the batch, so that DistributedDataParallel's
    hooks fire. A phase registers only the parameters that it trains; what it only looks through (a
    generator's critic) is passed to ``reference_frozen`` and gets no gradient while this phase runs.
    """

    name: ClassVar[str]
    noise_size: int = 0
    learning_rate: float = 1.0  # times training.learning_rate
    betas: tuple[float, float] = (0.9, 0.999)

    def reference_frozen(self, **modules: nn.Module) -> None:
        """Keeps references without registering their parameters."""
        self.__dict__.update(modules)

    def schedule(self, progress: float) -> None:
        """Sets ``learning_rate`` and ``betas`` of the step to come by the share of steps done. By default neither."""

    def curves(self) -> dict[str, float]:
        """Numbers of the last forward that people want to see as curves, by name."""
        return {}


class Family(Protocol):
    """The two functions of a family's module."""

    def build(self, settings: Any, spec: Any) -> Model: ...

    def phases(self, model: Any, settings: Any) -> list[Phase]: ...


def standard_normal(shape: tuple[int, ...], *seed: int | str, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers, float32, a pure function of (shape, seed), the same on every device."""
    import hashlib

    word = int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:8], "little") >> 1
    return torch.randn(shape, generator=torch.Generator().manual_seed(word)).to(device)
