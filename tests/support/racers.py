"""Processes that race each other, forked from one that runs nothing else.

What another thread holds at a fork, a mutex of SQLite's say, its child finds held for ever; and pytest's own process has
threads, of its workers and of what earlier tests used.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from typing import Any

context = multiprocessing.get_context("forkserver")
# What each racer would import by itself.
context.set_forkserver_preload(["remint.promotion.decide", "remint.stores.ledger.spreads", "mlflow", "pytest"])


def racer(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that is to be started. ``target``: a module's own function."""
    return context.Process(target=_race, args=(dict(os.environ), target, *arguments), daemon=True)


def _race(environment: Mapping[str, str], target: Callable[..., None], *arguments: Any) -> None:
    os.environ.clear()  # the server's is of when the first racer was started
    os.environ.update(environment)
    target(*arguments)


def at_once(target: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """What ``target(index, *arguments)`` returns in each of ``count`` processes that begin together."""
    barrier, said = context.Barrier(count), context.Queue()
    racers = [racer(_say, barrier, said, target, index, *arguments) for index in range(count)]
    for each in racers:
        each.start()
    answers = dict(said.get(timeout=120) for _ in racers)
    for each in racers:
        each.join()
    return [answers[index] for index in range(count)]


def _say(barrier: Any, said: Any, target: Callable[..., Any], index: int, *arguments: Any) -> None:
    barrier.wait(60)
    said.put((index, target(index, *arguments)))
