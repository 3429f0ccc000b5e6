"""Flow matching: a continuous normalizing flow, trained by regression.

    dz/dt = v(z, t)      z(0) ~ N(0, I) is the base, z(1) is what the entrance makes of x (models/dequantisation.py)
    loss                 mean |v((1 - t) z0 + t z1, t) - (z1 - z0)|^2, with z0 from the base and t uniform
    log p(z1)            log N(z0; 0, I) - integral over t of trace(dv/dz)

Lipman et al., Flow matching for generative modeling (2023), with the linear path. A sample takes ``sample_steps`` midpoint
steps, a density ``density_steps`` Runge-Kutta steps back to the base. The trace is exact, or Hutchinson's unbiased estimate
e^T (dv/dz) e with random signs e (Grathwohl et al., FFJORD, 2019). The signs are part of the noise of a density: the evaluation
repeats the estimate until its error counts little, and the interval has what remains.

Guidance w moves a sample of a class along v(none) + w (v(class) - v(none)) (Ho & Salimans, Classifier-free diffusion
guidance, 2022). It changes samples, latents and decodings only: the density is that of w = 1.

Shapes: B batch, D dimensions of an example, P directions of a trace, K classes, F features of the time, N noise numbers,
X axes of one example.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn import functional as F

from remint.errors import SettingsError
from remint.models.contract import Batch, Phase
from remint.models.convolutional import UNetwork
from remint.models.flow import Invertible
from remint.models.layers import Dropout, at_least_single
from remint.records import DataSpec
from remint.settings.recipe import FlowMatchingSettings

FREQUENCIES = 8  # of the time, each as a sine and a cosine
EXACT = 32  # most dimensions for which the trace is exact by default
NO_CLASS = 0.1  # share of the training examples whose class is hidden, if samples are guided
INVERSIONS = 16  # iterations that invert one step of a sample
SHORTEST, FIRST, LONGEST = 0.1, 0.3, 1.5  # step of an iteration, as a part of the residual
PROBES = 8  # directions of Hutchinson's estimate by default
TRACE_BLOCK = 2**21  # numbers of all directions at a time


class ResidualMlp(nn.Module):
    """Velocity of a vector: residual blocks, each scaled and shifted by time and class (Perez et al., FiLM, 2018)."""

    def __init__(self, dims: int, settings: FlowMatchingSettings, features: int) -> None:
        super().__init__()
        hidden = settings.hidden
        self.given = nn.Sequential(nn.Linear(features, hidden), nn.SiLU())
        self.first = nn.Linear(dims, hidden)
        self.films = nn.ModuleList(nn.Linear(hidden, 2 * hidden) for _ in range(settings.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(hidden, elementwise_affine=False) for _ in range(settings.layers))
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), Dropout(settings.dropout), nn.Linear(hidden, hidden))
            for _ in range(settings.layers)
        )
        self.last = nn.Linear(hidden, dims)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, z_BD: Tensor, given_BF: Tensor) -> Tensor:
        given_BF, h_BF = self.given(given_BF), self.first(z_BD)
        for film, norm, branch in zip(self.films, self.norms, self.branches, strict=True):
            scale_BF, shift_BF = film(given_BF).chunk(2, dim=1)
            h_BF = h_BF + branch(norm(h_BF) * (1 + scale_BF) + shift_BF)
        velocity_BD: Tensor = self.last(F.silu(h_BF))
        return velocity_BD


class MapVelocity(nn.Module):
    """Velocity of a flattened image, by a U-shaped convolutional network."""

    def __init__(self, settings: FlowMatchingSettings, spec: DataSpec, features: int) -> None:
        super().__init__()
        self.image = spec.image
        channels, height, width = spec.image
        self.net = UNetwork(
            channels,
            (height, width),
            settings.width,
            settings.blocks,
            extra_features=features,
            activation="silu",
            dropout=settings.dropout,
        )

    def forward(self, z_BD: Tensor, given_BF: Tensor) -> Tensor:
        velocity_BCHW: Tensor = self.net(z_BD.view(-1, *self.image), given_BF)
        return velocity_BCHW.flatten(1)


class FlowMatching(Invertible):
    """Continuous flow: CanSample, HasLogProb and HasLatent (models/contract.py)."""

    encodes_by_search = True

    def __init__(self, settings: FlowMatchingSettings, spec: DataSpec) -> None:
        probes = settings.probes if settings.probes is not None else 0 if spec.dims <= EXACT else PROBES
        super().__init__(settings.conditional, settings.tails, spec, probes * spec.dims)
        self.probes, self.guidance = probes, settings.guidance
        self.sample_steps, self.density_steps = settings.sample_steps, settings.density_steps
        trace = f"Hutchinson, {probes} direction{'s' * (probes > 1)}" if probes else "exact"
        self.estimator = {"ode": f"Runge-Kutta 4, {self.density_steps} steps", "trace": trace}
        features, maps = 2 * FREQUENCIES + self.labels.width, settings.network == "convolutional"
        self.net = MapVelocity(settings, spec, features) if maps else ResidualMlp(spec.dims, settings, features)

    @property
    def hides_classes(self) -> bool:
        """Whether the velocity without a class is trained too."""
        return self.conditional and self.guidance != 1.0

    def initialise(self, x_NX: Tensor, y_N: Tensor | None = None) -> None:
        self.labels.fit(y_N)
        self.entrance.fit(x_NX.flatten(1))

    def velocity(self, z_BD: Tensor, t_B: Tensor, c_BK: Tensor | None) -> Tensor:
        """Return v, shape (B, D). ``t_B``: the time of each row, or of all; ``c_BK``: classes, zeros for none."""
        angle_BF = math.pi * t_B.unsqueeze(-1) * torch.arange(1, FREQUENCIES + 1, device=z_BD.device, dtype=z_BD.dtype)
        given_BF = torch.cat([angle_BF.cos(), angle_BF.sin()], dim=-1).expand(z_BD.shape[0], -1)
        if c_BK is not None:
            given_BF = torch.cat([given_BF, c_BK], dim=1)
        velocity_BD: Tensor = self.net(z_BD, given_BF)
        return at_least_single(velocity_BD)

    def to_base(self, x_BX: Tensor, noise_BN: Tensor, y_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        place_BN, sign_BN = noise_BN[:, : self.entrance.noise_size], noise_BN[:, self.entrance.noise_size :]
        z_BD, log_det_B = self.entrance(x_BX.flatten(1), place_BN)
        if self.probes:
            probe_PBD = torch.where(sign_BN < 0, -1.0, 1.0).to(z_BD.dtype).view(z_BD.shape[0], self.probes, -1).movedim(1, 0)
        else:
            probe_PBD = torch.eye(self.spec.dims, dtype=z_BD.dtype, device=z_BD.device).unsqueeze(1).expand(-1, z_BD.shape[0], -1)
        c_BK, step = self._classes(y_B, z_BD.dtype), 1.0 / self.density_steps
        for k in range(self.density_steps, 0, -1):
            v1_BD, trace1_B = self._with_trace(z_BD, k * step, c_BK, probe_PBD)
            v2_BD, trace2_B = self._with_trace(z_BD - step / 2 * v1_BD, (k - 0.5) * step, c_BK, probe_PBD)
            v3_BD, trace3_B = self._with_trace(z_BD - step / 2 * v2_BD, (k - 0.5) * step, c_BK, probe_PBD)
            v4_BD, trace4_B = self._with_trace(z_BD - step * v3_BD, (k - 1) * step, c_BK, probe_PBD)
            z_BD = z_BD - step / 6 * (v1_BD + 2 * v2_BD + 2 * v3_BD + v4_BD)
            log_det_B = log_det_B - step / 6 * (trace1_B + 2 * trace2_B + 2 * trace3_B + trace4_B)
        return z_BD, log_det_B

    def _with_trace(self, z_BD: Tensor, t: float, c_BK: Tensor | None, probe_PBD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocity and the trace of its Jacobian, shape (B,). ``probe_PBD``: unit vectors, or random signs."""
        t_B = torch.full((1,), t, dtype=z_BD.dtype, device=z_BD.device)

        def along(probe_BD: Tensor) -> tuple[Tensor, Tensor]:
            v_BD, change_BD, *_ = jvp(lambda z: self.velocity(z, t_B, c_BK), (z_BD,), (probe_BD,))
            return v_BD, (change_BD * probe_BD).sum(1)

        parts = torch.split(probe_PBD, max(1, TRACE_BLOCK // max(1, z_BD.numel())))
        found = [vmap(along)(part_PBD) for part_PBD in parts]
        along_PB = torch.cat([along_PB for _, along_PB in found])
        return found[0][0][0], along_PB.mean(0) if self.probes else along_PB.sum(0)

    def from_base(self, base_BD: Tensor, y_B: Tensor | None = None) -> Tensor:
        z_BD, c_BK = base_BD, self._classes(y_B, base_BD.dtype)
        for k in range(self.sample_steps):
            z_BD = z_BD + self._change(z_BD, k, c_BK)
        return self.entrance.inverse(z_BD)

    def encode(self, x_BX: Tensor, y_B: Tensor | None = None) -> Tensor:
        """Return the base points from which ``decode`` makes the examples, each value in the middle of its level, shape (B, D).

        Cost: 2 INVERSIONS evaluations of v for each step of ``decode``, twice as many with guidance.
        """
        middle_BN = torch.zeros(x_BX.shape[0], self.entrance.noise_size, device=x_BX.device, dtype=next(self.parameters()).dtype)
        z_BD: Tensor = self.entrance(x_BX.flatten(1), middle_BN)[0]
        c_BK = self._classes(y_B, z_BD.dtype)
        for k in reversed(range(self.sample_steps)):
            z_BD = self._before(z_BD, k, c_BK)
        return z_BD

    def _before(self, after_BD: Tensor, k: int, c_BK: Tensor | None) -> Tensor:
        """Return the point that midpoint step ``k`` moves to ``after_BD``, by iteration.

        Each iteration goes along the residual, so far as the last change of the residual says (Barzilai & Borwein, Two-point
        step size gradient methods, 1988). A step of a velocity that is too steep for it has no inverse.
        """
        z_BD = after_BD - self._change(after_BD, k, c_BK)
        residual_BD = z_BD + self._change(z_BD, k, c_BK) - after_BD
        size_B1 = torch.full_like(z_BD[:, :1], FIRST)
        for _ in range(INVERSIONS):
            next_BD = z_BD - size_B1 * residual_BD
            next_residual_BD = next_BD + self._change(next_BD, k, c_BK) - after_BD
            moved_BD, changed_BD = next_BD - z_BD, next_residual_BD - residual_BD
            least = torch.finfo(z_BD.dtype).tiny
            size_B1 = (moved_BD * changed_BD).sum(1, keepdim=True) / changed_BD.square().sum(1, keepdim=True).clamp(min=least)
            size_B1 = size_B1.clamp(SHORTEST, LONGEST)
            z_BD, residual_BD = next_BD, next_residual_BD
        return z_BD

    def _change(self, z_BD: Tensor, k: int, c_BK: Tensor | None) -> Tensor:
        """Return the change of z in midpoint step ``k`` of a sample."""
        step = 1.0 / self.sample_steps
        half_BD = z_BD + step / 2 * self._guided(z_BD, k * step, c_BK)
        return step * self._guided(half_BD, (k + 0.5) * step, c_BK)

    def _guided(self, z_BD: Tensor, t: float, c_BK: Tensor | None) -> Tensor:
        t_B = torch.full((1,), t, dtype=z_BD.dtype, device=z_BD.device)
        v_BD = self.velocity(z_BD, t_B, c_BK)
        if c_BK is None or not self.hides_classes:
            return v_BD
        return torch.lerp(self.velocity(z_BD, t_B, torch.zeros_like(c_BK)), v_BD, self.guidance)


class Matching(Phase):
    """Regression of the velocity: the loss is a mean over the dimensions, without a unit."""

    name: ClassVar[str] = "matching"

    def __init__(self, model: FlowMatching) -> None:
        super().__init__()
        self.model = model
        # The place within a level, the base point, the time, and whether the class is hidden.
        self.sizes = [model.entrance.noise_size, model.spec.dims, 1, 1]
        self.noise_size = sum(self.sizes)

    def forward(self, batch: Batch) -> Tensor:
        place_BN, base_BD, time_B1, hidden_B1 = torch.split(batch.noise_BN, self.sizes, dim=1)
        z_BD, _ = self.model.entrance(batch.x_BX.flatten(1), place_BN)
        t_B1 = torch.special.ndtr(time_B1)
        c_BK = self.model.labels.one_hot(batch.y_B, z_BD.dtype) if self.model.conditional else None
        if c_BK is not None and self.model.hides_classes:
            c_BK = torch.where(torch.special.ndtr(hidden_B1) < NO_CLASS, 0.0, c_BK)
        velocity_BD = self.model.velocity(torch.lerp(base_BD, z_BD, t_B1), t_B1.squeeze(1), c_BK)
        loss: Tensor = (velocity_BD - (z_BD - base_BD)).square().mean()
        return loss


def build(settings: FlowMatchingSettings, spec: DataSpec) -> FlowMatching:
    """Build the model. Raises SettingsError if the convolutional network cannot have such data."""
    if spec.is_table and settings.network == "convolutional":
        raise SettingsError("model.network: convolutional needs images, but this dataset is a table: use network: mlp")
    return FlowMatching(settings, spec)


def phases(model: FlowMatching, settings: FlowMatchingSettings) -> list[Phase]:
    return [Matching(model)]
