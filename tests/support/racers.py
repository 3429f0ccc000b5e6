"""Racing processes, forked from a server process without other threads.

A lock that another thread holds at a fork, such as a mutex of SQLite, stays locked in the child forever. pytest's own process
has such threads, from its workers and from earlier tests.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

context = multiprocessing.get_context("forkserver")
# Modules that each racer would otherwise import itself.
context.set_forkserver_preload(
    [
        *("remint.promotion.decide", "remint.stores.ledger.spreads", "remint.evaluation.evaluate", "mlflow", "pytest"),
        *("psycopg", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite", __name__),
    ]
)
gc.freeze()  # in the server: else the first collection of each racer copies all its pages, a fifth of a second


def _start_server() -> None:
    """Start the server with the path on which it finds this file."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def race_process(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Return a process that is not started yet. ``target``: a module-level function."""
    _start_server()
    return context.Process(target=_race, args=(dict(os.environ), target, *arguments), daemon=True)


def _race(environment: Mapping[str, str], target: Callable[..., None], *arguments: Any) -> None:
    os.environ.clear()  # the server has the environment of the first racer's start
    os.environ.update(environment)
    target(*arguments)


def run_together(target: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """Run ``target(index, *arguments)`` in ``count`` processes that begin together. Return the results."""
    barrier, results = context.Barrier(count), context.Queue()
    racers = [race_process(_put_result, barrier, results, target, index, *arguments) for index in range(count)]
    for each in racers:
        each.start()
    answers = dict(results.get(timeout=120) for _ in racers)
    for each in racers:
        each.join()
    return [answers[index] for index in range(count)]


def _put_result(barrier: Any, results: Any, target: Callable[..., Any], index: int, *arguments: Any) -> None:
    barrier.wait(60)
    results.put((index, target(index, *arguments)))
