"""Normalizing flow: an exact density of images and of tables.

    x  --entrance-->  z  --bijections-->  base    log p(x) = log N(base; 0, I) + log |det d base / dv|

The entrance dequantises discrete values (models/dequantisation.py), and is fixed by the training split. The bijections
are couplings, which transform elements by neural splines (Durkan et al., Neural Spline Flows, 2019) or by scale and shift
(Dinh et al., Density estimation using Real NVP, 2017).

Shapes: B batch, X axes of one example (C channels, H height, W width of an image), D dimensions of an example,
N examples or noise numbers, K classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from remint.errors import SettingsError
from remint.models import posterior
from remint.models.bijections import ActNorm, Bijection, Chain, Coupling, Marginal
from remint.models.contract import Batch, Model, Phase, standard_normal
from remint.models.dequantisation import Dequantiser, QuantileDequantiser, RowDequantiser
from remint.models.glow import Multiscale
from remint.models.labels import Labels
from remint.models.layers import in_unit, normal_log_density
from remint.records import DataSpec
from remint.settings.recipe import FlowSettings

# Layers with data-dependent initial values are fitted to the training split. From a large split, evenly spaced examples are
# used: INITIAL_NUMBERS numbers in total, but at least INITIAL_EXAMPLES examples.
INITIAL_NUMBERS, INITIAL_EXAMPLES = 2**20, 1024


class Invertible(Model):
    """Model with an invertible map from dequantised examples to a standard normal base: CanSample, HasLogProb and HasLatent.

    Arguments: ``tails`` of a table's numbers, as in the settings; ``probes``: further noise numbers of a density.
    """

    def __init__(self, conditional: bool, tails: Literal["asinh", "linear"], spec: DataSpec, probes: int = 0) -> None:
        super().__init__()
        self.spec = spec
        self.conditional = conditional
        self.labels = Labels(conditional, spec)
        self.entrance: Dequantiser = (
            RowDequantiser(spec.columns, tails) if spec.is_table else QuantileDequantiser([spec.levels] * spec.dims)
        )
        self.latent_size = spec.dims
        self.sample_noise = spec.dims + self.labels.noise_size
        self.density_noise = self.entrance.noise_size + probes

    def to_base(self, x_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map an example, dequantised, to a point of the base space, shape (B, D), with log |det|, shape (B,)."""
        raise NotImplementedError

    def from_base(self, base_BD: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Map back to v, double precision, shape (B, D); 0 <= v <= levels if x is discrete."""
        raise NotImplementedError

    def log_prob(self, x_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        base_BD, log_det_B = self.to_base(x_BX, noise_BN, y_B)
        return normal_log_density(base_BD).sum(1) + log_det_B

    def encode(self, x_BX: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return the base points of examples, each value in the middle of its level, shape (B, D)."""
        middle_BN = torch.zeros(x_BX.shape[0], self.density_noise, device=x_BX.device, dtype=next(self.parameters()).dtype)
        return self.to_base(x_BX, middle_BN, y_B)[0]

    def decode(self, z_BZ: Tensor, y_B: Tensor | None = None) -> Tensor:
        return self.entrance.to_example(self.from_base(z_BZ, y_B)).view(-1, *self.spec.shape)

    def classes(self, noise_BN: Tensor) -> Tensor | None:
        return self.labels.split_noise(noise_BN, None)[1]

    def sample(self, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        base_BD, y_B = self.labels.split_noise(noise_BN, y_B)
        return self.decode(base_BD, y_B)

    def _classes(self, y_B: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        return self.labels.one_hot(y_B, dtype) if self.conditional else None


class Flow(Invertible):
    """Normalizing flow: also CanImpute (models/contract.py)."""

    def __init__(self, settings: FlowSettings, spec: DataSpec) -> None:
        super().__init__(settings.conditional, settings.tails, spec)
        self.bijections = bijections(settings, spec, self.labels.width)
        self.impute_noise = posterior.noise_size(spec.dims, self.labels)

    @torch.no_grad()
    def initialise(self, x_NX: Tensor, y_N: Tensor | None = None) -> None:
        self.labels.fit(y_N)
        self.entrance.fit(x_NX.flatten(1))
        count = min(len(x_NX), max(INITIAL_EXAMPLES, INITIAL_NUMBERS // self.spec.dims))
        places = torch.linspace(0, len(x_NX) - 1, count, dtype=torch.float64).long()
        dtype = next(self.parameters()).dtype
        noise = standard_normal((len(places), self.density_noise), "initialise").to(dtype)
        z_ND, _ = self.entrance(x_NX[places].flatten(1), noise)
        was_training = self.training
        self.eval()  # without dropout
        self.bijections.fit_through(z_ND, self._classes(None if y_N is None else y_N[places], dtype))
        self.train(was_training)

    def to_base(self, x_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z_BD, entrance_log_det_B = self.entrance(x_BX.flatten(1), noise_BN)
        base_BD, bijection_log_det_B = self.bijections(z_BD, self._classes(y_B, z_BD.dtype))
        return base_BD, entrance_log_det_B + bijection_log_det_B

    def from_base(self, base_BD: Tensor, y_B: Tensor | None = None) -> Tensor:
        z_BD, _ = self.bijections(base_BD, self._classes(y_B, base_BD.dtype), inverse=True)
        return self.entrance.inverse(z_BD)

    def impute(self, x_BX: Tensor, observed_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Draw the entrance's z of the missing values, and the places of the observed ones within their levels.

        A state has the z of a missing value, and the noise that dequantises an observed one.
        """
        observed_BD = observed_BX.flatten(1)
        known_BD = torch.where(observed_BD, x_BX.flatten(1), 0)

        def to_z(state_BD: Tensor) -> tuple[Tensor, Tensor]:
            places_BN = torch.where(observed_BD, state_BD, 0.0)[:, self.entrance.places]
            z_BD, log_det_B = self.entrance(known_BD, places_BN)
            return torch.where(observed_BD, z_BD, state_BD), log_det_B

        def log_ratio(state_BD: Tensor, y_B: Tensor | None) -> Tensor:
            z_BD, entrance_log_det_B = to_z(state_BD)  # the part of the missing values is constant
            base_BD, log_det_B = self.bijections(z_BD, self._classes(y_B, z_BD.dtype))
            log_prior_B = torch.where(observed_BD, 0.0, normal_log_density(state_BD)).sum(1)
            log_prob_B: Tensor = normal_log_density(base_BD).sum(1) + log_det_B + entrance_log_det_B
            return log_prob_B - log_prior_B

        state_BD, _ = posterior.draw(log_ratio, noise_BN, self.spec.dims, self.labels, y_B)
        drawn_BX = self.entrance.to_example(self.entrance.inverse(to_z(state_BD)[0])).view(-1, *self.spec.shape)
        return torch.where(observed_BX, x_BX, drawn_BX)


def bijections(settings: FlowSettings, spec: DataSpec, classes: int) -> Bijection:
    """Return the bijection from the entrance's z, shape (B, D), to the base."""
    if settings.network == "multiscale":
        return Multiscale(spec.image, settings, classes)
    layers: list[Bijection] = [ActNorm(spec.dims)] if spec.is_table else []
    if spec.dims == 1:
        return Chain([*layers, Marginal(settings, classes)])
    return Chain(layers + [Coupling(part, settings, classes) for part in partitions(spec, settings.couplings)])


def partitions(spec: DataSpec, count: int) -> list[Tensor]:
    """Return for each coupling a mask of the dimensions that it transforms, bool, shape (D,).

    For an image the first two are a checkerboard and its complement: each pixel is first conditioned on its neighbours.
    The others are fixed random halves, each followed by its complement.
    """
    generator = torch.Generator().manual_seed(0)
    parts: list[Tensor] = []
    while len(parts) < count:
        half = torch.randperm(spec.dims, generator=generator) % 2 == 0
        if not parts and not spec.is_table:
            c, h, w = spec.image
            half = ((torch.arange(c)[:, None, None] + torch.arange(h)[:, None] + torch.arange(w)) % 2 == 0).flatten()
        parts += [half, ~half]
    return parts[:count]


class Likelihood(Phase):
    """Maximum-likelihood phase: the loss is the negative log density, in bits per dimension or nats of a row."""

    name: ClassVar[str] = "likelihood"

    def __init__(self, model: Flow) -> None:
        super().__init__()
        self.model = model
        self.noise_size = model.density_noise

    def forward(self, batch: Batch) -> Tensor:
        return in_unit(-self.model.log_prob(batch.x_BX, batch.noise_BN, batch.y_B).mean(), self.model.spec)


def build(settings: FlowSettings, spec: DataSpec) -> Flow:
    """Build the model.

    Raises SettingsError if a table is combined with the multi-scale network, or if an image cannot be halved ``scales`` times.
    """
    if spec.is_table and settings.network == "multiscale":
        raise SettingsError("model.network: multiscale needs images, but this dataset is a table: use network: mlp")
    return Flow(settings, spec)


def phases(model: Flow, settings: FlowSettings) -> list[Phase]:
    return [Likelihood(model)]
