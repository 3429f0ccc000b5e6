"""Anomaly scores of examples under a model: higher is more unusual. Pure functions of the model, examples and noise.

    likelihood      L(x) = -log p(x), nats (models/density.py)
    relative        L(x) - C(x), with C the length of x in nats under the level frequencies of the training images; of a row: L(x)
    typicality      |L(x) - mean of L| (Nalisnick et al., Detecting out-of-distribution inputs using typicality, 2019)
    reconstruction  |x - decode(encode(x))|^2, of a model with a bound
    latent          Mahalanobis distance of encode(x) to the latents of the training examples
    neighbours      mean distance of x to its 5 nearest training examples
    samples         mean distance of x to the 5 nearest of the model's own samples
    combined        the default: standardised ``relative`` + ``neighbours``; without a likelihood ``neighbours`` + ``samples``

A likelihood alone is misled by simple images, which any model finds likely; C removes most of that (Serra et al., Input
complexity and out-of-distribution detection with likelihood-based generative models, 2020, with a compressor in place of C).
Distances are between pixels in [-1, 1], or between standardised numbers and one-hot categories. Scores are standardised by
their mean and deviation over validation examples, which neither train nor calibrate. docs/decisions/0003-anomaly-score.md has
the experiment that chose the default. A conditional model is summed over its classes: an example to score has no label.

Shapes: B batch, X axes of one example, N examples or noise numbers, K draws of noise, R reference examples, F features,
Y classes, Z latent, L levels, S scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from remint.models import density
from remint.models.contract import CanSample, HasElbo, HasLatent, HasLogProb, Model
from remint.models.layers import to_unit
from remint.models.row_likelihoods import RowFeatures
from remint.records import DataSpec

DEFAULT = "combined"
NEAR, DRAWN = "near_RX", "drawn_RX"  # in a reference: training examples, and samples
NEIGHBOURS = 5
DENSITY_DRAWS, BOUND_DRAWS = 4, 16  # K of models/density.py: a score of all examples is worth more than of few a precise one
LEVEL_SMOOTHING = 0.5  # counts added to each level
RIDGE = 1e-3  # added to the variance of each latent

Reference = dict[str, Tensor]


class Scorer:
    """The scores of one model relative to a reference (``fit_reference``)."""

    def __init__(self, model: Model, spec: DataSpec, reference: Reference) -> None:
        self.model, self.spec, self.reference = model, spec, reference

    @cached_property
    def has_likelihood(self) -> bool:
        return isinstance(self.model, HasElbo | HasLogProb)

    @cached_property
    def noise_shape(self) -> tuple[int, int]:
        """K and N of the noise of one example's scores; K = 0 without a likelihood."""
        if not self.has_likelihood:
            return 0, 0
        return density.noise_shape(self.model, DENSITY_DRAWS if isinstance(self.model, HasLogProb) else BOUND_DRAWS)

    @cached_property
    def part_names(self) -> tuple[str, ...]:
        """Names of the scores of ``parts``."""
        names = ["likelihood", "relative"] if self.has_likelihood else []
        # A model without a likelihood encodes by optimisation, which takes far longer than the other scores.
        names += ["latent"] if self.has_likelihood and isinstance(self.model, HasLatent) else []
        names += ["reconstruction"] if "latent" in names and isinstance(self.model, HasElbo) else []  # a flow's is exact
        return (*names, "neighbours", *(["samples"] if isinstance(self.model, CanSample) else []))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of all scores, the default first."""
        return (DEFAULT, *self.part_names, *(["typicality"] if self.has_likelihood else []))

    def needs(self, name: str) -> tuple[str, ...]:
        """Return the names of the parts that a score is made of."""
        if name == DEFAULT:
            second = "relative" if self.has_likelihood else "samples"
            return ("neighbours", second) if second in self.part_names else ("neighbours",)
        return ("likelihood",) if name == "typicality" else (name,)

    def parts(self, x_BX: Tensor, noise_KBN: Tensor, names: Sequence[str]) -> Tensor:
        """Return these of ``part_names``, float64, shape (B, S)."""
        found: dict[str, Tensor] = {}
        if {"likelihood", "relative"} & {*names} or (self.model.conditional and {"latent", "reconstruction"} & {*names}):
            log_joint_YB = self.log_joint(x_BX, noise_KBN)
            found["likelihood"] = -log_joint_YB.logsumexp(0)
            found["relative"] = found["likelihood"] - self.complexity(x_BX)
        if {"latent", "reconstruction"} & {*names}:
            model = cast(HasLatent, self.model)
            y_B = log_joint_YB.argmax(0) if self.model.conditional else None
            z_BZ = model.encode(x_BX, y_B)
            found["latent"] = self.latent(z_BZ)
            if "reconstruction" in names:
                found["reconstruction"] = self.reconstruction(x_BX, model.decode(z_BZ, y_B))
        for name, which in (("neighbours", NEAR), ("samples", DRAWN)):
            if name in names:
                found[name] = self.to_nearest(x_BX, which)
        return torch.stack([found[name].double() for name in names], 1)

    def score(self, name: str, part: Mapping[str, Tensor]) -> Tensor:
        """Return the scores of this name, float64, shape (N,), from its parts by name, each (N,)."""
        if name == "typicality":
            return self._standardised("likelihood", part).abs()
        if name == DEFAULT:
            return torch.stack([self._standardised(each, part) for each in self.needs(name)]).sum(0)
        return part[name]

    def _standardised(self, name: str, part: Mapping[str, Tensor]) -> Tensor:
        mean, spread = self.reference["statistics_2S"][:, self.part_names.index(name)].to(part[name].device)
        standardised: Tensor = (part[name] - mean) / spread
        return standardised

    def log_joint(self, x_BX: Tensor, noise_KBN: Tensor) -> Tensor:
        """Return log p(x, y) of each class y in nats, shape (Y, B); log p(x), shape (1, B), of an unconditional model."""
        if not self.model.conditional:
            return density.log_prob(self.model, x_BX, noise_KBN).unsqueeze(0)
        share_Y: Tensor = cast(Any, self.model).labels.share_K
        classes = (torch.full((len(x_BX),), y, device=x_BX.device) for y in range(len(share_Y)))
        return torch.stack([density.log_prob(self.model, x_BX, noise_KBN, y_B) for y_B in classes]) + share_Y.log().unsqueeze(1)

    def complexity(self, x_BX: Tensor) -> Tensor:
        """Return the nats of each image's levels under their frequencies in the training images, shape (B,); 0 for rows."""
        if self.spec.is_table:
            return torch.zeros(len(x_BX), device=x_BX.device)
        log_share_L: Tensor = self.reference["level_share_L"].log()
        return -log_share_L[x_BX.flatten(1).long()].sum(1)

    def reconstruction(self, x_BX: Tensor, again_BX: Tensor) -> Tensor:
        """Return |x - again|^2 in features, shape (B,). Missing values of a row are left out."""
        again_BX = again_BX.to(self.dtype)
        if self.spec.is_table:
            again_BX = torch.where(x_BX.isnan(), torch.nan, again_BX)
        return (self.features(x_BX) - self.features(again_BX)).square().sum(1)

    def latent(self, z_BZ: Tensor) -> Tensor:
        """Return the Mahalanobis distance of each latent to those of the training examples, shape (B,)."""
        whitened_BZ = (z_BZ.double() - self.reference["latent_mean_Z"]) @ self.reference["latent_whitening_ZZ"]
        return whitened_BZ.square().sum(1).sqrt()

    def to_nearest(self, x_BX: Tensor, which: str) -> Tensor:
        """Return the mean distance of each example to its nearest ones among reference examples, shape (B,)."""
        x_BF, (near_RF, square_R) = self.features(x_BX), self._reference_features[which]
        count = min(NEIGHBOURS, len(near_RF))
        # The product loses digits where distances are small: it only finds candidates, whose differences are exact.
        candidates_BN = torch.addmm(square_R, x_BF, near_RF.T, alpha=-2).topk(min(2 * count, len(near_RF)), largest=False).indices
        distance_BN = (x_BF.unsqueeze(1) - near_RF[candidates_BN]).double().square().sum(2).sqrt()
        return distance_BN.topk(count, largest=False).values.mean(1)

    @cached_property
    def _reference_features(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Features of the reference examples, shape (R, F), with their squared lengths, shape (R,)."""
        features = {name: self.features(self.reference[name]) for name in (NEAR, DRAWN) if name in self.reference}
        return {name: (near_RF, near_RF.square().sum(1)) for name, near_RF in features.items()}

    def features(self, x_BX: Tensor) -> Tensor:
        """Return the coordinates in which distances are measured, in the model's precision, shape (B, F)."""
        x_BX = x_BX.to(self.dtype)
        return RowFeatures(self.spec)(x_BX) if self.spec.is_table else to_unit(x_BX.flatten(1), self.spec.levels)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype


def level_shares(x_NX: Tensor, levels: int) -> Tensor:
    """Return the smoothed frequency of each level over all values of images, float64, shape (L,)."""
    count_L = torch.bincount(x_NX.flatten().long(), minlength=levels).double() + LEVEL_SMOOTHING
    return count_L / count_L.sum()


def latent_statistics(z_NZ: Tensor) -> Reference:
    """Return mean and whitening of latents, float64: |(z - mean) @ whitening| is the Mahalanobis distance of z."""
    z_NZ = z_NZ.double()
    centred_NZ = z_NZ - z_NZ.mean(0)
    covariance_ZZ = centred_NZ.T @ centred_NZ / len(z_NZ) + RIDGE * torch.eye(z_NZ.shape[1], dtype=torch.float64)
    whitening_ZZ = torch.linalg.inv(torch.linalg.cholesky(covariance_ZZ)).T.contiguous()
    return {"latent_mean_Z": z_NZ.mean(0), "latent_whitening_ZZ": whitening_ZZ}


def statistics(part: Mapping[str, Tensor]) -> Tensor:
    """Return mean and standard deviation of each score, float64, shape (2, S); a deviation of 0 is 1."""
    part_NS = torch.stack([*part.values()], 1)
    spread_S = part_NS.std(0, correction=0)
    return torch.stack([part_NS.mean(0), torch.where(spread_S > 0, spread_S, 1.0)])
