"""Promotion ledger in SQL: the decisions of the gate and of people for each model, append-only, hash-chained.

One row per decision. ``hash`` covers all other fields of the row, ``previous`` is the hash of the model's row before, and
(model, sequence) is unique. So ``verify`` finds rows that were changed, removed or moved, and an append is a compare-and-swap
on the champion. A chain that was rewritten from its start, or truncated at its end, is consistent in itself. ``verify`` finds
that too, by hashes that are kept elsewhere (the tag ``ledger_hash`` of each promoted version).
``decision`` is the digest of the Decision, which is kept with the version: remint.promotion.kept_decisions compares the two.

The database serialises appends to one model (remint.stores.ledger.database); the unique key is a second guard.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from remint.errors import ChampionChanged, DecidedMeanwhile
from remint.stores.ledger import collected
from remint.stores.ledger.row import LedgerRow
from remint.stores.ledger.schema import ledger as _rows
from remint.stores.ledger.schema import open_database
from remint.stores.ledger.seen import insert as insert_seen
from remint.stores.ledger.stored import checked, lengths, moved_or_changed, row_digest, unchanged

CHAMPION_ACTIONS = frozenset({"promoted", "rolled_back"})  # all other rows leave the champion as it is
VETOES = frozenset({"rejected", "rolled_back"})  # actions by which a person vetoes a version until it is promoted again

Action = Literal["promoted", "kept", "refused", "awaiting_approval", "awaiting_shadow", "rejected", "rolled_back"]


class Ledger:
    """Ledger at one database address. Raises the errors of schema.open_database."""

    def __init__(self, url: str, *, make: bool = True) -> None:
        """``make=False``: read a ledger that exists, and write nothing."""
        self._database = open_database(url, make=make)

    def append(
        self,
        model: str,
        action: Action,
        version: int,
        *,
        champion_after: int | None,
        who: str,
        why: str,
        evidence: str,  # digest of the decision's evidence; "" for a person's act
        decision: str = "",  # digest of the Decision; "" for a person's act
        trial: str = "",  # Trial as canonical JSON
        seen: str = "",  # held-out examples that the decision saw first (stores/ledger/seen.py)
        expected_champion: int | None,  # champion that the decision was made against
        newest: str | None = None,  # hash of the model's newest row that a person saw, "" if there was none; None: any
        settles: str | None = None,  # hash of the newest row about the version, if the decision follows from that row
        at: datetime | None = None,  # None: now
    ) -> LedgerRow:
        """Append one row, atomically, if ``expected_champion`` is still champion.

        Raises ChampionChanged, which names the present champion, if it is not, or if the gate would promote a version that a
        person has vetoed meanwhile, or if ``settles`` is no longer the newest row: nothing was written then, decide again.
        Raises DecidedMeanwhile if ``newest`` is not the newest row: nothing was written then either.
        Raises NotFoundError if remint gc removed the new champion, ValueError if ``champion_after`` does not follow from the
        action.
        """
        if action not in CHAMPION_ACTIONS and champion_after != expected_champion:
            raise ValueError(f"{action} keeps champion {expected_champion}: it cannot set {champion_after}")
        if action == "promoted" and champion_after != version:
            raise ValueError(f"promoting version {version} makes it champion: it cannot set {champion_after}")
        moment = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="microseconds")
        entry = {"model": model, "action": action, "version": version, "who": who, "why": why, "evidence": evidence}
        entry |= {"decision": decision, "trial": trial, "at": moment}
        attempted = False

        def transaction() -> LedgerRow:
            nonlocal attempted
            with self._database.write(model) as connection:
                last = self._last(connection, model)
                if attempted and last is not None and entry.items() <= last.to_json().items():
                    return last  # the first commit succeeded, only its reply was lost
                attempted = True
                _refuse_unseen(model, last, newest)
                if action in CHAMPION_ACTIONS and champion_after is not None:
                    collected.refuse(connection, model, champion_after)
                if evidence and action in ("promoted", "awaiting_approval", "awaiting_shadow"):
                    _refuse_vetoed(connection, model, version)
                if settles is not None:
                    _refuse_settled(connection, model, version, settles)
                row = _following(last, entry, expected_champion, champion_after)
                connection.execute(_rows.insert().values(**row.to_json()))
                if seen:
                    insert_seen(connection, model, row.sequence, seen)
                return row

        return self._database.run(transaction)

    def rows(self, model: str | None = None, version: int | None = None) -> list[LedgerRow]:
        """Return the rows of one model (None: all models), oldest first; only those about ``version`` if it is given.

        Raises LedgerError if a row is damaged.
        """
        return [checked(fields) for fields in self._database.rows(_of(model, version).order_by(_rows.c.model, _rows.c.sequence))]

    def intact_rows(self, model: str) -> list[LedgerRow]:
        """Return the rows of one model, oldest first. Raises LedgerError if one was changed outside remint."""
        return [unchanged(fields) for fields in self.raw(model)]

    def about(self, model: str, version: int) -> list[LedgerRow]:
        """Return the rows about one version, and the rollbacks to it, oldest first."""
        back = sa.and_(_rows.c.action == "rolled_back", _rows.c.champion_after == version)
        query = _of(model).where(sa.or_(_rows.c.version == version, back)).order_by(_rows.c.sequence)
        return [checked(fields) for fields in self._database.rows(query)]

    def raw(self, model: str) -> list[dict[str, Any]]:
        """Return the rows of one model as they are stored, unchecked, oldest first."""
        return self._database.rows(_of(model).order_by(_rows.c.sequence))

    def newest(self, model: str, count: int) -> list[LedgerRow]:
        """Return the last rows of one model, at most ``count``, oldest first."""
        found = self._database.rows(_of(model).order_by(_rows.c.sequence.desc()).limit(count))
        return [checked(fields) for fields in reversed(found)]

    def since(self, model: str, sequence: int) -> list[LedgerRow]:
        """Return the rows of one model from ``sequence`` on, oldest first."""
        query = _of(model).where(_rows.c.sequence >= sequence).order_by(_rows.c.sequence)
        return [checked(fields) for fields in self._database.rows(query)]

    def models(self) -> list[str]:
        """Return the models that have rows."""
        return [fields["model"] for fields in self._database.rows(sa.select(_rows.c.model).distinct().order_by(_rows.c.model))]

    def lengths(self) -> dict[str, int]:
        """Return the sequence of the newest row of each model: what has changed since, without a read of the rows."""
        return lengths(self._database, _rows)

    def last(self, model: str) -> LedgerRow | None:
        """Return the model's newest row, None if there is none. Raises LedgerError if that row was changed."""
        found = self._database.rows(_of(model).order_by(_rows.c.sequence.desc()).limit(1))
        return unchanged(found[0]) if found else None

    def champion(self, model: str) -> int | None:
        """Return the champion's version number, None if there is no champion."""
        last = self.last(model)
        return last.champion_after if last else None

    def awaiting_shadow(self, model: str) -> LedgerRow | None:
        """Return the newest row by which a version still awaits shadow against the present champion, None if there is none."""
        later = _rows.alias()
        of_version = (later.c.model == _rows.c.model, later.c.version == _rows.c.version)
        decided = sa.exists().where(*of_version, later.c.sequence > _rows.c.sequence)
        asked = _of(model).where(_rows.c.action == "awaiting_shadow", _rows.c.champion_before == self.champion(model), ~decided)
        return next((unchanged(fields) for fields in self._database.rows(asked.order_by(_rows.c.sequence.desc()).limit(1))), None)

    def made_champion(self, model: str) -> LedgerRow | None:
        """Return the row that made the present champion; None if there is none."""
        query = _of(model).where(_rows.c.action.in_(CHAMPION_ACTIONS)).order_by(_rows.c.sequence.desc()).limit(1)
        found = self._database.rows(query)
        return checked(found[0]) if found else None

    def head(self, model: str) -> str:
        """Return the hash of the model's last row, "" if there is none."""
        last = self.last(model)
        return last.hash if last else ""

    def check_seen(self, model: str, newest: str | None) -> None:
        """Raise DecidedMeanwhile if ``newest``, the hash of the newest row that a person saw, is not the newest row's."""
        _refuse_unseen(model, self.last(model), newest)

    def verify(self, model: str, known: Collection[str] = ()) -> list[str]:
        """Return the faults of one model's chain, one line each; an empty list if it is intact.

        ``known``: hashes of rows that are kept elsewhere. Each must be in the chain. A mapping describes each row for the
        message ("row 5, which digits-vae/3 names").
        """
        rows = self.raw(model)
        findings: list[str] = []
        previous, champion, expected = "", None, 1
        for row in rows:
            name = f"{model}: row {row['sequence']}"
            if row["sequence"] != expected:
                gone = f"row {expected}" if row["sequence"] == expected + 1 else f"rows {expected} to {row['sequence'] - 1}"
                findings.append(f"{model}: {gone} removed")
            elif row["previous"] != previous and not findings:
                findings.append(f"{name} does not follow row {expected - 1}: one of them was replaced")
            if row_digest(row) != row["hash"]:
                findings.append(f"{name} " + moved_or_changed(row, rows))
            elif row["sequence"] == expected and row["champion_before"] != champion:
                findings.append(f"{name} starts from champion {row['champion_before']}, but the row before left {champion}")
            previous, champion, expected = row["hash"], row["champion_after"], row["sequence"] + 1
        present = {row["hash"] for row in rows}
        named = known if isinstance(known, Mapping) else dict.fromkeys(known, "a row that a version names")
        findings += [
            f"{model}: {named[lost]} is gone or was rewritten: no row has its hash {lost[:12]}"
            for lost in sorted(set(known) - present)
        ]
        return findings

    @staticmethod
    def _last(connection: sa.Connection, model: str) -> LedgerRow | None:
        fields = connection.execute(_of(model).order_by(_rows.c.sequence.desc()).limit(1)).mappings().first()
        return unchanged(dict(fields)) if fields else None


def projection(rows: Sequence[LedgerRow]) -> dict[str, int | None]:
    """Return the version of each alias of a model (None: no version) that follows from its rows.

    ``champion`` is the ledger's champion. ``challenger`` is the version of the last row, if that row did not change the
    champion and is not about the champion itself.
    """
    if not rows:
        return {"champion": None, "challenger": None}
    last = rows[-1]
    left = last.action not in CHAMPION_ACTIONS and last.version != last.champion_after
    return {"champion": last.champion_after, "challenger": last.version if left else None}


def awaiting(rows: Sequence[LedgerRow], action: Action) -> list[LedgerRow]:
    """Return from one model's rows, oldest first, those by which a version awaits ``action`` against the present champion."""
    last = {row.version: row for row in rows}
    return [row for row in last.values() if row.action == action and row.champion_before == rows[-1].champion_after]


def veto(rows: Sequence[LedgerRow]) -> LedgerRow | None:
    """Return the row, among those about one version, by which a person vetoed it; None if it was promoted since."""
    acts = [row for row in rows if row.action in VETOES or row.action == "promoted"]
    return acts[-1] if acts and acts[-1].action in VETOES else None


def describe(row: LedgerRow) -> str:
    """Describe a row in one line: digits-vae/3 was rolled back on 2026-05-01 by ada: it blurs."""
    why = f": {row.why.splitlines()[0]}" if row.why else ""
    return f"{row.model}/{row.version} was {row.action.replace('_', ' ')} on {row.at[:10]} by {row.who}{why}"


def _refuse_unseen(model: str, last: LedgerRow | None, newest: str | None) -> None:
    if newest is None or newest == (last.hash if last else ""):
        return
    found = describe(last) if last else f"the ledger has no row of {model}"
    raise DecidedMeanwhile(f"{found}. It was decided meanwhile: reload the page. Nothing was written")


def _refuse_vetoed(connection: sa.Connection, model: str, version: int) -> None:
    query = _of(model, version).where(_rows.c.action.in_([*VETOES, "promoted"])).order_by(_rows.c.sequence)
    row = veto([checked(dict(fields)) for fields in connection.execute(query).mappings()])
    if row is not None:
        raise ChampionChanged(f"{describe(row)}: nothing was written; decide again")


def _refuse_settled(connection: sa.Connection, model: str, version: int, settles: str) -> None:
    query = _of(model, version).order_by(_rows.c.sequence.desc()).limit(1)
    newest = connection.execute(query).mappings().one()
    if newest["hash"] != settles:
        raise ChampionChanged(f"{describe(checked(dict(newest)))}: nothing was written; it was decided already")


def _of(model: str | None, version: int | None = None) -> sa.Select[Any]:
    query = _rows.select()
    if model is not None:
        query = query.where(_rows.c.model == model)
    return query if version is None else query.where(_rows.c.version == version)


def _following(last: LedgerRow | None, entry: dict[str, Any], expected: int | None, champion_after: int | None) -> LedgerRow:
    """Return the row after ``last``. Raises ChampionChanged if the present champion is not ``expected``."""
    present = last.champion_after if last else None
    if present != expected:
        model, now = entry["model"], f"version {present}" if present is not None else "none"
        raise ChampionChanged(
            f"{model}: the champion is now {now}, not {expected}: nothing was written; decide on version {entry['version']} again"
        )
    fields = {
        **entry,
        "sequence": last.sequence + 1 if last else 1,
        "champion_before": present,
        "champion_after": champion_after,
        "previous": last.hash if last else "",
    }
    return LedgerRow(**fields, hash=row_digest(fields))
