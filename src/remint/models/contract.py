"""Contract of a model family: a model with capabilities, and the phases that train it.

Shapes: B batch, N noise numbers or examples, K importance samples, Z latent, X the axes of one example: C, H, W of an image
(channels, height, width), D of a table's row.

A family is one module with two functions,

    build(settings, spec) -> Model          the served network
    phases(model, settings) -> list[Phase]  the phases of every training step, in this order

and a class of settings in recipe.py. No code asks a model for its family: the protocols below define the
capabilities of a model. All randomness is passed in as ``noise``: standard normal numbers that the
caller draws. A sample, a score and a loss are therefore pure functions of their arguments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class CanSample(Protocol):
    """A model that draws examples."""

    sample_noise: int  # N: standard normal numbers that one sample takes; of a HasLatent, the first Z of them are its latent

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return x_BX: images as uint8, values 0 .. levels-1; rows of a table as in records.DataSpec.

        Row i depends only on row i of the noise. ``y_B``: classes of the samples, for a conditional model. Without them
        the last noise number of each row draws its class, with the class shares of the training split.
        """
        ...


@runtime_checkable
class HasLogProb(Protocol):
    """A model with an exact density of the dequantised example."""

    density_noise: int  # N: standard normal numbers that place one example within its levels

    def log_prob(self, x_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return log p(x) in nats, shape (B,), of discrete x (any dtype, values 0 .. levels-1) or of a table's rows.

        A conditional model returns log p(x | y), with y given.

        The density is that of x + u, with u in [0, 1) made from the noise. Its mean over u is a lower bound of the log
        of the discrete probability (Theis et al., A note on the evaluation of generative models, 2016).
        """
        ...


@runtime_checkable
class HasElbo(Protocol):
    """A model with an evidence lower bound."""

    latent_noise: int  # N: standard normal numbers that one latent sample takes

    def elbo(self, x_BX: Tensor, noise_KBN: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return log p(x, z_k) - log q(z_k | x) in nats, shape (K, B), no constant dropped.

        All terms are given y if the model is conditional.

        The mean over k estimates the ELBO (Kingma & Welling, 2013); logmeanexp over k is IWAE-K
        (Burda et al., Importance Weighted Autoencoders, 2016).
        """
        ...


@runtime_checkable
class HasLatent(Protocol):
    """A model with a latent space, in which sampled examples are standard normal."""

    latent_size: int  # Z: numbers of one latent

    def encode(self, x_BX: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return z_BZ, the latents of examples as ``sample`` returns them: a function of each example (and class) alone."""
        ...

    def decode(self, z_BZ: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return x_BX for latents, in the form of ``sample``, without further noise and without missing values."""
        ...


@runtime_checkable
class CanImpute(Protocol):
    """A model that draws missing values given the observed ones."""

    impute_noise: int  # N: standard normal numbers that one completion takes

    def impute(self, x_BX: Tensor, observed_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return x_BX in the form of ``sample``, with the observed values bit for bit and one draw of all others given them.

        ``observed_BX``: bool; values that are not observed may be anything, also NaN. Row i depends only on row i of the
        arguments. ``y_B``: classes, for a conditional model; without them each row's class is drawn too.
        """
        ...


class Model(nn.Module):
    """The served network. The methods of the protocols are called in eval mode and without gradients."""

    conditional: bool = False  # whether sample, density and bound are given the class
    estimator: Mapping[str, str] = {}  # how ``log_prob`` is computed where it is no closed form; part of a metric's fingerprint
    encodes_by_search: bool = False  # whether ``encode`` of a HasLatent takes hundreds of passes

    def classes(self, noise_BN: Tensor) -> Tensor | None:
        """Return the classes that ``sample`` draws with this noise, int64 (B,); None if it draws none. By default None."""
        return None

    def initialise(self, x_NX: Tensor, y_N: Tensor | None = None) -> None:
        """Set buffers and data-dependent initial values from the whole training split, once, before step 0.

        By default this does nothing. Every process calls it with the same examples; in float64 if training is in float64.
        """


@dataclass
class Batch:
    """Input of a phase in one step: this process's slice of the global batch."""

    x_BX: Tensor  # floating point, on the device: pixel values 0 .. levels-1, or a table's rows
    noise_BN: Tensor  # standard normal, N = the phase's noise_size; a function of (seed, step, phase, global position)
    progress: float  # fraction of the steps already done, 0 <= progress < 1
    step: int  # steps already done
    y_B: Tensor | None = None  # int64 labels


class Phase(nn.Module):
    """One optimizer and the loss that it minimises.

    ``forward(batch)`` returns the scalar loss, a mean over the batch; the call fires DistributedDataParallel's
    hooks. A phase registers only the parameters that it trains. A module that it uses and does not train (the critic
    in a generator's phase) is passed to ``reference_frozen``, and gets no gradient while this phase runs.
    """

    name: ClassVar[str]
    noise_size: int = 0
    learning_rate: float = 1.0  # times training.learning_rate
    betas: tuple[float, float] = (0.9, 0.999)
    compilable: ClassVar[bool] = True  # False: never compiled, because torch.compile drops the graph of a gradient's gradient

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, Tensor] = {}  # of the last forward pass; those of a step that is undone are undone too

    def reference_frozen(self, **modules: nn.Module) -> None:
        """Keep references to modules without registering their parameters."""
        self.__dict__.update(modules)

    def trained_critic(self) -> nn.Module | None:
        """Return the critic that this phase trains, which is saved beside the served model. By default None."""
        return None

    def schedule(self, progress: float) -> None:
        """Set ``learning_rate`` and ``betas`` for the next step from the fraction of steps done. By default this does nothing."""

    def curves(self) -> dict[str, float]:
        """Return numbers of the last forward pass to plot as curves, by name. By default ``metrics``."""
        return {name: float(value) for name, value in self.metrics.items()}


class Family(Protocol):
    """The two functions of a family's module."""

    def build(self, settings: Any, spec: Any) -> Model: ...

    def phases(self, model: Any, settings: Any) -> list[Phase]: ...


def standard_normal(shape: tuple[int, ...], *seed: int | str, device: torch.device | str = "cpu") -> Tensor:
    """Return standard normal numbers, float32: a pure function of (shape, seed), the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed_word(*seed))).to(device)


def seed_word(*seed: int | str) -> int:
    """Return the seed of the generator of ``standard_normal``."""
    return int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:8], "little") >> 1
