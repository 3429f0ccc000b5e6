"""Projection of the ledger onto MLflow: aliases and tags of a model are set to those of the ledger.

The ledger is the source of truth. These follow it in MLflow, for programs that read MLflow alone:

    aliases champion, challenger       ledger.projection of its rows
    a version's tag verdict            action of the newest row about it
    its tags ledger_hash, ledger_row   hash and number of the newest row that is about it or made it champion
    its description                    that row in a sentence with all reasons; a person's own text stays
    the model's tag ledger_head        number and hash of the newest row that all of the above follow

``remint history --verify`` compares these hashes with the ledger: the ledger alone cannot show that it was truncated or
rewritten. So a hash in MLflow is never overwritten while the ledger lacks its row.
"""

from __future__ import annotations

from collections.abc import Sequence

from remint.errors import NotFoundError
from remint.runtime.home import Home
from remint.stores.ledger.chain import CHAMPION_ACTIONS, Ledger, describe, projection
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import ModelVersion, Tracking, VersionTags
from remint.stores.open import open_ledger, open_tracking

RECENT = 100  # rows that are read for a model without ledger_head: an older remint wrote its tags


def current_version(home: Home, ref: str) -> ModelVersion:
    """Return the version of NAME (its champion), NAME@alias or NAME/7, according to the ledger. Raises NotFoundError."""
    sync_mlflow_to_ledger(home, ref.partition("/")[0].partition("@")[0])
    return open_tracking(home).version(ref)


def sync_mlflow_to_ledger(home: Home, model: str) -> list[str]:
    """Set the aliases and tags of a model in MLflow to those of the ledger. Return a sentence for each correction.

    A process that dies between ledger and MLflow leaves them different: the next call corrects that. If they agree, it
    reads one row and one entry of MLflow, for any number of versions.
    """
    book, store = open_ledger(home), open_tracking(home)
    if _in_sync(store, book.last(model), model):
        return []
    with store.exclusive_lock(f"projection {model}"):
        last = book.last(model)
        if last is None or _in_sync(store, last, model):
            return []
        aliases, head = store.aliases_and_ledger_head(model)
        return _set_aliases(store, aliases, last) + _set_tags(store, book, last, head)


def _in_sync(store: Tracking, last: LedgerRow | None, model: str) -> bool:
    """Return whether MLflow agrees with the ledger, judged by one row and one entry of MLflow."""
    if last is None:
        return True
    aliases, head = store.aliases_and_ledger_head(model)
    return head == _head(last) and all(aliases.get(alias) == number for alias, number in projection([last]).items())


def _head(row: LedgerRow) -> str:
    return f"{row.sequence} {row.hash}"


def _set_aliases(store: Tracking, aliases: dict[str, int], last: LedgerRow) -> list[str]:
    corrections = []
    for alias, number in projection([last]).items():
        # The alias of a deleted version is removed: it must not name another version.
        wanted = number if number is not None and _version(store, last.model, number) else None
        if aliases.get(alias) != wanted:
            store.set_alias(last.model, alias, wanted)
            before, now = (f"{last.model}/{each}" if each is not None else "nothing" for each in (aliases.get(alias), wanted))
            corrections.append(f"{last.model}@{alias} named {before}; it names {now} now, as the ledger does")
    return corrections


def _set_tags(store: Tracking, book: Ledger, last: LedgerRow, head: str) -> list[str]:
    """Set the tags of the versions that rows since ``head`` name, then the head itself."""
    followed, _, known = head.partition(" ")
    rows = book.since(last.model, int(followed)) if followed else book.newest(last.model, RECENT)
    lost = bool(followed) and (not rows or rows[0].hash != known)
    corrections = []
    sentences = descriptions_of([last] if lost else rows)
    for number, wanted in tags_of([last] if lost else rows).items():
        found = _version(store, last.model, number)
        if found is None:
            continue
        keep = lost and found.tags.ledger_hash is not None  # this hash may be the only trace of the lost rows
        changes = (VersionTags(verdict=wanted.verdict) if keep else wanted).changes(found.tags)
        ours = not found.description or found.description.startswith(f"{found.ref} ")  # else a person wrote it
        if ours and found.description != sentences[number]:
            store.set_description(found, sentences[number])
        names = sorted(changes.to_json())
        if names:
            store.set_tags(found, changes)
            corrections.append(f"the tags {', '.join(names)} of {found.ref} did not match the ledger: corrected")
    if not lost:
        store.set_ledger_head(last.model, _head(last))
    return corrections


def tags_of(rows: Sequence[LedgerRow]) -> dict[int, VersionTags]:
    """Return the correct tags of each version that the rows of a model name."""
    wanted: dict[int, VersionTags] = {}
    for row in rows:
        place = VersionTags(ledger_hash=row.hash, ledger_row=str(row.sequence))
        wanted[row.version] = place.updated(VersionTags(verdict=row.action))
        if row.action in CHAMPION_ACTIONS and row.champion_after not in (None, row.version):
            assert row.champion_after is not None
            wanted[row.champion_after] = wanted.get(row.champion_after, VersionTags()).updated(place)
    return wanted


def descriptions_of(rows: Sequence[LedgerRow]) -> dict[int, str]:
    """Return the description of each version that the rows of a model name: the newest decision with all its reasons."""
    sentences: dict[int, str] = {}
    for row in rows:
        sentences[row.version] = describe(row.model_copy(update={"why": "; ".join(row.why.splitlines())}))
        if row.action == "rolled_back" and row.champion_after is not None:
            sentences[row.champion_after] = f"{row.model}/{row.champion_after} is in production again: {sentences[row.version]}"
    return sentences


def _version(store: Tracking, model: str, number: int) -> ModelVersion | None:
    try:
        return store.version(f"{model}/{number}")
    except NotFoundError:
        return None
