"""Roots: the versions that must not be lost.

    alias       has an alias in MLflow
    champion    is the ledger's champion, or one of the champions before it that a rollback can restore (a window)
    approval    awaits approval, and the champion has not changed since the request
    shadow      awaits the answers to copies of requests, in the same way
    keep        has the tag remint.keep in MLflow; its value gives the reason
    job         is the champion that a running job compares its work with

`remint gc` removes nothing that a root needs, and `remint audit` checks every byte of the roots.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from remint.errors import NotFoundError
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores.ledger.chain import CHAMPION_ACTIONS, VETOES, Action, awaiting
from remint.stores.ledger.collected import CollectedVersions
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import ModelVersion, removal
from remint.stores.open import open_ledger, open_tracking

WINDOW = 3  # champions that are kept for a rollback, the present one included


@dataclass(frozen=True)
class Root:
    """A version that must not be lost, and the reasons in one clause."""

    version: ModelVersion
    why: str


def roots(home: Home, window: int = WINDOW) -> list[Root]:
    """Return the roots that MLflow holds, by model and number. ``root_reasons`` also returns roots that MLflow has lost."""
    store = open_tracking(home)
    found = []
    for ref, why in root_reasons(home, window).items():
        with suppress(NotFoundError):  # the audit names it (registry.lost_roots)
            found.append(Root(store.version(ref), why))
    return found


def root_reasons(home: Home, window: int = WINDOW) -> dict[str, str]:
    """Return each root as NAME/7 with its reasons, without listing all versions of a model.

    Arguments: ``window`` the number of champions of each model that are kept for a rollback, the present one included (1 or
    more).
    """
    store, book = open_tracking(home), open_ledger(home)
    reasons: dict[tuple[str, int], list[str]] = {}

    def note(model: str, version: int, why: str) -> None:
        reasons.setdefault((model, version), []).append(why)

    for model in store.names():
        for alias, version in sorted(store.aliases(model).items()):
            note(model, version, f"@{alias}")
    pending: tuple[Action, ...] = ("awaiting_approval", "awaiting_shadow")
    by_model: dict[str, list[LedgerRow]] = {}
    for row in book.rows():
        by_model.setdefault(row.model, []).append(row)
    for model, rows in by_model.items():
        gone = CollectedVersions(home.ledger_url).versions(model)
        for place, version in enumerate(champions(rows, gone)[:window]):
            note(model, version, "champion of the ledger" if not place else f"former champion {place}, kept for a rollback")
        for action in pending:
            for row in awaiting(rows, action):
                note(model, row.version, action.replace("awaiting", "awaits").replace("_", " "))
    for kept in removal.kept(store):
        note(kept.name, kept.version, f"kept by tag: {kept.tags.keep}")
    for job in jobs.alive(home):
        rows = by_model.get(str(job.facts.get("pipeline")), [])
        if rows and rows[-1].champion_after is not None:
            note(rows[-1].model, rows[-1].champion_after, f"running job {job.id} compares its model with it")
    return {f"{model}/{version}": ", ".join(reasons[model, version]) for model, version in sorted(reasons)}


def champions(rows: list[LedgerRow], gone: set[int] | frozenset[int] = frozenset()) -> list[int]:
    """Return from one model's rows the champion and those before it, newest first, each once.

    Leaves out versions that a person vetoed after they were promoted, and those that were collected (``gone``).
    """
    stood = [row.champion_after for row in reversed(rows) if row.action in CHAMPION_ACTIONS]
    present = rows[-1].champion_after if rows else None
    return list(
        dict.fromkeys(
            version
            for version in stood
            if version is not None and (version == present or not (version in gone or _vetoed(rows, version)))
        )
    )


def _vetoed(rows: list[LedgerRow], version: int) -> bool:
    decided = [row.action for row in rows if row.version == version and row.action in {*VETOES, "promoted"}]
    return bool(decided) and decided[-1] in VETOES
