"""What gc would remove, and its removal: nothing that a root needs, nothing younger than it was told, nothing in use.

Order of removal: MLflow's versions, runs and files, then what lies in HOME and git, then dvc's objects. A process that is
killed leaves what the next gc finds, and never a version that is there to see and lacks its bytes or its data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from remint.maintenance.gc import data, places
from remint.maintenance.gc.mlflow_inventory import MlflowInventory
from remint.maintenance.gc.reach import GIT, HOME, MLFLOW, Garbage, Node, unreached
from remint.promotion import roots as rooted
from remint.promotion.roots import Root
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores.dvc import collect as sweep
from remint.stores.dvc.collect import Object

DAY = 86400.0  # seconds
OLDER_THAN = 7.0  # days
WHY = {
    "run cache": "it remembers a step whose outputs nothing needs",
    "cache": "no version that stays, commit or file on disk names it",
    "remote": "no version that stays, commit or file on disk names it",
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What nothing reaches, why the rest stays, and what there is to say."""

    home: Home
    window: int  # champions of each model that a roll back can go to
    roots: tuple[Root, ...]
    garbage: tuple[Garbage, ...]
    notes: tuple[str, ...]
    _mlflow: MlflowInventory = field(repr=False)
    _objects: tuple[Object, ...] = field(repr=False)


def plan(home: Home, older_than: float, window: int, say: Say) -> Plan:
    """Looks at every store and changes none.

    Arguments: ``older_than`` days: what is younger stays, with all that it needs; ``window`` champions of each model to which
    a roll back can go. Raises what the stores' doors raise.
    """
    before = time.time() - older_than * DAY if older_than else float("inf")
    running = sorted({str(job.facts.get("pipeline", "")) for job in jobs.alive(home)})
    say("asking MLflow for its versions and runs")
    roots, shelf = rooted.roots(home, window), MlflowInventory.look(home)
    belongs = places.needs(home)

    def needs(node: Node) -> Iterator[Node]:
        return chain(shelf.needs(node), belongs(node))

    fixed: list[Node] = [(MLFLOW, root.version.ref) for root in roots]
    fixed += [(MLFLOW, ref) for ref, version in shelf.versions.items() if version.name in running]
    fixed += places.roots(home)
    things = [*shelf.things(), *places.things(home)]
    if running:
        fixed += [thing.node for thing in things if thing.store == MLFLOW and thing.name not in shelf.versions]
    found, marked = unreached(things, fixed, needs, before)
    say("asking where the files of what is left lie")
    sizes = shelf.bytes_of([thing for thing in found if thing.store == MLFLOW])
    garbage = [Garbage(thing.store, thing.name, sizes.get(thing.name, thing.bytes), thing.why) for thing in found]
    objects: list[Object] = []
    notes: list[str] = []
    if running:
        notes.append(
            f"jobs run ({', '.join(running)}): DVC, copies, caches and refs that they may be using are left alone, and so are "
            "these models and all runs; run remint gc again when they are over"
        )
    else:
        say("asking dvc what it keeps")
        staying = [version for ref, version in shelf.versions.items() if (MLFLOW, ref) in marked]
        refs = {root.version.ref for root in roots}
        objects, notes = data.garbage(
            home, [root.version for root in roots], [version for version in staying if version.ref not in refs], before
        )
        garbage += [Garbage(f"DVC {each.place}", each.name, each.bytes, WHY[each.place]) for each in objects]
    return Plan(home, window, tuple(roots), tuple(garbage), tuple(notes), shelf, tuple(objects))


def apply(plan: Plan, say: Say) -> list[str]:
    """Removes what was planned; what there is to say of it. Raises what the stores' doors raise."""
    say("removing versions, runs and their files from MLflow")
    names = {store: [each.thing for each in plan.garbage if each.store == store] for store in (MLFLOW, HOME, GIT)}
    said = plan._mlflow.remove(set(names[MLFLOW]), plan.window)
    say("removing what lies in REMINT_HOME")
    for name in names[HOME]:
        places.remove(plan.home, name)
    for ref in names[GIT]:
        places.remove_ref(plan.home, ref)
    if plan._objects:
        say("removing objects from dvc's cache and remote")
        sweep.remove(plan.home, plan._objects)
    return said
