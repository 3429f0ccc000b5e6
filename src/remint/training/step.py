"""One step of a training: every phase on one batch, then the average. A step that is not finite changes nothing.

The host does not wait for the device within a step. Steps are made in blocks. A flag on the device, ``broken``, is 1 from the
first phase of the block whose loss or gradient is not finite, and keeps the optimizers from moving. The host reads it at the end
of the block. If it is 1, the block is undone and its steps are made again one by one, ``careful``: each that breaks is found,
described and undone. So the result is that of a training that looks at every step.

Shapes: N examples, B this process's part of the batch, X the axes of one example, P phases.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from remint.data.sampler import batch_indices
from remint.distributed.world import World
from remint.errors import StepError
from remint.models.contract import Batch, Phase
from remint.models.layers import Dropout
from remint.settings.recipe import TrainingSettings
from remint.training.feed import Feed
from remint.training.randomness import LAYERS, batch_noise, dropout_key, seed_layers
from remint.training.state import TrainingState

MAX_NAMED = 10  # maximum number of nonfinite parameters per step, and of such steps, in the record of divergence.py


class StepRunner:
    """Runner of the step that follows ``state.step``. The loop advances ``state.step``."""

    def __init__(
        self,
        state: TrainingState,
        runners: Sequence[nn.Module],  # the phases, wrapped where N ranks average their gradients
        feed: Feed,
        settings: TrainingSettings,
        world: World,
    ) -> None:
        self.state, self.runners, self.feed, self.settings, self.world = state, runners, feed, settings, world
        self.rows = world.rows(settings.batch_size)
        self.dtype = torch.float64 if settings.precision == "fp64" else torch.float32
        half_life = settings.ema_images
        self.ema_decay = settings.ema if half_life is None else 0.5 ** (settings.batch_size / half_life)
        self.snapshot = Snapshot(state)
        self.dropout_keys = self._dropout_keys()
        self.parameters = [list(phase.parameters()) for phase in state.phases]  # walking a module takes a tenth of a small step
        self.broken = torch.zeros((), device=world.device)
        if len(self.parameters) == 1:
            _require_gradients(self.parameters[0], enabled=True)  # there is no other phase to keep them from

    def _dropout_keys(self) -> list[Tensor]:
        """Return a new key for each dropout layer of the model and the phases. A step fills in its numbers."""
        parts = (part for module in (self.state.model, *self.state.phases) for part in module.modules())
        found = list(dict.fromkeys(part for part in parts if isinstance(part, Dropout)))
        keys = [torch.zeros((), dtype=torch.int32, device=self.world.device) for _ in found]
        for layer, key in zip(found, keys, strict=True):
            layer.key, layer.first = key, self.rows.start
        return keys

    def begin_block(self) -> None:
        """Begin a block of steps, or one careful step."""
        self.snapshot.save()
        self.broken.zero_()

    def time_steps(self, count: int) -> float:
        """Make the first ``count`` steps, in a resumed training too, and undo them. Return the seconds of one."""
        self.begin_block()
        began = time.monotonic()
        for step in range(count):
            self.state.step = min(step, self.settings.steps - 1)
            self.run(careful=False)
        bool(self.broken)  # waits for the device
        seconds = time.monotonic() - began
        self.snapshot.restore()
        return seconds / count

    def undo_block(self) -> bool:
        """Return whether a step since ``begin_block`` broke on any rank, and if so undo them all. This waits for the device."""
        self.snapshot.check()
        if not self.world.any(bool(self.broken)):
            return False
        self.snapshot.restore()
        return True

    def run(self, *, careful: bool) -> dict[str, Any] | None:
        """Run one step: every phase on one batch, then the average. ``careful``: wait for the device after each phase.

        Returns None; or, if careful, and the loss or gradient of a phase is not finite, its description. The step is then
        undone by the caller.
        """
        settings, step = self.settings, self.state.step
        seed_layers(settings.seed, LAYERS, step, self.world.rank)
        indices = batch_indices(len(self.feed), settings.batch_size, settings.seed, step)
        x_BX, y_B = self.feed.take(step, indices[self.rows])
        x_BX = x_BX.to(self.dtype)
        learning_rate = self._learning_rate()
        losses = []
        for index, phase in enumerate(self.state.phases):
            batch = Batch(x_BX, self._noise(index, phase), step / settings.steps, step, y_B)
            phase.schedule(batch.progress)
            for layer, key in enumerate(self.dropout_keys):
                key.fill_(dropout_key(settings.seed, step, index, layer))
            with _gradients_enabled(self.parameters[index], toggle=len(self.parameters) > 1):
                loss, norm = _compute_gradient(self.runners[index], self.parameters[index], batch, settings.precision)
                self.broken.logical_or_(~norm.isfinite())
                if careful and self.world.any(bool(self.broken)):
                    return describe_nonfinite(phase, loss, norm, step, indices, self.world)
                if settings.gradient_clip:
                    nn.utils.clip_grads_with_norm_(self.parameters[index], settings.gradient_clip, norm)
                self.state.optimizers[index].step(learning_rate * phase.learning_rate, phase.betas, self.broken)
            losses.append(loss)
        self.state.count_step(torch.stack(losses))
        self.state.average.update(self.ema_decay, step)
        return None

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
) -> tuple[Tensor, Tensor]:
    """Set the gradients of a phase's parameters; return its loss and their 2-norm, each of shape ().

    The norm is not finite where the gradient of any rank or this rank's loss is not.
    """
    with torch.autocast(batch.x_BX.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss: Tensor = runner(batch)
    if loss.dim():
        raise StepError(
            f"the loss of a phase has shape {tuple(loss.shape)}, not (): its forward must return a mean over the batch"
        )
    zero = loss.detach() * 0.0  # NaN if the loss is not finite
    loss.backward(zero + 1.0)  # type: ignore[no-untyped-call]
    # A loss of masked terms may be NaN and have a gradient of 0.
    return loss.detach(), _norm([p.grad for p in parameters if p.grad is not None]) + zero


def _norm(gradients: list[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, of shape (): that of nn.utils.get_total_norm, which takes a third longer.

    They are on one device and of one type, so that they need not be sorted by it.
    """
    if not gradients:
        return torch.zeros(())
    total: Tensor = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(gradients))))
    return total


class Snapshot:
    """Copy of everything that steps change: weights, moments, average, buffers, metrics, sums of losses and counts."""

    def __init__(self, state: TrainingState) -> None:
        every = {id(part): part for module in (state.model, *state.phases, state.average.model) for part in module.modules()}
        self._buffers = [(part._buffers, name) for part in every.values() for name, _ in part.named_buffers(recurse=False)]
        self._registries = [(part._buffers, set(part._buffers)) for part in every.values()]
        self._state = state
        self._saved: list[tuple[Tensor | None, Tensor | None]] = []  # each buffer and its copy
        optimizers = (tensor for optimizer in state.optimizers for tensor in (*optimizer.parameters, *optimizer.tensors.values()))
        self._live = [*state.average.model.parameters(), state.losses_P, *optimizers]
        self._copies = [torch.empty_like(tensor) for tensor in self._live]
        self._counts = (0, 0, 0)
        self._metrics: list[dict[str, Tensor]] = []

    @torch.no_grad()
    def save(self) -> None:
        """Save the current values. Every buffer is copied, because a write through ``.data`` leaves no trace."""
        state = self._state
        self._counts = (state.step, state.steps_in_interval, state.consecutive_skips)
        self._metrics = [dict(phase.metrics) for phase in state.phases]
        found = (buffers[name] for buffers, name in self._buffers)
        self._saved = [(tensor, None if tensor is None else tensor.clone()) for tensor in found]
        torch._foreach_copy_(self._copies, self._live)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the saved values. A buffer that a phase replaced by another tensor is the earlier tensor again."""
        state = self._state
        state.step, state.steps_in_interval, state.consecutive_skips = self._counts
        for (buffers, name), (tensor, copy) in zip(self._buffers, self._saved, strict=True):
            buffers[name] = tensor
            if tensor is not None and copy is not None and not torch.equal(tensor, copy):  # an expanded one cannot be written to
                tensor.copy_(copy)
        torch._foreach_copy_(self._live, self._copies)
        for phase, metrics in zip(state.phases, self._metrics, strict=True):
            phase.metrics.clear()
            phase.metrics.update(metrics)

    def check(self) -> None:
        """Raise StepError if a step has registered a buffer: it would be in no average, and a broken step would leave it."""
        for buffers, known in self._registries:
            if len(buffers) > len(known):
                name = next(name for name in buffers if name not in known)
                raise StepError(f"buffer {name} was registered by the forward of a phase: register it in __init__")


def describe_nonfinite(
    phase: Phase, loss: Tensor, norm: Tensor, step: int, indices: Iterable[int], world: World
) -> dict[str, Any]:
    """Describe a phase whose loss or gradient is not finite, in JSON types. Every rank calls it.

    ``indices``: the global batch, as places in the training split.
    """
    every = world.gather(loss).flatten().tolist()
    finite = all(map(math.isfinite, every))
    weights = {name: parameter.detach() for name, parameter in phase.named_parameters()}
    gradients = {name: parameter.grad for name, parameter in phase.named_parameters() if parameter.grad is not None}
    parts = gradients if finite else weights
    names = [name for name, weight in weights.items() if not weight.isfinite().all()]
    if finite:  # else the nonfinite loss has made all gradients nonfinite
        names += [name for name, gradient in gradients.items() if name not in names and not gradient.isfinite().all()]
    # All parts may be finite while the norm or the loss overflows: then name the part with the greatest entry.
    names = names or [max(parts, key=lambda name: float(parts[name].abs().max()))]
    if finite:
        why = f"the gradient of {names[0]} in phase {phase.name} is not finite"
    else:
        why = f"the loss of phase {phase.name} is {next(value for value in every if not math.isfinite(value))}"
    return {
        "step": step,
        "phase": phase.name,
        "why": why,
        "losses": [str(value) for value in every],  # of each rank; JSON has no NaN
        "gradient_norm": str(float(norm)),
        "parameters": names[:MAX_NAMED],  # not finite, else the one with the greatest entry
        "examples": [int(index) for index in indices],
    }


def rollback_factor(state: TrainingState, settings: TrainingSettings) -> float:
    """Return the factor of the learning rate after the rollbacks so far."""
    return settings.rollback_learning_rate ** len(state.rollbacks)


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
