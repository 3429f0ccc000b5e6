"""Plan of a collection, and its removal: nothing that a root needs, nothing younger than the limit, nothing in use.

Order of removal: MLflow's versions, runs and files, then folders of HOME, refs of git and counted answers, then dvc's
objects. A killed process
leaves garbage that the next gc finds, but never a visible version without its bytes or its data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from remint.maintenance.gc import answers, data, places
from remint.maintenance.gc.mlflow_inventory import MlflowInventory
from remint.maintenance.gc.reach import GIT, HOME, LEDGER, MLFLOW, Garbage, Node, unreached
from remint.promotion import roots as rooted
from remint.promotion.roots import Root
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores.dvc import collect as sweep
from remint.stores.dvc.collect import Object

DAY = 86400.0  # seconds
OLDER_THAN = 7.0  # days
WHY = {
    "run cache": "it records a step whose outputs are not needed",
    "cache": "no kept version, commit or file on disk names it",
    "remote": "no kept version, commit or file on disk names it",
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Plan of a collection: the garbage, the roots, and notes for people."""

    home: Home
    window: int  # champions of each model that a rollback can restore
    roots: tuple[Root, ...]
    garbage: tuple[Garbage, ...]
    notes: tuple[str, ...]
    _mlflow: MlflowInventory = field(repr=False)
    _objects: tuple[Object, ...] = field(repr=False)


def plan(home: Home, older_than: float, window: int, say: Say) -> Plan:
    """Make the plan. It reads every store and changes none.

    Arguments: ``older_than`` days: younger things stay, with everything that they need; ``window`` champions of each model
    that a rollback can restore. Raises the errors of the stores.
    """
    before = time.time() - older_than * DAY if older_than else float("inf")
    running = sorted({str(job.facts.get("pipeline", "")) for job in jobs.alive(home)})
    say("asking MLflow for its versions and runs")
    roots, inventory = rooted.roots(home, window), MlflowInventory.read(home)
    evaluations = places.needs(home)

    def needs(node: Node) -> Iterator[Node]:
        return chain(inventory.needs(node), evaluations(node))

    fixed: list[Node] = [(MLFLOW, root.version.ref) for root in roots]
    fixed += [(MLFLOW, ref) for ref, version in inventory.versions.items() if version.name in running]
    fixed += places.roots(home)
    things = [*inventory.things(), *places.things(home), *answers.things(home, inventory.versions)]
    if running:
        fixed += [thing.node for thing in things if thing.store == MLFLOW and thing.name not in inventory.versions]
    found, marked = unreached(things, fixed, needs, before)
    say("measuring the files of unneeded versions and runs")
    sizes = inventory.bytes_of([thing for thing in found if thing.store == MLFLOW])
    garbage = [Garbage(thing.store, thing.name, sizes.get(thing.name, thing.bytes), thing.why) for thing in found]
    objects: list[Object] = []
    notes: list[str] = []
    if running:
        notes.append(
            f"jobs are running ({', '.join(running)}): DVC, copies, caches and refs that they may use are not collected, nor are "
            "the versions of these models and all runs; run remint gc again when the jobs have ended"
        )
    else:
        say("listing dvc's objects")
        staying = [version for ref, version in inventory.versions.items() if (MLFLOW, ref) in marked]
        refs = {root.version.ref for root in roots}
        objects, notes = data.garbage(
            home, [root.version for root in roots], [version for version in staying if version.ref not in refs], before
        )
        garbage += [Garbage(f"DVC {each.place}", each.name, each.bytes, WHY[each.place]) for each in objects]
    return Plan(home, window, tuple(roots), tuple(garbage), tuple(notes), inventory, tuple(objects))


def apply(plan: Plan, say: Say) -> list[str]:
    """Remove the planned garbage. Return notes for people. Raises the errors of the stores."""
    say("removing versions, runs and their files from MLflow")
    names = {store: [each.thing for each in plan.garbage if each.store == store] for store in (MLFLOW, HOME, GIT, LEDGER)}
    notes = plan._mlflow.remove(set(names[MLFLOW]), plan.window)
    say("removing files in REMINT_HOME")
    for name in names[HOME]:
        places.remove(plan.home, name)
    for ref in names[GIT]:
        places.remove_ref(plan.home, ref)
    answers.remove(plan.home, names[LEDGER])
    if plan._objects:
        say("removing objects from dvc's cache and remote")
        sweep.remove(plan.home, plan._objects)
    return notes
