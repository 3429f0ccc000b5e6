"""Small models of every family, with weights that differ from the initial ones (an initial flow is the identity)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from examples.pixelcnn import family as pixelcnn
from remint.models.contract import Batch, Model, Phase, standard_normal
from remint.models.families import family
from remint.records import Column, DataSpec
from remint.settings.recipe import (
    FlowMatchingSettings,
    FlowSettings,
    GanSettings,
    ModelSettings,
    VaeGanCriticSettings,
    VaeGanSettings,
    VaeSettings,
)

PAIR = DataSpec(shape=(1, 1, 2), levels=3)  # nine possible examples: tests sum over all of them
LABELLED_PAIR = PAIR.model_copy(update={"classes": 3})
IMAGE = DataSpec(shape=(2, 3, 4), levels=17, classes=3)
SQUARE = DataSpec(shape=(1, 4, 4), levels=5, classes=3)  # its height and width can be halved twice
NUMBERS = DataSpec(shape=(3,), columns=tuple(Column(name=name) for name in "abc"), classes=3)  # a table without missing values
MIXED = DataSpec(  # a table with every kind of column
    shape=(4,),
    columns=(
        Column(name="age", mean=40.0, scale=9.0),
        Column(name="colour", categories=("blue", "green", "red")),
        Column(name="height", mean=170.0, scale=12.0, missing=True),
        Column(name="smokes", categories=("no", "yes"), missing=True),
    ),
    classes=3,
)
WHOLE = DataSpec(  # a table with whole numbers, some of them missing
    shape=(4,),
    columns=(
        Column(name="children", mean=1.3, scale=1.1, least=0, most=4),
        Column(name="colour", categories=("blue", "green", "red")),
        Column(name="height", mean=170.0, scale=12.0),
        Column(name="steps", mean=8e3, scale=3e3, least=12, most=21_034),
    ),
    classes=3,
)
GAPPED = WHOLE.model_copy(
    update={"columns": tuple(column.model_copy(update={"missing": True, "absent": 0.25}) for column in WHOLE.columns)}
)
COMPLETE = MIXED.model_copy(update={"columns": tuple(column.model_copy(update={"missing": False}) for column in MIXED.columns)})


@dataclass(frozen=True)
class Case:
    """One family with settings, and the data for the tests of every family."""

    family: str
    settings: ModelSettings
    spec: DataSpec = IMAGE

    def build(self, spec: DataSpec | None = None, seed: int = 0, spread: float = 0.2) -> Model:
        """Build the model in float64 and eval mode, from random data. ``spread``: scale of the noise on every parameter."""
        spec = spec or self.spec
        torch.manual_seed(seed)
        model = family(self.family).build(self.settings, spec).double().eval()
        model.initialise(examples(spec, 50), labels(spec, 50))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(spread * torch.randn_like(parameter))
        return model

    def phases(self, model: Model) -> list[Phase]:
        return [phase.double() for phase in family(self.family).phases(model, self.settings)]

    def y(self, count: int, seed: int = 1) -> Tensor | None:
        """Return random classes for a conditional model, None for others."""
        return labels(self.spec, count, seed) if self.settings.conditional else None


CASES = {
    "flow": Case("flow", FlowSettings(couplings=4, hidden=8, bins=4, dropout=0.0)),
    "flow-multiscale": Case(
        "flow",
        FlowSettings(network="multiscale", couplings=1, width=4, dilation=2, bins=4, dropout=0.0, conditional=True),
        SQUARE,
    ),
    "flow-affine": Case("flow", FlowSettings(network="multiscale", coupling="affine", couplings=2, width=4, dropout=0.0), SQUARE),
    "flow-table": Case("flow", FlowSettings(couplings=2, hidden=8, bins=4, dropout=0.0, conditional=True), COMPLETE),
    "flow-affine-table": Case(
        "flow", FlowSettings(coupling="affine", couplings=2, hidden=8, tails="linear", dropout=0.0), NUMBERS
    ),
    "flow_matching": Case("flow_matching", FlowMatchingSettings(hidden=8, layers=1, density_steps=3, probes=2)),
    "flow_matching-unet": Case(
        "flow_matching",
        FlowMatchingSettings(network="convolutional", width=4, density_steps=2, conditional=True, guidance=1.5),
        SQUARE,
    ),
    "flow_matching-table": Case(
        "flow_matching", FlowMatchingSettings(hidden=8, layers=2, density_steps=3, conditional=True), COMPLETE
    ),
    "flow_matching-whole": Case("flow_matching", FlowMatchingSettings(hidden=8, layers=1, density_steps=3), WHOLE),
    "vae": Case("vae", VaeSettings(latent=1, hidden=8, dropout=0.0, mixtures=2, pixels="draw")),
    "vae-categorical": Case("vae", VaeSettings(latent=1, hidden=8, dropout=0.0, likelihood="categorical", pixels="draw")),
    "vae-residual": Case(
        "vae",
        VaeSettings(
            latent=3,
            network="residual",
            width=8,
            blocks=2,
            dilation=2,
            dropout=0.0,
            likelihood="sigma_gaussian",
            conditional=True,
        ),
    ),
    "vae-table": Case("vae", VaeSettings(latent=2, hidden=8, dropout=0.0, free_bits=0.1, conditional=True), MIXED),
    "vae-mixture": Case("vae", VaeSettings(latent=2, hidden=8, dropout=0.0, likelihood="gaussian_mixture", mixtures=2), MIXED),
    "vae-whole": Case("vae", VaeSettings(latent=2, hidden=8, dropout=0.0, conditional=True), GAPPED),
    "vae-mixture-whole": Case("vae", VaeSettings(latent=2, hidden=8, dropout=0.0, likelihood="gaussian_mixture"), GAPPED),
    "flow-whole": Case("flow", FlowSettings(couplings=2, hidden=8, bins=4, dropout=0.0, conditional=True), WHOLE),
    "gan-whole": Case("gan", GanSettings(latent=3, hidden=8, layers=2), WHOLE),
    "pixelcnn": Case("pixelcnn", pixelcnn.Settings(hidden=4, layers=2, dropout=0.0)),
    "pixelcnn-conditional": Case("pixelcnn", pixelcnn.Settings(hidden=4, layers=2, dropout=0.0, conditional=True)),
    "vaegan": Case("vaegan", VaeGanSettings(latent=2, hidden=8, dropout=0.0, critic=VaeGanCriticSettings(hidden=8, layers=2))),
    "vaegan-residual": Case(
        "vaegan",
        VaeGanSettings(
            latent=2,
            network="residual",
            width=4,
            blocks=1,
            dropout=0.0,
            likelihood="sigma_gaussian",
            conditional=True,
            critic=VaeGanCriticSettings(network="residual", width=4, loss="wgan_gp"),
        ),
    ),
    "gan": Case("gan", GanSettings(latent=3, hidden=8, layers=2, penalty_every=2)),
    "gan-residual": Case("gan", GanSettings(latent=3, network="residual", width=4, blocks=2, dilation=2, conditional=True)),
    "gan-table": Case(
        "gan",
        GanSettings(latent=3, network="residual_mlp", hidden=8, layers=2, fourier=2, fourier_scale=1.0, loss="wgan_gp"),
        COMPLETE,
    ),
}


def examples(spec: DataSpec, count: int, seed: int = 1) -> Tensor:
    """Return random examples, uint8 images or float32 rows. No two values of one example are independent."""
    generator = torch.Generator().manual_seed(seed)
    if spec.is_table:
        return _rows(spec, count, generator)
    own = torch.randint(spec.levels, (count, *spec.shape), generator=generator)
    shared = torch.randint(spec.levels, (count, 1, 1, 1), generator=generator)
    return torch.minimum(own, shared).to(torch.uint8)


def _rows(spec: DataSpec, count: int, generator: torch.Generator) -> Tensor:
    shared = torch.randn(count, generator=generator)
    columns = []
    for column in spec.columns:
        x = (shared + torch.randn(count, generator=generator)) / 2**0.5
        if column.categories:
            x = (torch.special.ndtr(x) * len(column.categories)).floor().clamp(max=len(column.categories) - 1)
        if column.whole:
            x = ((x.double() * column.scale + column.mean).round().clamp(column.least, column.most) - column.mean) / column.scale
        if column.missing:
            x[torch.rand(count, generator=generator) < 0.3] = torch.nan
        columns.append(x.float())
    return torch.stack(columns, dim=1)


def labels(spec: DataSpec, count: int, seed: int = 1) -> Tensor | None:
    """Return random classes, int64; the first few contain every class. None if the data have no classes."""
    if not spec.classes:
        return None
    return (torch.arange(count) + torch.randint(2, (count,), generator=torch.Generator().manual_seed(seed))) % spec.classes


def every_example(spec: DataSpec) -> Tensor:
    """Return all levels ** dims examples, uint8."""
    grid = torch.cartesian_prod(*[torch.arange(spec.levels)] * spec.dims)
    return grid.view(-1, *spec.shape).to(torch.uint8)


def make_batch(phase: Phase, spec: DataSpec, count: int = 6, step: int = 0, progress: float = 0.5) -> Batch:
    """Return a batch as the loop makes it, in float64, with labels if the data have any."""
    noise = standard_normal((count, phase.noise_size), step, 7).double()
    return Batch(examples(spec, count).double(), noise, progress=progress, step=step, y_B=labels(spec, count))
