"""The promotion ledger: what the gate and people decided of each model, append-only and hash-chained, in SQL.

One row a decision. ``hash`` is over all other fields of the row, ``previous`` is the hash of the model's row before, and
(model, sequence) is unique: so a row that was changed, removed or moved shows, and an append is a compare-and-swap on
who is champion. A chain that was written anew from its start, or cut short at its end, looks whole from within: pass
``verify`` the hashes that are kept elsewhere (each promoted version's tag ``ledger_hash``), and it shows too.

Appends to one model are serialised by the database (remint.database); the unique key stands behind that.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import ValidationError

from remint.database import Database
from remint.errors import ChampionChanged, LedgerError
from remint.records import LedgerRow, digest

SCHEMA = 1
CHAMPION_ACTIONS = frozenset({"promoted", "rolled_back"})  # all other rows leave the champion as it is

Action = Literal["promoted", "kept", "refused", "awaiting_approval", "rejected", "rolled_back"]

_metadata = sa.MetaData()
_schema = sa.Table("ledger_schema", _metadata, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))
_rows = sa.Table(
    "ledger",
    _metadata,
    sa.Column("model", sa.String(256), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("champion_before", sa.Integer),
    sa.Column("champion_after", sa.Integer),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("who", sa.Text, nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("evidence", sa.String(64), nullable=False),
    sa.Column("at", sa.String(40), nullable=False),
    sa.Column("previous", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)


class Ledger:
    """The ledger at one database address, its schema made where there is none.

    Raises what remint.database raises.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._database.make(_metadata, _schema, SCHEMA)

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
        expected_champion: int | None,  # champion that the decision was made against
        at: datetime | None = None,  # None: now
    ) -> LedgerRow:
        """Appends one row if ``expected_champion`` is still champion, as one step that nobody can come between.

        Raises ChampionChanged, which names the present champion, where it is not: nothing was written, decide again.
        Raises ValueError where ``champion_after`` does not follow from the action.
        """
        if action not in CHAMPION_ACTIONS and champion_after != expected_champion:
            raise ValueError(f"{action} leaves the champion {expected_champion} as it is, and cannot make it {champion_after}")
        if action == "promoted" and champion_after != version:
            raise ValueError(f"promoting version {version} makes it champion, not {champion_after}")
        moment = (at or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="microseconds")
        said = {"model": model, "action": action, "version": version, "who": who, "why": why, "evidence": evidence, "at": moment}
        tried = False

        def once() -> LedgerRow:
            nonlocal tried
            with self._database.write(model) as connection:
                last = self._last(connection, model)
                if tried and last is not None and said.items() <= last.to_json().items():
                    return last  # the reply to our commit was lost, not the commit
                tried = True
                row = _following(last, said, expected_champion, champion_after)
                connection.execute(_rows.insert().values(**row.to_json()))
                return row

        return self._database.again(once)

    def rows(self, model: str | None = None) -> list[LedgerRow]:
        """The rows of one model, oldest first; of all models without one. Raises LedgerError for a row that is no row."""
        return [_row(fields) for fields in self._raw(model)]

    def champion(self, model: str) -> int | None:
        """The version that is champion, None where there is none."""
        last = self._newest(model)
        return last.champion_after if last else None

    def head(self, model: str) -> str:
        """Hash of the model's last row, "" where there is none."""
        last = self._newest(model)
        return last.hash if last else ""

    def verify(self, model: str, known: Collection[str] = ()) -> list[str]:
        """What is wrong with the chain of one model, one line a finding; nothing where it is as it was written.

        ``known``: hashes of rows that are kept elsewhere, each of which must be in the chain.
        """
        rows = self._raw(model)
        findings: list[str] = []
        previous, champion, expected = "", None, 1
        for row in rows:
            name = f"{model}: row {row['sequence']}"
            if row["sequence"] != expected:
                gone = f"row {expected}" if row["sequence"] == expected + 1 else f"rows {expected} to {row['sequence'] - 1}"
                findings.append(f"{model}: {gone} removed")
            elif row["previous"] != previous and not findings:
                findings.append(f"{name} does not follow row {expected - 1}: one of them was replaced")
            if digest(_content(row)) != row["hash"]:
                findings.append(f"{name} " + _moved_or_changed(row, rows))
            elif row["sequence"] == expected and row["champion_before"] != champion:
                findings.append(f"{name} starts from champion {row['champion_before']}, though the row before left {champion}")
            previous, champion, expected = row["hash"], row["champion_after"], row["sequence"] + 1
        present = {row["hash"] for row in rows}
        findings += [
            f"{model}: the row with hash {lost[:12]} is gone, though a version names it" for lost in sorted(set(known) - present)
        ]
        return findings

    def _raw(self, model: str | None) -> list[dict[str, Any]]:
        query = _rows.select().order_by(_rows.c.model, _rows.c.sequence)
        if model is not None:
            query = query.where(_rows.c.model == model)

        def read() -> list[dict[str, Any]]:
            with self._database.read() as connection:
                return [dict(row) for row in connection.execute(query).mappings()]

        return self._database.again(read)

    def _newest(self, model: str) -> LedgerRow | None:
        def read() -> LedgerRow | None:
            with self._database.read() as connection:
                return self._last(connection, model)

        return self._database.again(read)

    @staticmethod
    def _last(connection: sa.Connection, model: str) -> LedgerRow | None:
        query = _rows.select().where(_rows.c.model == model).order_by(_rows.c.sequence.desc()).limit(1)
        fields = connection.execute(query).mappings().first()
        return _row(dict(fields)) if fields else None


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
    return LedgerRow(**fields, hash=digest(fields))


def _content(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "hash"}


def _row(fields: dict[str, Any]) -> LedgerRow:
    try:
        return LedgerRow.model_validate(fields)
    except ValidationError as error:
        raise LedgerError(
            f"row {fields['sequence']} of {fields['model']} in the ledger is damaged: remint history {fields['model']}"
        ) from error


def _moved_or_changed(row: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """What became of a row whose hash is not of its content."""
    for other in rows:
        if other is not row and digest({**_content(row), "sequence": other["sequence"]}) == row["hash"]:
            return f"was written as row {other['sequence']}: the rows were reordered"
    return "was changed: its hash is not of what it says"
