"""One step of a training: every phase on one batch, then the average. A step that is not finite changes nothing.

The host does not wait for the device within a step. A flag on the device, ``broken``, is 1 from the first phase whose loss or
gradient is not finite, and masks all that the step writes. The log of the last steps stays on the device too, until
divergence.py reads it.

Shapes: N examples, B this process's part of the batch, X the axes of one example, P phases, K steps, C columns of the log,
W ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from remint.data.sampler import batch_indices
from remint.distributed.world import World
from remint.models.contract import Batch, Phase
from remint.settings.recipe import TrainingSettings
from remint.training.randomness import LAYERS, batch_noise, seed_layers
from remint.training.state import TrainingState

READ_EVERY = 5  # maximum number of steps between two readings of the log


class StepRunner:
    """Runner of the step that follows ``state.step``. The loop advances ``state.step``."""

    def __init__(
        self,
        state: TrainingState,
        runners: Sequence[nn.Module],  # the phases, wrapped where N ranks average their gradients
        x_NX: Tensor,
        y_N: Tensor | None,
        settings: TrainingSettings,
        world: World,
    ) -> None:
        self.state, self.runners, self.x_NX, self.y_N, self.settings, self.world = state, runners, x_NX, y_N, settings, world
        self.rows = world.rows(settings.batch_size)
        self.dtype = torch.float64 if settings.precision == "fp64" else torch.float32
        half_life = settings.ema_images
        self.ema_decay = settings.ema if half_life is None else 0.5 ** (settings.batch_size / half_life)
        self.snapshot = StepSnapshot([state.model, *state.phases], state.optimizers)
        self.parameters = [list(phase.parameters()) for phase in state.phases]  # walking a module takes a tenth of a small step
        self.log = StepLog(self.parameters, READ_EVERY, world.device)
        self.finite = torch.zeros((), device=world.device)
        if len(self.parameters) == 1:
            _require_gradients(self.parameters[0], enabled=True)  # there is no other phase to keep them from

    def run(self) -> None:
        """Run one step: every phase on one batch, then the average.

        A step in which the loss or gradient of a phase is not finite changes nothing. ``log`` has what happened.
        """
        settings, step = self.settings, self.state.step
        seed_layers(settings.seed, LAYERS, step, self.world.rank)
        x_BX, y_B = self._examples(batch_indices(len(self.x_NX), settings.batch_size, settings.seed, step)[self.rows])
        learning_rate = self._learning_rate()
        self.log.begin(step)
        self.snapshot.save()
        broken, losses = self.finite, []
        for index, phase in enumerate(self.state.phases):
            batch = Batch(x_BX, self._noise(index, phase), step / settings.steps, step, y_B)
            phase.schedule(batch.progress)
            optimizer = self.state.optimizers[index]
            optimizer.param_groups[0].update(lr=learning_rate * phase.learning_rate, betas=phase.betas)
            with _gradients_enabled(self.parameters[index], toggle=len(self.parameters) > 1):
                loss, norm, norms = _compute_gradient(self.runners[index], self.parameters[index], batch, settings.precision)
                self.log.write(index, loss, norm, norms)
                broken = torch.maximum(broken, (~norm.isfinite()).to(broken.dtype))
                _step_optimizer(optimizer, norm, settings.gradient_clip, broken)
            losses.append(loss)
        self.state.losses_P += torch.where(broken.bool(), 0.0, torch.stack(losses).double())
        if self.snapshot.undo_where(broken):
            self.state.average.copy_buffers()
        self.state.average.update(self.ema_decay, step, broken)

    def _examples(self, indices_B: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor | None]:
        """Return these examples of the training split, and their labels."""
        places_B = torch.tensor(indices_B, device=self.world.device)
        x_BX = self.x_NX.index_select(0, places_B).to(self.dtype)
        return x_BX, None if self.y_N is None else self.y_N.index_select(0, places_B)

    def _noise(self, index: int, phase: Phase) -> Tensor:
        """Return this rank's rows of the noise of one phase."""
        seed, step = self.settings.seed, self.state.step
        noise_BN = batch_noise(self.rows, phase.noise_size, seed=seed, step=step, phase=index, device=self.world.device)
        return noise_BN.to(self.dtype)

    def _learning_rate(self) -> float:
        """Return the learning rate of this step; each phase multiplies it by its own factor."""
        settings, state = self.settings, self.state
        factor = learning_rate_factor(state.step, settings.steps, settings.warmup, settings.final_learning_rate)
        return settings.learning_rate * factor * rollback_factor(state, settings)


@contextmanager
def _gradients_enabled(parameters: Sequence[nn.Parameter], *, toggle: bool) -> Iterator[None]:
    """Enable gradients of the phase's parameters, and of no others, while the block runs; then drop the gradients."""
    if toggle:
        _require_gradients(parameters, enabled=True)
    yield
    for parameter in parameters:
        parameter.grad = None
    if toggle:
        _require_gradients(parameters, enabled=False)


def _require_gradients(parameters: Sequence[nn.Parameter], *, enabled: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad = enabled


def _compute_gradient(
    runner: nn.Module, parameters: Sequence[nn.Parameter], batch: Batch, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Set the gradients of a phase's parameters; return its loss and their 2-norm, of shape (), and each parameter's norm.

    The norm is not finite where the gradient is not, and where the loss of any rank is not.
    """
    with torch.autocast(batch.x_BX.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss: Tensor = runner(batch)
    loss.backward(loss.detach() * 0.0 + 1.0)  # type: ignore[no-untyped-call]  # NaN in place of 1 if the loss is not finite
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:  # it took no part in this loss
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    norms = torch.stack(torch._foreach_norm(gradients))
    return loss.detach(), torch.linalg.vector_norm(norms), norms


def _step_optimizer(optimizer: Optimizer, norm: Tensor, clip: float, broken: Tensor) -> None:
    """Step a phase's optimizer, unless ``broken`` is 1, with the gradient scaled down to a norm of ``clip`` if it is greater."""
    (group,) = optimizer.param_groups
    if clip:
        nn.utils.clip_grads_with_norm_(group["params"], clip, norm)
    optimizer.found_inf = broken  # type: ignore[attr-defined]  # read by the fused optimizer on the device
    optimizer.step()


@dataclass
class _Buffer:
    """A buffer, its copy, and the version of the tensor at the time of the copy."""

    buffers: dict[str, Tensor | None]  # of its module
    name: str
    tensor: Tensor
    copy: Tensor
    version: int


class StepSnapshot:
    """Copies from before a step, to undo it: buffers, and the weights and moments of all phases but the last.

    The last phase's optimizer does nothing in a broken step, so there is nothing to undo. Nothing here waits for the device.
    """

    def __init__(self, modules: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> None:
        every = {id(part): part for module in modules for part in module.modules()}
        self._buffers = [
            _Buffer(part._buffers, name, tensor, tensor.clone(), tensor._version)
            for part in every.values()
            for name, tensor in part.named_buffers(recurse=False)
        ]
        self._optimizers = optimizers[:-1]
        self._trained: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in self._optimizers]  # live, copies

    @torch.no_grad()
    def save(self) -> None:
        """Copy weights and moments. Buffers have their copies: ``undo_where`` renews those that changed."""
        for index, optimizer in enumerate(self._optimizers):
            live, (known, copies) = _optimizer_tensors(optimizer), self._trained[index]
            if len(live) != len(known) or any(one is not other for one, other in zip(live, known, strict=True)):
                copies = [torch.empty_like(tensor) for tensor in live]  # a restored optimizer has new moment tensors
                self._trained[index] = (live, copies)
            torch._foreach_copy_(copies, live)

    @torch.no_grad()
    def undo_where(self, broken: Tensor) -> bool:
        """Undo the step if ``broken`` is 1, and not if it is 0. Return whether the step wrote to a buffer."""
        for live, copies in self._trained:  # a step that was made is finite: a weight of 0 or 1 is then exact
            torch._foreach_lerp_(live, copies, [broken.to(tensor.dtype) for tensor in live])
        changed = False
        for buffer in self._buffers:
            tensor, now = buffer.tensor, buffer.buffers[buffer.name]
            assert now is not None
            if now is not tensor or now._version != buffer.version:
                tensor.copy_(torch.where(broken.bool(), buffer.copy, now))
                buffer.copy.copy_(tensor)
                buffer.buffers[buffer.name] = tensor  # a forward may put another tensor in its place
                buffer.version, changed = tensor._version, True
        return changed


def _optimizer_tensors(optimizer: Optimizer) -> list[Tensor]:
    (group,) = optimizer.param_groups
    return [*group["params"], *(tensor for entries in optimizer.state.values() for tensor in entries.values())]


class StepLog:
    """Loss and gradient norms of each phase in the steps since the last reading, kept on the device.

    Columns of a phase: its loss, the norm of its gradient, and the norms of its parameters' gradients.
    """

    def __init__(self, parameters: Sequence[Sequence[nn.Parameter]], every: int, device: torch.device) -> None:
        self.steps: list[int] = []
        *starts, width = np.cumsum([0, *(2 + len(own) for own in parameters)]).tolist()
        self._columns = [slice(start, start + 2 + len(own)) for start, own in zip(starts, parameters, strict=True)]
        self._log_KC = torch.zeros(every, width, dtype=torch.float64, device=device)

    def begin(self, step: int) -> None:
        """Begin the entry of a step. ``step``: steps already done."""
        self.steps.append(step)

    def write(self, phase: int, loss: Tensor, norm: Tensor, norms: Tensor) -> None:
        """Write the numbers of a phase into the step's entry."""
        self._log_KC[len(self.steps) - 1, self._columns[phase]] = torch.cat([loss.reshape(1), norm.reshape(1), norms])

    def read(self, world: World) -> Iterator[tuple[int, int | None, list[float], list[float]]]:
        """Yield of each step: its number, the first phase that broke or None, the losses of all ranks, and the phase's norms.

        The norms are of the whole gradient and of each parameter's. All ranks must call it, and the log is then empty.
        """
        steps, self.steps = self.steps, []
        log_KC = self._log_KC[: len(steps)].cpu()
        norms_KP = torch.stack([log_KC[:, columns.start + 1] for columns in self._columns], dim=1)
        if norms_KP.isfinite().all():  # then so it is on all ranks, for they share the gradient
            yield from ((step, None, [], []) for step in steps)
            return
        log_WKC = world.gather(log_KC)
        for row, step in enumerate(steps):
            broken = [phase for phase, norm in enumerate(norms_KP[row].tolist()) if not math.isfinite(norm)]
            columns = self._columns[broken[0]] if broken else slice(0, 1)
            yield (
                step,
                broken[0] if broken else None,
                log_WKC[:, row, columns.start].tolist(),
                log_KC[row, columns][1:].tolist(),
            )


def rollback_factor(state: TrainingState, settings: TrainingSettings) -> float:
    """Return the factor of the learning rate after the rollbacks so far."""
    return settings.rollback_learning_rate ** len(state.rollbacks)


def steps_between_readings(settings: TrainingSettings) -> int:
    """Return after how many steps the host reads what became of them: a function of the settings only."""
    return max(1, min(READ_EVERY, settings.skip_limit))


def learning_rate_factor(step: int, steps: int, warmup: float, final: float) -> float:
    """Return the factor of the learning rate in the step after ``step`` steps.

    A straight line up to 1 over the first ``warmup`` of the steps, then half a cosine down to ``final`` in the
    last step (Loshchilov & Hutter, SGDR, 2017).
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    share = (step - rising) / max(1, steps - 1 - rising)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))
