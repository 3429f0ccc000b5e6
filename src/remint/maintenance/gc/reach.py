"""Reachability from the roots. Pure: no store, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

MLFLOW, HOME, GIT, LEDGER = "MLflow", "home", "git", "ledger"  # stores; dvc's are "DVC cache", "DVC remote" and "DVC run cache"

Node = tuple[str, str]  # store and name of a thing


@dataclass(frozen=True)
class Thing:
    """Thing in a store that takes space and can be removed alone."""

    store: str
    name: str
    since: float  # Unix time at which it was made or last used
    why: str  # description, and the reason if it is unneeded; a clause
    bytes: int = 0

    @property
    def node(self) -> Node:
        return (self.store, self.name)


@dataclass(frozen=True)
class Garbage:
    """Thing that is not reached from the roots."""

    store: str
    thing: str
    bytes: int
    why: str

    def to_json(self) -> dict[str, Any]:
        return {"store": self.store, "thing": self.thing, "bytes": self.bytes, "why": self.why}


def reached(roots: Iterable[Node], needs: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """Return the roots and everything that they need, directly or indirectly. ``needs`` is called once per reached node."""
    found, open_ = set(), list(roots)
    while open_:
        node = open_.pop()
        if node not in found:
            found.add(node)
            open_.extend(needs(node))
    return found


def unreached(
    things: Iterable[Thing], roots: Iterable[Node], needs: Callable[[Node], Iterable[Node]], before: float
) -> tuple[list[Thing], set[Node]]:
    """Return the things older than ``before`` that neither a root nor a younger thing needs, and all reached nodes."""
    everything = list(things)
    young = [thing.node for thing in everything if thing.since >= before]
    marked = reached([*roots, *young], needs)
    return [thing for thing in everything if thing.node not in marked], marked
