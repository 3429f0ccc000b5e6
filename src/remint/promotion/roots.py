"""What must never be lost: the versions that somebody serves, may go back to, keeps or is judging.

    alias       of any model
    champion    the ledger's, and the last ones before it that a roll back can go to (a window)
    approval    a person is asked whether to promote it, and the champion that was asked about still stands
    keep        the version carries the tag remint.keep in MLflow; its value says why
    job         a job that runs holds its work against it

`remint gc` removes nothing that these need, and `remint audit` looks at these to the last byte.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from remint.errors import NotFoundError
from remint.records import LedgerRow
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores.ledger.collected import Collected
from remint.stores.mlflow import ModelVersion, removal
from remint.stores.open import open_ledger, open_tracking

WINDOW = 3  # champions that a roll back can go to, the present one among them
MOVES = frozenset({"promoted", "rolled_back"})
AGAINST = frozenset({"rejected", "rolled_back"})


@dataclass(frozen=True)
class Root:
    """A version that must not be lost, and the reasons why, one clause."""

    version: ModelVersion
    why: str


def roots(home: Home, window: int = WINDOW) -> list[Root]:
    """The roots that MLflow holds, by model and number; ``named`` has those, too, that it has lost."""
    store = open_tracking(home)
    found = []
    for ref, why in named(home, window).items():
        with suppress(NotFoundError):
            found.append(Root(store.version(ref), why))
    return found


def named(home: Home, window: int = WINDOW) -> dict[str, str]:
    """Each root as NAME/7, with the reasons why it is one. The versions of a model are not listed for it.

    Arguments: ``window`` the champions of each model that a roll back can go to, the present one among them (1 or more).
    """
    store, book = open_tracking(home), open_ledger(home)
    reasons: dict[tuple[str, int], list[str]] = {}

    def note(model: str, version: int, why: str) -> None:
        reasons.setdefault((model, version), []).append(why)

    for model in store.names():
        for alias, version in sorted(store.aliases(model).items()):
            note(model, version, f"@{alias}")
    by_model: dict[str, list[LedgerRow]] = {}
    for row in book.rows():
        by_model.setdefault(row.model, []).append(row)
    for model, rows in by_model.items():
        gone = Collected(home.ledger_url).versions(model)
        for place, version in enumerate(champions(rows, gone)[:window]):
            note(model, version, "champion of the ledger" if not place else f"champion {place} before, to roll back to")
        for version in awaiting(rows):
            note(model, version, "awaits approval")
    for kept in removal.kept(store):
        note(kept.name, kept.version, f"kept by tag: {kept.tags.keep}")
    for job in jobs.alive(home):
        rows = by_model.get(str(job.facts.get("pipeline")), [])
        if rows and rows[-1].champion_after is not None:
            note(rows[-1].model, rows[-1].champion_after, f"job {job.id} runs and judges against it")
    return {f"{model}/{version}": ", ".join(reasons[model, version]) for model, version in sorted(reasons)}


def champions(rows: list[LedgerRow], gone: set[int] | frozenset[int] = frozenset()) -> list[int]:
    """Of one model's rows: the champion and those before it, the newest first, each once.

    Without those that a person spoke against since they were promoted, and those that were collected (``gone``).
    """
    stood = [row.champion_after for row in reversed(rows) if row.action in MOVES]
    present = rows[-1].champion_after if rows else None
    return list(
        dict.fromkeys(
            version
            for version in stood
            if version is not None and (version == present or not (version in gone or _vetoed(rows, version)))
        )
    )


def awaiting(rows: list[LedgerRow]) -> list[int]:
    """Of one model's rows: the versions that a person is asked about, against the champion that still stands."""
    last = {row.version: row for row in rows}
    return [
        version
        for version, row in last.items()
        if row.action == "awaiting_approval" and row.champion_before == rows[-1].champion_after
    ]


def _vetoed(rows: list[LedgerRow], version: int) -> bool:
    spoken = [row.action for row in rows if row.version == version and row.action in {*AGAINST, "promoted"}]
    return bool(spoken) and spoken[-1] in AGAINST
