"""What training depends on: dataset, family, model and training settings.

The train step depends on their values, defaults filled in (steps.py). Gate, schedule and evaluation are in params.py and
judging.py: they decide no weights.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0.0)]
LONGEST = 200  # characters of a name that is compared with others: the time grows with the square
Filter = Literal["lanczos", "bicubic", "bilinear", "box", "nearest", "pad"]


class Settings(BaseModel):
    """Frozen settings. An unknown key is refused with the nearest known one; types are strict."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, block: Any) -> Any:
        if isinstance(block, dict):
            known = {field.alias or name for name, field in cls.model_fields.items()}
            for key in block:
                if key not in known:
                    raise ValueError(did_you_mean(f"key '{key}'", str(key), known))
        return block


def did_you_mean(what: str, name: str, known: set[str] | list[str]) -> str:
    """One clause that refuses a name: the nearest known one where there is one, else all of them."""
    near = difflib.get_close_matches(name[:LONGEST], sorted(known), n=1, cutoff=0.5)
    return f"unknown {what}: " + (f"did you mean '{near[0]}'?" if near else f"known are {', '.join(sorted(known))}")


class SplitSettings(Settings):
    """Shares of the examples; the rest is the training split. An example's split is a hash of its content."""

    validation: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.1
    held_out: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.2
    seed: int = 0


class ResizeSettings(Settings):
    """Every image is made this size: cut around its centre to these proportions, then resampled; or padded with zeros."""

    size: list[Positive] = Field(min_length=2, max_length=2)  # H, W
    filter: Filter = "lanczos"  # lanczos, bicubic, bilinear, box, nearest: as Pillow has them; pad: zeros around, no resampling


class DatasetSettings(Settings):
    """One entry of ``datasets:``."""

    source: str  # sklearn:NAME | a folder | file.npy/.npz/.csv/.parquet/.zip/.tar/.tar.gz | idx:FOLDER | s3://bucket/prefix
    kind: Literal["image", "table"] = "image"
    shape: list[Positive] | None = Field(default=None, min_length=3, max_length=3)  # images: C, H, W that every one must have
    levels: Annotated[int, Field(ge=2, le=256)] | None = None  # pixel values are 0 .. levels-1; None: as the source says
    channels: Literal[1, 3] | None = None  # image files are made grey or RGB; None: as they are, all of them the same
    resize: ResizeSettings | None = None  # images; None: they must all be of one size
    undecodable: Fraction = 0.01  # image files that may be set aside as broken, as a share of all
    label: str | None = None  # tables: the column that holds the class; None: there is none (of sklearn: the target)
    categorical: list[str] = []  # tables: columns of integers that are categories; text always is
    drop: list[str] = []  # tables: columns that are left out
    missing: Literal["keep", "drop_rows"] = "keep"  # tables: what becomes of rows with missing values
    schema_version: Positive = 1  # raised by one, the next import learns the schema anew in place of refusing what does not fit
    split: SplitSettings = SplitSettings()

    @field_validator("source")
    @classmethod
    def _a_path(cls, source: str) -> str:
        if not source.strip() or not source.isprintable() or any(len(part.encode()) > 255 for part in source.split("/")):
            raise ValueError(f"expected a path or an address, not {source[:100]!r}")
        return source

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> DatasetSettings:
        others = {"image": ("label", "categorical", "drop", "missing"), "table": ("shape", "levels", "channels", "resize")}
        for key in others[self.kind]:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is not for kind: {self.kind}: leave it out, or correct kind")
        return self


class ModelSettings(Settings):
    """Base of a family's ``model:`` block. ``can`` names the protocols of models/contract.py that it has."""

    can: ClassVar[frozenset[str]] = frozenset()

    conditional: bool = False  # given the class label: sampled by class, likelihoods of x given y


class FlowSettings(ModelSettings):
    """Normalizing flow of coupling layers, with uniform dequantisation of what is discrete as its first layer."""

    can: ClassVar[frozenset[str]] = frozenset({"sample", "log_prob"})

    network: Literal["mlp", "multiscale"] = "mlp"  # multiscale: convolutional, of images (RealNVP, Glow)
    coupling: Literal["spline", "affine"] = "spline"  # what a coupling does to an element: neural spline, or scale and shift
    couplings: Positive = 6  # of each scale of a multiscale network
    hidden: Positive = 128  # units of each hidden layer of a coupling's mlp
    layers: Positive = 2  # hidden layers of a coupling's mlp
    scales: Positive = 2  # of a multiscale network; each halves the sides of the map that the next one sees
    width: Positive = 32  # channels of a coupling's residual convolutional network
    blocks: Positive = 2  # of a coupling's residual convolutional network
    dilation: Positive = 1  # greatest distance of a 3x3 convolution's taps, doubling from block to block
    bins: Annotated[int, Field(ge=2, le=128)] = 6  # of a spline
    bound: Rate = 5.0  # a spline acts on -bound .. bound, in standard deviations
    tails: Literal["asinh", "linear"] = "asinh"  # tables: numbers as their asinh, so that outliers come near, or as they are
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1


Likelihood = Literal["bernoulli", "categorical", "discretised_logistic", "sigma_gaussian", "gaussian_mixture"]
Pixels = Literal["mode", "mean", "draw"]


class VaeSettings(ModelSettings):
    """Variational autoencoder of images, or of tables, whose values may be missing.

    Unless said otherwise the likelihood is discretised_logistic of images and sigma_gaussian of a table's numeric columns.
    """

    can: ClassVar[frozenset[str]] = frozenset({"sample", "elbo"})

    latent: Positive = 16
    network: Literal["mlp", "residual"] = "mlp"  # residual: convolutional, of images
    hidden: Positive = 256  # units of each hidden layer of an mlp
    layers: Count = 2  # hidden layers of an mlp; 0: linear maps
    width: Positive = 32  # channels of the finest map of a residual network; doubled at each halving, up to four times as many
    blocks: Positive = 2  # of a residual network, at each size of its maps
    dilation: Positive = 1  # greatest distance of a 3x3 convolution's taps, doubling from block to block
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    likelihood: Likelihood | None = None  # bernoulli, categorical, discretised_logistic, sigma_gaussian; tables: gaussian_mixture
    mixtures: Positive = 3  # components of discretised_logistic (1 is the plain one) and of gaussian_mixture
    pixels: Pixels = "mode"  # each pixel of a sample, given z: its likeliest level, the one nearest to its mean, or a draw
    beta: Annotated[float, Field(ge=0.0)] = 1.0  # weight of the KL in the loss; 1: the evidence lower bound
    kl_warmup: Fraction = 0.2  # share of the steps over which the weight of the KL rises from 0
    free_bits: Annotated[float, Field(ge=0.0)] = 0.0  # nats of KL that each latent has for nothing; 0: none


Loss = Literal["relativistic", "minimax", "non_saturating", "wgan_gp"]
Augmentation = Literal["colour", "translation", "cutout"]


class CriticSettings(ModelSettings):
    """What every family with a critic is told of its networks and of the game between them (models/adversarial.py)."""

    loss: Loss = "relativistic"  # relativistic (R3GAN), minimax or non_saturating (Goodfellow 2014), wgan_gp
    network: Literal["mlp", "residual_mlp", "dcgan", "residual"] = "mlp"  # dcgan and residual are convolutional, of images
    hidden: Positive = 256  # units of each hidden layer of an mlp or residual_mlp
    layers: Positive = 3  # hidden layers of an mlp, blocks of a residual_mlp
    width: Positive = 32  # channels of the finest map of dcgan and residual; doubled at each halving, up to four times as many
    blocks: Positive = 1  # of a residual network, at each size of its maps
    dilation: Positive = 1  # greatest distance of a 3x3 convolution's taps in a residual network, doubling from block to block
    fourier: Count = 0  # random frequencies whose waves stand beside the critic's input, of tables with few columns
    fourier_scale: Rate = 5.0  # standard deviation of the frequencies, in radians per standard deviation of a column
    penalty: Annotated[float, Field(ge=0.0)] = 10.0  # weight of R1 + R2, or of wgan_gp's own penalty, at the start ...
    penalty_final: Annotated[float, Field(ge=0.0)] = 0.5  # ... and from 70% of the steps on
    penalty_every: Positive = 4  # lazy: every n-th step, n times the weight
    critic_learning_rate: Rate = 1.33  # times training.learning_rate
    augment: Fraction = 0.0  # small data: how sure of its examples augmentation keeps the critic, 0 .. 1, such as 0.6; 0: none
    augment_examples: Positive = 100_000  # examples in which its probability can rise from 0 to 1
    augmentations: list[Augmentation] = ["colour", "translation", "cutout"]  # (models/augment.py)
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # of Adam, on both sides
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99  # at the start ...
    beta2_final: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None  # ... and from 70% of the steps on; None: as at the start


class GanSettings(CriticSettings):
    """Generative adversarial network; by default relativistic with zero-centred gradient penalties (R3GAN)."""

    can: ClassVar[frozenset[str]] = frozenset({"sample"})

    latent: Positive = 32


class VaeGanCriticSettings(CriticSettings):
    """The game of a family whose decoder answers to a likelihood as well: the weaker part of it, steady from the start."""

    penalty: Annotated[float, Field(ge=0.0)] = 1.0  # weight of R1 + R2, or of wgan_gp's own penalty, at the start ...
    penalty_final: Annotated[float, Field(ge=0.0)] = 1.0  # ... and from 70% of the steps on
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5  # of Adam, of decoder and critic


class VaeGanSettings(VaeSettings):
    """Variational autoencoder of images whose decoder is also trained against a critic."""

    pixels: Pixels = "mean"  # each pixel of a sample, given z; the critic judges the mean
    adversarial: Rate = 4.0  # weight of the critic's part in the decoder's loss, beside the likelihood's in bits/dim
    critic: VaeGanCriticSettings = VaeGanCriticSettings()  # the critic's networks, and the game with it

    @model_validator(mode="after")
    def _one_word_for_classes(self) -> VaeGanSettings:
        if self.critic.conditional:
            raise ValueError("critic.conditional: the critic is given the class where the model is: set conditional instead")
        return self


MODEL_SETTINGS: dict[str, type[ModelSettings]] = {
    "flow": FlowSettings,
    "vae": VaeSettings,
    "gan": GanSettings,
    "vaegan": VaeGanSettings,
}


class TrainingSettings(Settings):
    """How long, how fast, from which seed, on how many devices."""

    steps: Positive = 1500  # optimizer steps
    batch_size: Positive = 64  # examples per step, over all devices together
    learning_rate: Rate = 2.0e-3
    warmup: Fraction = 0.02  # share of the steps over which the learning rate rises from 0
    final_learning_rate: Fraction = 0.01  # times learning_rate, reached by a cosine at the last step
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    gradient_clip: Annotated[float, Field(ge=0.0)] = 0.0  # greatest norm of a phase's gradient; 0: not clipped
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99  # decay per step of the averaged weights, which are served
    ema_images: Positive | None = None  # examples in which the average forgets half, whatever the batch size; in place of ema
    seed: Count = 0
    threads: Positive = 1  # CPU threads of each process
    devices: Positive = 1  # processes: one GPU each, or CPU processes where there is no GPU
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"  # bf16: matrix products only; fp64: everything, for exactness
    validate_every: Positive = 100  # steps between two scores on the validation split
    patience: Count = 0  # scores without a new best after which training stops; 0: never
    collapse: Fraction | None = None  # samples that reach less of what real ones do end it; None: 0.6 without likelihood; 0: off
    checkpoint_every: Positive = 250  # steps between two checkpoints
    skip_limit: Count = 5  # steps in a row that are skipped, whose loss or gradient is not finite; one more: it goes back
    skip_share: Fraction = 0.05  # of all steps, likewise, where that is more than skip_limit
    rollbacks: Count = 2  # times that it goes back to the last good checkpoint; once more: the run fails
    rollback_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # times the learning rate, each time that it goes back

    @model_validator(mode="after")
    def _even_split(self) -> TrainingSettings:
        if self.batch_size % self.devices:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of devices {self.devices}")
        return self


class Recipe(Settings):
    """All that decides a pipeline's weights apart from the data and the code."""

    dataset: str
    family: str
    model: ModelSettings
    training: TrainingSettings

    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults filled in, as JSON holds it."""
        return {
            "dataset": self.dataset,
            "family": self.family,
            "model": self.model.model_dump(mode="json"),
            "training": self.training.model_dump(mode="json"),
        }

    def without_seed(self) -> dict[str, Any]:
        """``resolved`` without the seed: what trainings have in common that differ by chance alone."""
        resolved = self.resolved()
        del resolved["training"]["seed"]
        return resolved
