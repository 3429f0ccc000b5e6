"""Trainings of the same kind in other libraries (extra ``bench``), each in the way that the library shows.

Lightning trains our network, so that its share is of our bare loop. pythae, zuko and normflows train a network of their own,
and each is compared with a bare loop of that network. Their data are tensors in memory, which is the fastest that they read.

Shapes: B batch, X the axes of one example, D pixels.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.loops import BATCH, LEARNING_RATE, Timing, Training, bare_steps, build, images, steps_of, timed
from remint.models.contract import Batch

Entrant = Callable[[], Timing]
SIZES = {"latent": 16, "hidden": 256}  # of the VAE's two hidden layers, as in ours
FLOW = {"transforms": 6, "hidden": 128, "bins": 6}  # of a spline flow, as in ours


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@contextmanager
def quietly() -> Iterator[None]:
    """Keep a library's progress bars, logs and warnings out of the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def batches(x_NX: Tensor, batch: int, steps: int) -> Iterator[Tensor]:
    """Yield the batches of a shuffling DataLoader, epoch after epoch."""
    loader = DataLoader(TensorDataset(x_NX), batch_size=batch, shuffle=True, drop_last=True)

    def forever() -> Iterator[Tensor]:
        while True:
            for (x_BX,) in loader:
                yield x_BX

    return islice(forever(), steps)


def unit_images(side: int) -> Tensor:
    """Return the training split as numbers in 0 .. 1, with uniform noise within a level."""
    x_NX, _, spec = images(side)
    return (x_NX.float() + torch.rand(x_NX.shape)) / spec.levels


def lightning(name: str, side: int) -> Timing:
    """Time Lightning's Trainer around our phases, with a CSV log of the losses and a checkpoint every 250 steps.

    With several phases optimization is manual, as Lightning shows it for a GAN.
    """
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    training, steps = build(name, side), steps_of(name, side)
    module = lightning_module(training, steps)
    loader = DataLoader(TensorDataset(training.x_NX), batch_size=BATCH[side], shuffle=True, drop_last=True)
    with tempfile.TemporaryDirectory() as folder, quietly():
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=steps * len(training.phases),  # it counts the steps of every optimizer
            max_epochs=-1,
            logger=CSVLogger(folder),
            callbacks=[ModelCheckpoint(folder, every_n_train_steps=250)],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        timing = timed(steps, lambda: trainer.fit(module, loader))
    if trainer.global_step != steps * len(training.phases):
        raise SystemExit(f"lightning made {trainer.global_step} steps of the optimizers, not {steps * len(training.phases)}")
    return timing


def lightning_module(training: Training, steps: int) -> Any:
    """Return our phases as a LightningModule."""
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.phases = nn.ModuleList(training.phases)
            self.automatic_optimization = len(training.phases) == 1
            self.made = 0

        def configure_optimizers(self) -> Any:
            return [torch.optim.AdamW(p.parameters(), lr=LEARNING_RATE, betas=p.betas, fused=True) for p in training.phases]

        def loss_of(self, phase: Any, x_BX: Tensor) -> Tensor:
            loss: Tensor = phase(Batch(x_BX, torch.randn(len(x_BX), phase.noise_size), self.made / steps, self.made))
            self.log(f"{phase.name}_loss", loss)
            return loss

        def training_step(self, batch: list[Tensor], _: int) -> Tensor | None:
            x_BX = batch[0].float()
            if self.automatic_optimization:
                loss = self.loss_of(self.phases[0], x_BX)
                self.made += 1
                return loss
            for phase, optimizer in zip(self.phases, self.optimizers(), strict=True):
                self.toggle_optimizer(optimizer)
                loss = self.loss_of(phase, x_BX)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                self.untoggle_optimizer(optimizer)
            self.made += 1
            return None

    return Module()


def pythae(side: int) -> tuple[Entrant, Entrant]:
    """Return the bare loop of pythae's VAE, and its BaseTrainer."""
    with quietly():
        from pythae.data.datasets import BaseDataset
        from pythae.trainers import BaseTrainer, BaseTrainerConfig

    x_NX, steps, batch = unit_images(side), steps_of("pythae", side), BATCH[side]
    epochs = max(1, round(steps * batch / len(x_NX)))

    def bare() -> Timing:
        model = pythae_vae(tuple(x_NX.shape[1:]))
        loss_of = lambda x_BX, _: model({"data": x_BX}).loss  # noqa: E731
        return timed(steps, lambda: bare_steps(x_NX, batch, steps, [loss_of], [list(model.parameters())]))

    def peer() -> Timing:
        dataset = BaseDataset(x_NX, torch.zeros(len(x_NX)))
        with tempfile.TemporaryDirectory() as folder, quietly():
            settings = BaseTrainerConfig(
                output_dir=folder, num_epochs=epochs, per_device_train_batch_size=batch, learning_rate=LEARNING_RATE
            )
            trainer = BaseTrainer(pythae_vae(tuple(x_NX.shape[1:])), dataset, training_config=settings)
            return timed(epochs * len(trainer.train_loader), trainer.train)

    return bare, peer


def pythae_vae(shape: tuple[int, ...]) -> Any:
    """Return pythae's VAE, whose encoder and decoder have two hidden layers as ours have."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    latent, hidden, dims = SIZES["latent"], SIZES["hidden"], int(np.prod(shape))

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(dims, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
            self.mean, self.log_var = nn.Linear(hidden, latent), nn.Linear(hidden, latent)

        def forward(self, x_BX: Tensor) -> Any:
            h_BH = self.net(x_BX.flatten(1))
            return ModelOutput(embedding=self.mean(h_BH), log_covariance=self.log_var(h_BH))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            layers = [nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, dims)]
            self.net = nn.Sequential(*layers, nn.Sigmoid())

        def forward(self, z_BD: Tensor) -> Any:
            return ModelOutput(reconstruction=self.net(z_BD).view(len(z_BD), *shape))

    return VAE(VAEConfig(input_dim=shape, latent_dim=latent), encoder=Encoder(), decoder=Decoder())


def zuko(side: int) -> tuple[Entrant, Entrant]:
    """Return the bare loop of zuko's spline flow, and the loop of zuko's tutorial "Train from data"."""
    from zuko.flows import NSF

    x_ND, steps, batch = unit_images(side).flatten(1), steps_of("zuko", side), BATCH[side]

    def flow() -> Any:
        return NSF(x_ND.shape[1], bins=FLOW["bins"], transforms=FLOW["transforms"], hidden_features=[FLOW["hidden"]] * 2)

    def bare() -> Timing:
        model = flow()
        loss_of = lambda x_BD, _: -model().log_prob(x_BD).mean()  # noqa: E731
        return timed(steps, lambda: bare_steps(x_ND, batch, steps, [loss_of], [list(model.parameters())]))

    def peer() -> Timing:
        model = flow()
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

        def train() -> None:
            losses = []
            for x_BD in batches(x_ND, batch, steps):
                loss = -model().log_prob(x_BD).mean()
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.detach())

        return timed(steps, train)

    return bare, peer


def normflows(side: int) -> tuple[Entrant, Entrant]:
    """Return the bare loop of a flow of normflows, and the loop of its examples: a spline flow at 8 px, Glow at 32 px."""
    x_NX, steps, batch = unit_images(side), steps_of("normflows", side), BATCH[side]
    x_NX = x_NX.flatten(1) if side == 8 else x_NX

    def flow() -> Any:
        return normflows_spline(x_NX.shape[1]) if side == 8 else normflows_glow(side)

    def bare() -> Timing:
        model = flow()
        loss_of = lambda x_BX, _: model.forward_kld(x_BX)  # noqa: E731
        return timed(steps, lambda: bare_steps(x_NX, batch, steps, [loss_of], [list(model.parameters())]))

    def peer() -> Timing:
        model = flow()
        optimizer = torch.optim.Adamax(model.parameters(), lr=LEARNING_RATE, weight_decay=1e-5)

        def train() -> None:
            history = np.array([])
            for x_BX in batches(x_NX, batch, steps):
                optimizer.zero_grad()
                loss = model.forward_kld(x_BX)
                if ~(torch.isnan(loss) | torch.isinf(loss)):
                    loss.backward()
                    optimizer.step()
                history = np.append(history, loss.detach().to("cpu").numpy())

        return timed(steps, train)

    return bare, peer


def normflows_spline(dims: int) -> Any:
    import normflows as nf

    layers: list[Any] = []
    for _ in range(FLOW["transforms"]):
        layers.append(nf.flows.CoupledRationalQuadraticSpline(dims, 2, FLOW["hidden"], num_bins=FLOW["bins"]))
        layers.append(nf.flows.LULinearPermute(dims))
    return nf.NormalizingFlow(nf.distributions.DiagGaussian(dims, trainable=False), layers)


def normflows_glow(side: int) -> Any:
    """Return Glow as in the example, with two scales of two blocks of eight channels."""
    import normflows as nf

    scales, blocks, hidden = 2, 2, 8
    bases, flows, merges = [], [], []
    for i in range(scales):
        level = [nf.flows.GlowBlock(2 ** (scales + 1 - i), hidden, split_mode="channel", scale=True) for _ in range(blocks)]
        flows.append([*level, nf.flows.Squeeze()])
        if i > 0:
            merges.append(nf.flows.Merge())
            shape = (2 ** (scales - i), side // 2 ** (scales - i), side // 2 ** (scales - i))
        else:
            shape = (2 ** (scales + 1), side // 2**scales, side // 2**scales)
        bases.append(nf.distributions.DiagGaussian(shape))
    return nf.MultiscaleFlow(bases, flows, merges, class_cond=False)
