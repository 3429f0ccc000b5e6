"""What a model costs: seconds to draw and to score examples, parameters, and how both grow with the data.

    draw     samples, their noise included, in blocks of context.BLOCK
    score    one pass over examples: an exact density for one dequantisation, or a bound for one latent sample
             (IWAE-K takes K times as long); nothing where the family has neither

A value is the median over repeats of the wall clock, after two blocks that do not count. The repeats of all models are
interleaved, so that what else this machine does falls on all of them. The interval is that of the median by its order
statistics, which assumes nothing of how times are spread (David & Nagaraja, Order statistics, 2003, section 7.1): from
six repeats on it is of at least 95%; with fewer it is from the least to the greatest, and the fingerprint says so.

How a family grows is told by models built anew, untrained, from the recipe: time does not depend on what was learnt.

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

EXAMPLES = 1000  # that are drawn and scored
REPEATS, REPEATS_SCALED = 15, 5  # of a model as it is registered; of each step of its growth
SCALES = (1, 2, 4)  # an image's sides, a table's columns
COUNTS = (100, 1_000, 10_000)  # samples
MAX_SECONDS = 30.0  # seconds that one repeat may take by the first block; what is longer is not measured
INITIAL = 256  # random examples that a model built anew starts from

Run = Callable[[int], None]  # on so many examples


@dataclass(frozen=True)
class Task:
    """Something whose time is taken."""

    run: Run
    examples: int
    threads: int  # CPU threads that it may use
    what: dict[str, Any]  # of its fingerprint


@dataclass(frozen=True)
class ScaledModel:
    """A model of larger examples, built anew; or why the family cannot have it."""

    spec: DataSpec
    model: Model | None
    unavailable_reason: str = ""

    @property
    def parameters(self) -> int | None:
        return parameters(self.model) if self.model is not None else None


def parameters(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def sampling_task(model: Model, count: int, threads: int) -> Task | None:
    """Draws ``count`` samples; None where the model cannot."""
    if not isinstance(model, CanSample):
        return None

    def run(count: int) -> None:
        for number, size in _blocks(count):
            model.sample(standard_normal((size, model.sample_noise), 0, number))

    return Task(run, count, threads, {"what": "draw"})


def scoring_task(model: Model, spec: DataSpec, count: int, threads: int) -> Task | None:
    """Scores ``count`` examples once; None where the model has neither a density nor a bound."""
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
    """The number and the size of each block."""
    return ((number, min(BLOCK, count - at)) for number, at in enumerate(range(0, count, BLOCK)))


def examples(spec: DataSpec, count: int) -> Tensor:
    """Random examples of the kind, none of them missing anything: uint8 images or float32 rows."""
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
    """The same kind of data with ``times`` as long sides of an image, or as many columns of a table."""
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
    """The family's model of larger examples with the same settings, untrained, started from random examples."""
    larger = scaled_spec(spec, times)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = family(name).build(settings, larger)
        with torch.no_grad():
            y_N = torch.arange(INITIAL) % spec.classes if spec.classes else None
            model.initialise(examples(larger, INITIAL), y_N)
    except RemintError as error:
        return ScaledModel(larger, None, str(error))
    return ScaledModel(larger, model.eval().requires_grad_(False))


def measure_seconds(tasks: Mapping[str, Task], repeats: int, say: Callable[[str], None]) -> dict[str, MetricValue | None]:
    """The seconds of each task by its name; None for one that would take longer than LONGEST. ``say`` hears how far it is."""
    machines = {threads: fingerprint(torch.device("cpu"), threads, 1) for threads in {task.threads for task in tasks.values()}}
    taken: dict[str, list[float]] = {name: [] for name, task in tasks.items() if _estimated_seconds(task) <= MAX_SECONDS}
    for repeat in range(repeats):
        if repeat % 5 == 0:
            say(f"repeat {repeat + 1} of {repeats}")
        for name, seconds in taken.items():
            seconds.append(_seconds(tasks[name], tasks[name].examples))
    return {
        name: _median(name, taken[name], task, machines[task.threads]) if name in taken else None for name, task in tasks.items()
    }


def _estimated_seconds(task: Task) -> float:
    """Seconds of the whole by its first block, which is done twice: the first time it is slower."""
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
    # The k-th least and greatest have the median between them unless fewer than k values fall on one side of it.
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
