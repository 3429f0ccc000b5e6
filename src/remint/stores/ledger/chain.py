"""The promotion ledger: what the gate and people decided of each model, append-only and hash-chained, in SQL.

One row a decision. ``hash`` is over all other fields of the row, ``previous`` is the hash of the model's row before, and
(model, sequence) is unique: so a row that was changed, removed or moved shows, and an append is a compare-and-swap on
who is champion. A chain that was written anew from its start, or cut short at its end, looks whole from within: pass
``verify`` the hashes that are kept elsewhere (each promoted version's tag ``ledger_hash``), and it shows too.
``decision`` is the digest of the Decision, which is kept with the version: remint.promotion.kept_decisions compares the two.

Appends to one model are serialised by the database (remint.stores.ledger.database); the unique key stands behind that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import ValidationError

from remint.errors import ChampionChanged, LedgerError
from remint.records import LedgerRow, digest
from remint.stores.ledger import collected
from remint.stores.ledger.schema import ledger as _rows
from remint.stores.ledger.schema import open_database

CHAMPION_ACTIONS = frozenset({"promoted", "rolled_back"})  # all other rows leave the champion as it is
AGAINST = frozenset({"rejected", "rolled_back"})  # a person's word against a version, until a person promotes it

Action = Literal["promoted", "kept", "refused", "awaiting_approval", "rejected", "rolled_back"]


class Ledger:
    """The ledger at one database address. Raises what schema.open_database raises."""

    def __init__(self, url: str) -> None:
        self._database = open_database(url)

    def append(
        self,
        model: str,
        action: Action,
        version: int,
        *,
        champion_after: int | None,
        who: str,
        why: str,
        evidence: str,  # digest of what the decision rests on; "" for a person's act
        decision: str = "",  # digest of the Decision; "" for a person's act
        expected_champion: int | None,  # champion that the decision was made against
        at: datetime | None = None,  # None: now
    ) -> LedgerRow:
        """Appends one row if ``expected_champion`` is still champion, as one step that nobody can come between.

        Raises ChampionChanged, which names the present champion, where it is not: nothing was written, decide again. So it
        does where the gate would promote a version that a person spoke against meanwhile.
        Raises NotFoundError where the champion to be was removed by remint gc, ValueError where ``champion_after`` does not
        follow from the action.
        """
        if action not in CHAMPION_ACTIONS and champion_after != expected_champion:
            raise ValueError(f"{action} leaves the champion {expected_champion} as it is, and cannot make it {champion_after}")
        if action == "promoted" and champion_after != version:
            raise ValueError(f"promoting version {version} makes it champion, not {champion_after}")
        moment = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="microseconds")
        said = {"model": model, "action": action, "version": version, "who": who, "why": why, "evidence": evidence}
        said |= {"decision": decision, "at": moment}
        tried = False

        def once() -> LedgerRow:
            nonlocal tried
            with self._database.write(model) as connection:
                last = self._last(connection, model)
                if tried and last is not None and said.items() <= last.to_json().items():
                    return last  # the reply to our commit was lost, not the commit
                tried = True
                if action in CHAMPION_ACTIONS and champion_after is not None:
                    collected.refuse(connection, model, champion_after)
                if evidence and action in ("promoted", "awaiting_approval"):
                    _refuse_vetoed(connection, model, version)
                row = _following(last, said, expected_champion, champion_after)
                connection.execute(_rows.insert().values(**row.to_json()))
                return row

        return self._database.again(once)

    def rows(self, model: str | None = None, version: int | None = None) -> list[LedgerRow]:
        """The rows of one model, oldest first, about one version where it is given; of all models without either.

        Raises LedgerError for a row that is no row.
        """
        return [_row(fields) for fields in self._read(_of(model, version).order_by(_rows.c.model, _rows.c.sequence))]

    def about(self, model: str, version: int) -> list[LedgerRow]:
        """The rows about one version and those that went back to it, oldest first."""
        back = sa.and_(_rows.c.action == "rolled_back", _rows.c.champion_after == version)
        query = _of(model).where(sa.or_(_rows.c.version == version, back)).order_by(_rows.c.sequence)
        return [_row(fields) for fields in self._read(query)]

    def raw(self, model: str) -> list[dict[str, Any]]:
        """The rows of one model as they are stored, oldest first: for those who look for damage."""
        return self._read(_of(model).order_by(_rows.c.sequence))

    def newest(self, model: str, count: int) -> list[LedgerRow]:
        """The last rows of one model, at most ``count``, oldest first."""
        found = self._read(_of(model).order_by(_rows.c.sequence.desc()).limit(count))
        return [_row(fields) for fields in reversed(found)]

    def since(self, model: str, sequence: int) -> list[LedgerRow]:
        """The rows of one model from that number on, oldest first."""
        query = _of(model).where(_rows.c.sequence >= sequence).order_by(_rows.c.sequence)
        return [_row(fields) for fields in self._read(query)]

    def models(self) -> list[str]:
        """The models that have rows."""
        return [fields["model"] for fields in self._read(sa.select(_rows.c.model).distinct().order_by(_rows.c.model))]

    def last(self, model: str) -> LedgerRow | None:
        """The model's newest row, None where there is none. Raises LedgerError for one that was changed: nothing follows it."""
        found = self._read(_of(model).order_by(_rows.c.sequence.desc()).limit(1))
        return _unchanged(found[0]) if found else None

    def champion(self, model: str) -> int | None:
        """The version that is champion, None where there is none."""
        last = self.last(model)
        return last.champion_after if last else None

    def head(self, model: str) -> str:
        """Hash of the model's last row, "" where there is none."""
        last = self.last(model)
        return last.hash if last else ""

    def verify(self, model: str, known: Collection[str] = ()) -> list[str]:
        """What is wrong with the chain of one model, one line a finding; nothing where it is as it was written.

        ``known``: hashes of rows that are kept elsewhere, each of which must be in the chain; a mapping says of each what
        carries it ("row 5, which digits-vae/3 names").
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
            if _digest(row) != row["hash"]:
                findings.append(f"{name} " + _moved_or_changed(row, rows))
            elif row["sequence"] == expected and row["champion_before"] != champion:
                findings.append(f"{name} starts from champion {row['champion_before']}, though the row before left {champion}")
            previous, champion, expected = row["hash"], row["champion_after"], row["sequence"] + 1
        present = {row["hash"] for row in rows}
        named = known if isinstance(known, Mapping) else dict.fromkeys(known, "a row that a version names")
        findings += [
            f"{model}: {named[lost]} is gone or was rewritten: no row has its hash {lost[:12]}"
            for lost in sorted(set(known) - present)
        ]
        return findings

    def _read(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        def read() -> list[dict[str, Any]]:
            with self._database.read() as connection:
                return [dict(row) for row in connection.execute(query).mappings()]

        return self._database.again(read)

    @staticmethod
    def _last(connection: sa.Connection, model: str) -> LedgerRow | None:
        fields = connection.execute(_of(model).order_by(_rows.c.sequence.desc()).limit(1)).mappings().first()
        return _unchanged(dict(fields)) if fields else None


def projection(rows: Sequence[LedgerRow]) -> dict[str, int | None]:
    """The version that each alias of a model stands for (None: it stands for nothing), by its rows: the last one tells.

    ``champion`` is the ledger's champion. ``challenger`` is the version that the last row is about, where that row left
    the champion as it was and is not about the champion itself.
    """
    if not rows:
        return {"champion": None, "challenger": None}
    last = rows[-1]
    left = last.action not in CHAMPION_ACTIONS and last.version != last.champion_after
    return {"champion": last.champion_after, "challenger": last.version if left else None}


def veto(rows: Sequence[LedgerRow]) -> LedgerRow | None:
    """Of the rows about one version: the one by which a person took it out of the running, unless promoted since."""
    spoken = [row for row in rows if row.action in AGAINST or row.action == "promoted"]
    return spoken[-1] if spoken and spoken[-1].action in AGAINST else None


def describe(row: LedgerRow) -> str:
    """What a row says, in a few words: digits-vae/3 was rolled back on 2026-05-01 by ada: it blurs."""
    why = f": {row.why.splitlines()[0]}" if row.why else ""
    return f"{row.model}/{row.version} was {row.action.replace('_', ' ')} on {row.at[:10]} by {row.who}{why}"


def _refuse_vetoed(connection: sa.Connection, model: str, version: int) -> None:
    query = _of(model, version).where(_rows.c.action.in_([*AGAINST, "promoted"])).order_by(_rows.c.sequence)
    row = veto([_row(dict(fields)) for fields in connection.execute(query).mappings()])
    if row is not None:
        raise ChampionChanged(f"{describe(row)}: nothing was written; judge it again")


def _of(model: str | None, version: int | None = None) -> sa.Select[Any]:
    query = _rows.select()
    if model is not None:
        query = query.where(_rows.c.model == model)
    return query if version is None else query.where(_rows.c.version == version)


def _following(last: LedgerRow | None, said: dict[str, Any], expected: int | None, champion_after: int | None) -> LedgerRow:
    """The row after ``last``. Raises ChampionChanged where that left another champion than was expected."""
    present = last.champion_after if last else None
    if present != expected:
        model, now = said["model"], f"version {present}" if present is not None else "none"
        raise ChampionChanged(
            f"{model}: the champion is now {now}, not {expected}: nothing was written; judge version {said['version']} again"
        )
    fields = {
        **said,
        "sequence": last.sequence + 1 if last else 1,
        "champion_before": present,
        "champion_after": champion_after,
        "previous": last.hash if last else "",
    }
    return LedgerRow(**fields, hash=_digest(fields))


def _digest(row: dict[str, Any]) -> str:
    """The hash of what a row says; "" for what was never written by us (SQLite takes bytes for text).

    A row without a Decision's digest hashes as rows did before there was one: so those that are older still verify.
    """
    try:
        return digest({key: value for key, value in row.items() if key != "hash" and (key != "decision" or value)})
    except (TypeError, ValueError):
        return ""


def _row(fields: dict[str, Any]) -> LedgerRow:
    try:
        return LedgerRow.model_validate(fields)
    except ValidationError as error:
        raise LedgerError(
            f"row {fields['sequence']} of {fields['model']} in the ledger is damaged: remint history {fields['model']}"
        ) from error


def _unchanged(fields: dict[str, Any]) -> LedgerRow:
    """The row that the next one and MLflow's aliases stand on: somebody who edits it makes no champion by it."""
    if _digest(fields) != fields["hash"]:
        raise LedgerError(
            f"row {fields['sequence']} of {fields['model']} in the ledger was changed past remint, and nothing follows it: "
            f"remint history {fields['model']} --verify"
        )
    return _row(fields)


def _moved_or_changed(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """What became of a row whose hash is not of its content."""
    for other in rows:
        if other is not row and _digest({**row, "sequence": other["sequence"]}) == row["hash"]:
            return f"was written as row {other['sequence']}: the rows were reordered"
    return "was changed: its hash is not of what it says"
