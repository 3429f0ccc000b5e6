"""Small models of every family, with weights that are not those of the first step (where a flow is still the identity)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from remint.models.contract import Batch, Model, Phase, standard_normal
from remint.models.families import family
from remint.recipe import FlowSettings, GanSettings, ModelSettings, VaeSettings
from remint.records import DataSpec

PAIR = DataSpec(shape=(1, 1, 2), levels=3)  # nine examples in all: every sum over them can be written out
IMAGE = DataSpec(shape=(2, 3, 4), levels=17)


@dataclass(frozen=True)
class Case:
    family: str
    settings: ModelSettings

    def build(self, spec: DataSpec, seed: int = 0, spread: float = 0.2) -> Model:
        """In float64 and eval mode, initialised from random data; ``spread`` is added to every parameter at random."""
        torch.manual_seed(seed)
        model = family(self.family).build(self.settings, spec).double().eval()
        model.initialise(examples(spec, 50))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(spread * torch.randn_like(parameter))
        return model

    def phases(self, model: Model) -> list[Phase]:
        return [phase.double() for phase in family(self.family).phases(model, self.settings)]


CASES = {
    "flow": Case("flow", FlowSettings(couplings=4, hidden=8, bins=4, dropout=0.0)),
    "vae": Case("vae", VaeSettings(latent=1, hidden=8, dropout=0.0, mixtures=2, pixels="draw")),
    "vae-categorical": Case("vae", VaeSettings(latent=1, hidden=8, dropout=0.0, likelihood="categorical", pixels="draw")),
    "gan": Case("gan", GanSettings(latent=3, hidden=8, layers=2, penalty_every=2)),
}


def examples(spec: DataSpec, count: int, seed: int = 1) -> Tensor:
    """Random examples, uint8, in which no two pixels of one example are independent."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.randint(spec.levels, (count, *spec.shape), generator=generator)
    shared = torch.randint(spec.levels, (count, 1, 1, 1), generator=generator)
    return torch.minimum(own, shared).to(torch.uint8)


def every_example(spec: DataSpec) -> Tensor:
    """All levels ** dims examples, uint8."""
    grid = torch.cartesian_prod(*[torch.arange(spec.levels)] * spec.dims)
    return grid.view(-1, *spec.shape).to(torch.uint8)


def a_batch(phase: Phase, spec: DataSpec, count: int = 6, step: int = 0, progress: float = 0.5) -> Batch:
    noise = standard_normal((count, phase.noise_size), step, 7).double()
    return Batch(examples(spec, count).double(), noise, progress=progress, step=step)
