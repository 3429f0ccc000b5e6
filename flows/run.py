"""Retrain several pipelines now, as many at a time as the machine's cores allow."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import cast

from flows.retrain import retrain
from flows.server import process_tags
from remint.errors import Interrupted, RemintError
from remint.promotion.outcome import Outcome
from remint.runtime import processes
from remint.settings.params import Params

Result = Outcome | RemintError


def retrain_pipelines(params: Params, pipelines: list[str], overrides: list[str], reason: str) -> dict[str, Result]:
    """Return the outcome of each pipeline, or the error that ended it. A failure does not stop the other pipelines.

    Ctrl-C and SIGTERM stop the children, which write a checkpoint first, and end each flow with that reason.
    """
    demand = max(params.pipelines[name].training.threads * params.pipelines[name].training.devices for name in pipelines)
    width = max(1, min(len(pipelines), (os.cpu_count() or 1) // demand))
    call = cast("Callable[..., Outcome]", retrain)  # a flow that ends in a state gives that state's result

    def retrain_one(name: str) -> Outcome:
        with process_tags.tagged():
            return call(name, overrides=overrides, reason=reason)

    with processes.interruptible(), ThreadPoolExecutor(width, thread_name_prefix="retrain") as pool:
        futures: dict[str, Future[Outcome]] = {name: pool.submit(retrain_one, name) for name in pipelines}
        wait(futures.values())
    return {name: _result(future) for name, future in futures.items()}


def _result(future: Future[Outcome]) -> Result:
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, RemintError):
        return error
    if processes.stopping.is_set():
        return Interrupted(f"interrupted: {error}")
    raise error
