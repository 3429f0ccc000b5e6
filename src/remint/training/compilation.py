"""Compilation of the phases by torch.compile: ``training.compile``.

A compiled phase computes the same loss by other kernels, so its weights differ in the last bits. Whether a training was
compiled is in its checkpoints and in its fingerprint; a training that is resumed or rebuilt does as it did before.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence

from remint.distributed.world import World
from remint.errors import ResourceError
from remint.models.contract import Phase
from remint.runtime.events import COMPILE, emit
from remint.settings.recipe import TrainingSettings
from remint.training.state import TrainingState
from remint.training.step import StepRunner

LEAST_SECONDS = 600.0  # of an eager training: ``auto`` compiles no shorter one, since compiling takes minutes
TRIALS = 5  # steps that are timed
COMPILING = 2  # steps in which phases are compiled: the second has another progress, for which torch compiles once more
GAIN = 0.95  # compiled is chosen if a step takes less than this share of an eager one


def choose(runner: StepRunner, state: TrainingState, settings: TrainingSettings, world: World) -> bool:
    """Compile the phases if the settings or the checkpoint say so; with ``auto`` measure. Return whether they are compiled.

    All ranks call it, and rank 0 decides. It changes nothing of ``state``. Emits compiling and compiled.

    Raises ResourceError if there is no compiler, or if it fails.
    """
    wanted = state.compiled if state.compiled is not None else _wanted(settings)
    phases = [phase for phase in state.phases if phase.compilable]
    if wanted is False or not phases:
        return False
    eager = 0.0
    if wanted is None:
        eager = runner.time_steps(TRIALS)
        short = eager * (settings.steps - state.step) < LEAST_SECONDS
        if world.broadcast(int(short or not _compiler())):
            return False
    if not _compiler():
        raise ResourceError(
            f"training.compile: on needs a C++ compiler, and {_name()} is not on PATH: install it (Debian, Ubuntu: apt install "
            "g++), or set compile: off"
        )
    seconds = _compile(phases, runner, world)
    if wanted is None:
        compiled = runner.time_steps(TRIALS)
        if world.broadcast(int(compiled > GAIN * eager)):
            for phase in phases:
                phase._compiled_call_impl = None
            return False
    if world.leads:
        emit("compiled", seconds=seconds)
    return True


def _wanted(settings: TrainingSettings) -> bool | None:
    choice = os.environ.get(COMPILE, settings.compile) if settings.compile == "auto" else settings.compile
    return {"on": True, "off": False}.get(choice)


def _name() -> str:
    return os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")


def _compiler() -> bool:
    return shutil.which(_name()) is not None


def _compile(phases: Sequence[Phase], runner: StepRunner, world: World) -> float:
    """Compile the phases, which happens in their first COMPILING steps. Return the seconds."""
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # in this process: workers could outlive it
    if world.leads:
        emit("compiling")
    began = time.monotonic()
    for phase in phases:
        phase.compile()
    try:
        runner.time_steps(COMPILING)
    except Exception as error:  # dynamo and inductor raise many types, which have no common base
        why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise ResourceError(f"training.compile: torch.compile failed ({why}): set compile: off") from error
    return time.monotonic() - began
