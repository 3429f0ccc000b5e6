"""Settings that training depends on: family, model and training.

The train step depends on their values with defaults filled in (steps.py). The settings of gate, schedule and evaluation do
not affect the weights: they are in params.py and judging.py.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from remint.records import Extended
from remint.settings.base import Count, Fraction, Positive, Rate, Settings
from remint.settings.nodes import NodeRange


class ModelSettings(Settings):
    """Base class of a family's ``model:`` block. ``can``: protocols of models/contract.py that the model implements."""

    can: ClassVar[frozenset[str]] = frozenset()
    takes_missing: ClassVar[bool] = False  # whether rows may lack values (NaN), in training and in likelihoods

    conditional: bool = False  # conditional on the class label: samples by class, likelihoods of x given y


class FlowSettings(ModelSettings):
    """Normalizing flow of coupling layers. Its first layer dequantises discrete values uniformly."""

    can: ClassVar[frozenset[str]] = frozenset({"sample", "log_prob", "latent", "impute"})

    network: Literal["mlp", "multiscale"] = "mlp"  # multiscale: convolutional, of images (RealNVP, Glow)
    coupling: Literal["spline", "affine"] = "spline"  # transform of an element: neural spline, or scale and shift
    couplings: Positive = 6  # coupling layers; multiscale: at each scale
    hidden: Positive = 128  # units of each hidden layer of a coupling's mlp
    layers: Positive = 2  # hidden layers of a coupling's mlp
    scales: Positive = 2  # of a multiscale network; each halves height and width for the next one
    width: Positive = 32  # channels of a coupling's residual convolutional network
    blocks: Positive = 2  # of a coupling's residual convolutional network
    dilation: Positive = 1  # largest dilation of the 3x3 convolutions; it doubles from block to block
    bins: Annotated[int, Field(ge=2, le=128)] = 6  # of a spline
    bound: Rate = 5.0  # a spline acts on -bound .. bound, in standard deviations
    tails: Literal["asinh", "linear"] = "asinh"  # tables: asinh moves outliers closer; linear keeps numbers as they are
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1


class FlowMatchingSettings(ModelSettings):
    """Continuous normalizing flow, trained by regression of its velocity (flow matching)."""

    can: ClassVar[frozenset[str]] = frozenset({"sample", "log_prob", "latent"})

    network: Literal["mlp", "convolutional"] = "mlp"  # convolutional: U-shaped, of images
    hidden: Positive = 256  # units of each layer of an mlp
    layers: Positive = 3  # residual blocks of an mlp
    width: Positive = 32  # channels of the finest map of a convolutional network; doubled at each halving, at most four times
    blocks: Positive = 1  # of a convolutional network, at each size of its maps, on each way
    tails: Literal["asinh", "linear"] = "asinh"  # tables: asinh moves outliers closer; linear keeps numbers as they are
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    sample_steps: Positive = 5  # midpoint steps of a sample: two evaluations of the network each
    density_steps: Positive = 10  # Runge-Kutta steps of a likelihood: four evaluations of the network and of the trace each
    probes: Count | None = None  # random directions that estimate the trace; 0: exact; None: 0 up to 32 dimensions, else 8
    guidance: Annotated[float, Field(ge=0.0)] = 1.0  # of samples of a class: above 1 they are more typical and vary less

    @model_validator(mode="after")
    def _check_guidance(self) -> FlowMatchingSettings:
        if self.guidance != 1.0 and not self.conditional:
            raise ValueError("guidance moves samples towards their class: set conditional: true, or remove it")
        return self


Likelihood = Literal["bernoulli", "categorical", "discretised_logistic", "sigma_gaussian", "gaussian_mixture"]
Pixels = Literal["mode", "mean", "draw"]


class VaeSettings(ModelSettings):
    """Variational autoencoder of images, or of tables, where values may be missing.

    The default likelihood is discretised_logistic for images and sigma_gaussian for the numeric columns of a table.
    """

    can: ClassVar[frozenset[str]] = frozenset({"sample", "elbo", "latent", "impute"})
    takes_missing: ClassVar[bool] = True

    latent: Positive = 16
    network: Literal["mlp", "residual"] = "mlp"  # residual: convolutional, of images
    hidden: Positive = 256  # units of each hidden layer of an mlp
    layers: Count = 2  # hidden layers of an mlp; 0: linear maps
    width: Positive = 32  # channels of the finest map of a residual network; doubled at each halving, up to four times as many
    blocks: Positive = 2  # of a residual network, at each size of its maps
    dilation: Positive = 1  # largest dilation of the 3x3 convolutions; it doubles from block to block
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.1
    likelihood: Likelihood | None = None  # bernoulli, categorical, discretised_logistic, sigma_gaussian; tables: gaussian_mixture
    mixtures: Positive = 3  # components of discretised_logistic (1: a single logistic) and of gaussian_mixture
    pixels: Pixels = "mode"  # pixel of a sample, given z: the likeliest level, the level nearest to the mean, or a draw
    beta: Annotated[float, Field(ge=0.0)] = 1.0  # weight of the KL in the loss; 1: the evidence lower bound
    kl_warmup: Fraction = 0.2  # share of the steps over which the weight of the KL rises from 0
    free_bits: Annotated[float, Field(ge=0.0)] = 0.0  # nats of KL per latent that the loss does not penalise; 0: none


Loss = Literal["relativistic", "minimax", "non_saturating", "wgan_gp"]
Augmentation = Literal["colour", "translation", "cutout"]


class CriticSettings(ModelSettings):
    """Settings of the critic's networks and of adversarial training, for every family with a critic (models/adversarial.py)."""

    loss: Loss = "relativistic"  # relativistic (R3GAN), minimax or non_saturating (Goodfellow 2014), wgan_gp
    network: Literal["mlp", "residual_mlp", "dcgan", "residual"] = "mlp"  # dcgan and residual are convolutional, of images
    hidden: Positive = 256  # units of each hidden layer of an mlp or residual_mlp
    layers: Positive = 3  # hidden layers of an mlp, blocks of a residual_mlp
    width: Positive = 32  # channels of the finest map of dcgan and residual; doubled at each halving, up to four times as many
    blocks: Positive = 1  # of a residual network, at each size of its maps
    dilation: Positive = 1  # largest dilation of a residual network's 3x3 convolutions; it doubles from block to block
    fourier: Count = 0  # random Fourier frequencies added to the critic's input, for tables with few columns; 0: none
    fourier_scale: Rate = 5.0  # standard deviation of the frequencies, in radians per standard deviation of a column
    penalty: Annotated[float, Field(ge=0.0)] = 10.0  # weight of R1 + R2, or of wgan_gp's penalty, at the start ...
    penalty_final: Annotated[float, Field(ge=0.0)] = 0.5  # ... and from 70% of the steps on
    penalty_every: Positive = 4  # lazy: every n-th step, n times the weight
    critic_learning_rate: Rate = 1.33  # times training.learning_rate
    augment: Fraction = 0.0  # small data: confidence of the critic that augmentation aims at, 0 .. 1, such as 0.6; 0: none
    augment_examples: Positive = 100_000  # examples over which the augmentation probability can rise from 0 to 1
    augmentations: list[Augmentation] = ["colour", "translation", "cutout"]  # (models/augment.py)
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0  # of Adam, for generator and critic
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99  # at the start ...
    beta2_final: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None  # ... and from 70% of the steps on; None: as at the start


class GanSettings(CriticSettings):
    """Generative adversarial network; by default relativistic with zero-centred gradient penalties (R3GAN)."""

    can: ClassVar[frozenset[str]] = frozenset({"sample", "latent"})

    latent: Positive = 32


class VaeGanCriticSettings(CriticSettings):
    """Critic of a family whose decoder also has a likelihood loss: a weaker penalty, constant from the start."""

    penalty: Annotated[float, Field(ge=0.0)] = 1.0  # weight of R1 + R2, or of wgan_gp's penalty, at the start ...
    penalty_final: Annotated[float, Field(ge=0.0)] = 1.0  # ... and from 70% of the steps on
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5  # of Adam, for decoder and critic


class VaeGanSettings(VaeSettings):
    """Variational autoencoder of images whose decoder is also trained against a critic."""

    takes_missing: ClassVar[bool] = False

    pixels: Pixels = "mean"  # each pixel of a sample, given z; the critic judges the mean
    adversarial: Rate = 4.0  # weight of the critic's term in the decoder's loss, whose likelihood term is in bits/dim
    critic: VaeGanCriticSettings = VaeGanCriticSettings()  # networks and training of the critic

    @model_validator(mode="after")
    def _check_critic(self) -> VaeGanSettings:
        if self.critic.conditional:
            raise ValueError("critic.conditional: remove it and set model.conditional: the critic then gets the class too")
        return self


MODEL_SETTINGS: dict[str, type[ModelSettings]] = {
    "flow": FlowSettings,
    "flow_matching": FlowMatchingSettings,
    "vae": VaeSettings,
    "gan": GanSettings,
    "vaegan": VaeGanSettings,
}


class TrainingSettings(Settings, Extended):
    """Length, learning rate, seed and devices of a training."""

    added_later: ClassVar[frozenset[str]] = frozenset(
        {"compile", "data", "validation_examples"}
    )  # so that keys of older versions stay

    steps: Positive = 1500  # optimizer steps
    batch_size: Positive = 64  # examples per step, over all devices together
    learning_rate: Rate = 2.0e-3
    warmup: Fraction = 0.02  # share of the steps over which the learning rate rises from 0
    final_learning_rate: Fraction = 0.01  # times learning_rate, reached by a cosine at the last step
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    gradient_clip: Annotated[float, Field(ge=0.0)] = 0.0  # greatest norm of a phase's gradient; 0: not clipped
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99  # decay per step of the averaged weights, which are served
    ema_images: Positive | None = None  # half-life of the average in examples, for any batch size; replaces ema
    seed: Count = 0
    threads: Positive = 1  # CPU threads of each process
    devices: Positive = 1  # processes of each machine: one GPU each, or CPU processes where there is no GPU
    nodes: NodeRange = NodeRange(min=1, max=1)  # machines of a Ray cluster: a number, or {min, max}: as many as are free
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"  # bf16: matrix products only; fp64: everything, for exactness
    compile: Literal["off", "on", "auto"] = "off"  # phases by torch.compile; auto: if measured to be faster, in long trainings
    data: Literal["auto", "device", "host", "mapped"] = "auto"  # where the training split is meanwhile; the weights are the same
    validate_every: Positive = 100  # steps between two scores on the validation split
    validation_examples: Positive = 1000  # most of them that a score takes, evenly spaced in the validation split
    patience: Count = 0  # scores without a new best after which training stops; 0: never
    collapse: Fraction | None = None  # stop below this sample coverage relative to real data; None: 0.6 if no likelihood; 0: off
    checkpoint_every: Positive = 250  # steps between two checkpoints
    skip_limit: Count = 5  # consecutive steps skipped because loss or gradient is not finite; one more: rollback
    skip_share: Fraction = 0.05  # share of all steps that may be skipped in total, if more than skip_limit; one more: rollback
    rollbacks: Count = 2  # rollbacks to the last good checkpoint; one more: the run fails
    rollback_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5  # factor on the learning rate at each rollback

    @model_validator(mode="after")
    def _check_batch_size(self) -> TrainingSettings:
        processes = self.devices * self.nodes.max
        if self.batch_size < processes:
            raise ValueError(f"batch_size {self.batch_size} is below the {processes} processes: each of them takes an example")
        return self


class Recipe(Settings):
    """Settings that decide a pipeline's weights, together with data and code."""

    dataset: str
    family: str
    model: ModelSettings
    training: TrainingSettings

    def resolved(self) -> dict[str, Any]:
        """Return every setting, defaults filled in, as JSON values.

        The number of processes decides nothing. It is 1 here for all, so that keys of older versions stay.
        """
        return {
            "dataset": self.dataset,
            "family": self.family,
            "model": self.model.model_dump(mode="json"),
            "training": {**self.training.model_dump(mode="json", exclude={"nodes"}), "devices": 1},
        }


def without_seed(resolved: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved recipe without its seed: equal for trainings that differ only by chance."""
    return {**resolved, "training": {key: value for key, value in resolved.get("training", {}).items() if key != "seed"}}
