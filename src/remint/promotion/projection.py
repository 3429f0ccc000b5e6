"""Projection of the ledger onto MLflow: aliases and tags of a model are made those of the ledger.

The ledger is the truth. In MLflow follow it, so that those who read MLflow alone are served right:

    aliases champion, challenger       ledger.projection of its rows
    a version's tag verdict            what the newest row about it says
    its tags ledger_hash, ledger_row   the newest row that is about it or made it champion: hash and number
    the model's tag ledger_head        number and hash of the newest row that all of the above has followed

The hashes are those that ``remint history --verify`` holds against the ledger, which by itself cannot tell that it was cut
short or written anew. So none is ever written over where the ledger no longer has its row.
"""

from __future__ import annotations

from collections.abc import Sequence

from remint.errors import NotFoundError
from remint.records import LedgerRow
from remint.runtime.home import Home
from remint.stores.ledger.chain import CHAMPION_ACTIONS, Ledger, projection
from remint.stores.mlflow import ModelVersion, Tracking, VersionTags
from remint.stores.open import open_ledger, open_tracking

RECENT = 100  # rows that are looked at in a model whose tags were never followed: an older remint wrote them itself


def current_version(home: Home, ref: str) -> ModelVersion:
    """The version of NAME (its champion), NAME@alias or NAME/7, as the ledger has it. Raises NotFoundError."""
    sync_mlflow_to_ledger(home, ref.partition("/")[0].partition("@")[0])
    return open_tracking(home).version(ref)


def sync_mlflow_to_ledger(home: Home, model: str) -> list[str]:
    """Makes the aliases and tags of a model in MLflow those of the ledger; what was not, in a sentence each.

    A process that dies between ledger and MLflow leaves them apart: the next call mends it. Where nothing is to mend it
    reads one row and one entry of MLflow, however many versions there are.
    """
    book, store = open_ledger(home), open_tracking(home)
    if _follows(store, book.last(model), model):
        return []
    with store.exclusively(f"projection {model}"):
        last = book.last(model)
        if last is None or _follows(store, last, model):
            return []
        aliases, head = store.standing(model)
        return _set_aliases(store, aliases, last) + _set_tags(store, book, last, head)


def _follows(store: Tracking, last: LedgerRow | None, model: str) -> bool:
    """Whether nothing is to mend, as far as one row and one entry of MLflow tell."""
    if last is None:
        return True
    aliases, head = store.standing(model)
    return head == _head(last) and all(
        aliases.get(alias) == current_version for alias, current_version in projection([last]).items()
    )


def _head(row: LedgerRow) -> str:
    return f"{row.sequence} {row.hash}"


def _set_aliases(store: Tracking, aliases: dict[str, int], last: LedgerRow) -> list[str]:
    said = []
    for alias, number in projection([last]).items():
        # An alias of a version that somebody deleted stands for nothing, rather than for another version.
        wanted = number if number is not None and _version(store, last.model, number) else None
        if aliases.get(alias) != wanted:
            store.set_alias(last.model, alias, wanted)
            before, now = (f"{last.model}/{each}" if each is not None else "nothing" for each in (aliases.get(alias), wanted))
            said.append(f"{last.model}@{alias} stood for {before} and stands for {now} now, as the ledger says")
    return said


def _set_tags(store: Tracking, book: Ledger, last: LedgerRow, head: str) -> list[str]:
    """Tags of the versions that rows since ``head`` name, and then the head itself."""
    followed, _, known = head.partition(" ")
    rows = book.since(last.model, int(followed)) if followed else book.newest(last.model, RECENT)
    lost = bool(followed) and (not rows or rows[0].hash != known)
    said = []
    for number, wanted in tags_of([last] if lost else rows).items():
        found = _version(store, last.model, number)
        if found is None:
            continue
        keep = lost and found.tags.ledger_hash is not None  # it may be the last that tells of the rows that are gone
        changes = (VersionTags(verdict=wanted.verdict) if keep else wanted).changes(found.tags)
        names = sorted(changes.to_json())
        if names:
            store.set_tags(found, changes)
            said.append(f"the tags {', '.join(names)} of {found.ref} were not what the ledger says")
    if not lost:
        store.set_ledger_head(last.model, _head(last))
    return said


def tags_of(rows: Sequence[LedgerRow]) -> dict[int, VersionTags]:
    """The tags of each version that the rows of a model name, as they must be."""
    wanted: dict[int, VersionTags] = {}
    for row in rows:
        place = VersionTags(ledger_hash=row.hash, ledger_row=str(row.sequence))
        wanted[row.version] = place.updated(VersionTags(verdict=row.action))
        if row.action in CHAMPION_ACTIONS and row.champion_after not in (None, row.version):
            assert row.champion_after is not None
            wanted[row.champion_after] = wanted.get(row.champion_after, VersionTags()).updated(place)
    return wanted


def _version(store: Tracking, model: str, number: int) -> ModelVersion | None:
    try:
        return store.version(f"{model}/{number}")
    except NotFoundError:
        return None
