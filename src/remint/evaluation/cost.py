"""Cost of a model: seconds to draw and to score examples, parameters, and the growth of both with the data.

    draw     samples, including their noise, in blocks of context.BLOCK
    score    one pass over examples: an exact density for one dequantisation, or a bound for one latent sample
             (IWAE-K takes K times as long); not measured if the family has neither

A value is the median wall-clock time over the repeats, after two warm-up blocks. The repeats of all models are interleaved:
other load on the machine affects all of them alike. The interval of the median uses order statistics and assumes no
distribution of the times (David & Nagaraja, Order statistics, 2003, section 7.1). With six repeats or more its level is at
least 95%. With fewer it is the range from the least to the greatest time, and the fingerprint records that.

Growth is measured on untrained models that are built from the recipe: the time does not depend on the weights.

Shapes: B block, N noise numbers, K = 1 latent samples, X the axes of one example.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import Tensor

from remint.distributed.machine import fingerprint
from remint.errors import RemintError
from remint.evaluation.context import BLOCK
from remint.models.contract import CanSample, HasElbo, HasLogProb, Model, standard_normal
from remint.models.families import family
from remint.records import DataSpec, MetricValue
from remint.settings.recipe import ModelSettings

EXAMPLES = 1000  # number of drawn and of scored examples
REPEATS, REPEATS_SCALED = 15, 5  # for the registered model; for each scaled one
SCALES = (1, 2, 4)  # factors of an image's sides, or of a table's columns
COUNTS = (100, 1_000, 10_000)  # samples
MAX_SECONDS = 30.0  # seconds: limit of one repeat, estimated from its first block; slower tasks are not measured
INITIAL_EXAMPLES = 256  # random examples that initialise an untrained model

Run = Callable[[int], None]  # takes the number of examples


@dataclass(frozen=True)
class Task:
    """A timed task."""

    run: Run
    examples: int
    threads: int  # CPU threads that it may use
    what: dict[str, Any]  # its entries in the fingerprint


@dataclass(frozen=True)
class ScaledModel:
    """An untrained model of larger examples, or the reason why the family cannot build it."""

    spec: DataSpec
    model: Model | None
    unavailable_reason: str = ""

    @property
    def parameters(self) -> int | None:
        return parameters(self.model) if self.model is not None else None


def parameters(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def sampling_task(model: Model, count: int, threads: int) -> Task | None:
    """Return the task that draws ``count`` samples, or None if the model cannot sample."""
    if not isinstance(model, CanSample):
        return None

    def run(count: int) -> None:
        for number, size in _blocks(count):
            model.sample(standard_normal((size, model.sample_noise), 0, number))

    return Task(run, count, threads, {"what": "draw"})


def scoring_task(model: Model, spec: DataSpec, count: int, threads: int) -> Task | None:
    """Return the task that scores ``count`` examples once, or None if the model has neither a density nor a bound."""
    x_NX = examples(spec, count)
    y_N = torch.arange(count) % max(spec.classes, 1) if model.conditional else None
    run: Run
    if isinstance(model, HasLogProb):
        density: HasLogProb = model

        def run(count: int) -> None:
            for number, size in _blocks(count):
                chosen = slice(number * BLOCK, number * BLOCK + size)
                noise_BN = standard_normal((size, density.density_noise), 0, number)
                density.log_prob(x_NX[chosen], noise_BN, None if y_N is None else y_N[chosen])

        how = "log_prob, one dequantisation"
    elif isinstance(model, HasElbo):
        bound: HasElbo = model

        def run(count: int) -> None:
            for number, size in _blocks(count):
                chosen = slice(number * BLOCK, number * BLOCK + size)
                noise_KBN = standard_normal((1, size, bound.latent_noise), 0, number)
                bound.elbo(x_NX[chosen], noise_KBN, None if y_N is None else y_N[chosen])

        how = "elbo, one latent sample"
    else:
        return None
    return Task(run, count, threads, {"what": "score", "pass": how})


def _blocks(count: int) -> Iterator[tuple[int, int]]:
    """Yield the number and the size of each block."""
    return ((number, min(BLOCK, count - at)) for number, at in enumerate(range(0, count, BLOCK)))


def examples(spec: DataSpec, count: int) -> Tensor:
    """Return random examples of ``spec`` without missing values: uint8 images or float32 rows."""
    generator = torch.Generator().manual_seed(0)
    if not spec.is_table:
        return torch.randint(spec.levels, (count, *spec.shape), generator=generator).to(torch.uint8)
    columns = [
        torch.randint(len(column.categories), (count,), generator=generator).float()
        if column.categories
        else torch.randn(count, generator=generator)
        for column in spec.columns
    ]
    return torch.stack(columns, dim=1)


def scaled_spec(spec: DataSpec, times: int) -> DataSpec:
    """Return ``spec`` with image sides ``times`` as long, or with ``times`` as many table columns."""
    if not spec.is_table:
        c, h, w = spec.image
        return spec.model_copy(update={"shape": (c, times * h, times * w)})
    columns = tuple(
        column.model_copy(update={"name": f"{column.name} {copy}" if copy else column.name})
        for copy in range(times)
        for column in spec.columns
    )
    return spec.model_copy(update={"shape": (len(columns),), "columns": columns})


def scaled_model(name: str, settings: ModelSettings, spec: DataSpec, times: int) -> ScaledModel:
    """Build the family's untrained model of larger examples with the same settings, initialised from random examples."""
    larger = scaled_spec(spec, times)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = family(name).build(settings, larger)
        with torch.no_grad():
            y_N = torch.arange(INITIAL_EXAMPLES) % spec.classes if spec.classes else None
            model.initialise(examples(larger, INITIAL_EXAMPLES), y_N)
    except RemintError as error:
        return ScaledModel(larger, None, str(error))
    return ScaledModel(larger, model.eval().requires_grad_(False))


def measure_seconds(tasks: Mapping[str, Task], repeats: int, say: Callable[[str], None]) -> dict[str, MetricValue | None]:
    """Return the seconds of each task by name; None if a repeat would take longer than MAX_SECONDS. ``say`` gets progress."""
    machines = {threads: fingerprint(torch.device("cpu"), threads, 1) for threads in {task.threads for task in tasks.values()}}
    seconds_by_task: dict[str, list[float]] = {
        name: [] for name, task in tasks.items() if _estimated_seconds(task) <= MAX_SECONDS
    }
    for repeat in range(repeats):
        if repeat % 5 == 0:
            say(f"repeat {repeat + 1} of {repeats}")
        for name, seconds in seconds_by_task.items():
            seconds.append(_seconds(tasks[name], tasks[name].examples))
    return {
        name: _median(name, seconds_by_task[name], task, machines[task.threads]) if name in seconds_by_task else None
        for name, task in tasks.items()
    }


def _estimated_seconds(task: Task) -> float:
    """Estimate the seconds of a task from its first block. The block runs twice, because the first run is slower."""
    first = min(task.examples, BLOCK)
    _seconds(task, first)
    return _seconds(task, first) * task.examples / first


def _seconds(task: Task, count: int) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(task.threads)
    try:
        with torch.inference_mode():
            began = time.perf_counter()
            task.run(count)
            return time.perf_counter() - began
    finally:
        torch.set_num_threads(before)


def _median(name: str, seconds: list[float], task: Task, machine: dict[str, Any]) -> MetricValue:
    ordered, count = sorted(seconds), len(seconds)
    # The median lies between the k-th least and the k-th greatest value, unless fewer than k values are on one side of it.
    k = max(1, int(binom.ppf(0.025, count, 0.5)))
    exact = 2.0 * float(binom.cdf(k - 1, count, 0.5)) <= 0.05
    how = "of the median, by order statistics" if exact else "least to greatest"
    return MetricValue(
        name=name,
        value=float(np.median(ordered)),
        low=ordered[k - 1],
        high=ordered[count - k],
        n=count,
        seed=0,
        unit="s",
        fingerprint={
            **task.what,
            "examples": task.examples,
            "block": BLOCK,
            "repeats": count,
            "interval": how,
            "machine": machine,
        },
    )
