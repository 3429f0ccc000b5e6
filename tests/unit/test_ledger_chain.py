"""The ledger on SQLite: compare-and-swap, the chain, and the finding of verify for each kind of damage."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from remint.errors import ChampionChanged, LedgerError, SettingsError
from remint.records import digest
from remint.stores.ledger.chain import Ledger
from remint.stores.ledger.row import LedgerRow


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return Ledger(f"sqlite:///{path}")


def promote(ledger: Ledger, version: int, expected: int | None, model: str = "m") -> LedgerRow:
    return ledger.append(
        model, "promoted", version, champion_after=version, who="gate", why="better", evidence="e", expected_champion=expected
    )


def hash_of(fields: dict[str, Any]) -> str:
    """Compute the hash as defined: over all other fields. Empty fields of later versions are left out, as in old rows."""
    return digest({key: value for key, value in fields.items() if key != "hash" and (value or key not in ("decision", "trial"))})


def append_kept(ledger: Ledger, version: int, champion: int | None, model: str = "m") -> LedgerRow:
    return ledger.append(
        model, "kept", version, champion_after=champion, who="gate", why="not better", evidence="e", expected_champion=champion
    )


def test_rows_form_a_chain_from_champion_to_champion(ledger: Ledger) -> None:
    written = [promote(ledger, 1, None), append_kept(ledger, 2, 1), promote(ledger, 3, 1)]
    written.append(
        ledger.append("m", "rolled_back", 3, champion_after=1, who="ada", why="blurred", evidence="", expected_champion=3)
    )
    assert ledger.rows("m") == written
    assert [row.sequence for row in written] == [1, 2, 3, 4]
    assert [(row.champion_before, row.champion_after) for row in written] == [(None, 1), (1, 1), (1, 3), (3, 1)]
    assert [row.previous for row in written] == ["", *(row.hash for row in written[:-1])]
    assert all(hash_of(row.to_json()) == row.hash for row in written)
    assert ledger.champion("m") == 1 and ledger.head("m") == written[-1].hash
    assert ledger.verify("m", known=[row.hash for row in written]) == []


def test_each_model_has_a_separate_chain(ledger: Ledger) -> None:
    promote(ledger, 7, None, "a")
    promote(ledger, 1, None, "b")
    assert (ledger.champion("a"), ledger.champion("b"), ledger.champion("c")) == (7, 1, None)
    assert [(row.model, row.sequence) for row in ledger.rows()] == [("a", 1), ("b", 1)]
    assert ledger.head("c") == "" and ledger.verify("c") == []


@pytest.mark.parametrize("expected", [None, 2])
def test_an_unexpected_champion_is_named_and_nothing_is_written(ledger: Ledger, expected: int | None) -> None:
    promote(ledger, 1, None)
    with pytest.raises(ChampionChanged, match="the champion is now version 1"):
        promote(ledger, 3, expected)
    with pytest.raises(ChampionChanged):
        append_kept(ledger, 3, expected)
    assert len(ledger.rows("m")) == 1


def test_only_promotion_and_roll_back_change_the_champion(ledger: Ledger) -> None:
    promote(ledger, 1, None)
    for action in ("kept", "refused", "awaiting_approval", "awaiting_shadow", "rejected"):
        with pytest.raises(ValueError, match="keeps champion"):
            ledger.append("m", action, 2, champion_after=2, who="w", why="", evidence="", expected_champion=1)
    with pytest.raises(ValueError, match="makes it champion: it cannot set 3"):
        ledger.append("m", "promoted", 2, champion_after=3, who="w", why="", evidence="", expected_champion=1)
    assert ledger.champion("m") == 1


def test_the_time_of_a_row_is_the_argument_in_utc(ledger: Ledger) -> None:
    at = datetime.fromisoformat("2026-01-02T03:04:05+02:00")
    row = ledger.append("m", "refused", 1, champion_after=None, who="w", why="", evidence="", expected_champion=None, at=at)
    assert row.at == "2026-01-02T01:04:05.000000+00:00"
    assert datetime.fromisoformat(append_kept(ledger, 2, None).at).tzinfo == UTC


def damage(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (["UPDATE ledger SET why = 'bribed' WHERE sequence = 3"], "row 3 was changed"),
        (["UPDATE ledger SET decision = 'd' WHERE sequence = 3"], "row 3 was changed"),
        (["UPDATE ledger SET champion_after = 9 WHERE sequence = 5"], "row 5 was changed"),
        (["UPDATE ledger SET action = 'blessed' WHERE sequence = 2"], "row 2 was changed"),
        (["DELETE FROM ledger WHERE sequence = 1"], "row 1 removed"),
        (["DELETE FROM ledger WHERE sequence IN (2, 3)"], "rows 2 to 3 removed"),
        (["DELETE FROM ledger WHERE sequence = 5"], "a row that a version names is gone or was rewritten: no row has its hash"),
        (
            [
                "UPDATE ledger SET sequence = -1 WHERE sequence = 2",
                "UPDATE ledger SET sequence = 2 WHERE sequence = 4",
                "UPDATE ledger SET sequence = 4 WHERE sequence = -1",
            ],
            "row 2 was written as row 4: the rows were reordered",
        ),
    ],
)
def test_verify_names_the_damage(ledger: Ledger, path: Path, statements: list[str], says: str) -> None:
    rows = [promote(ledger, v, v - 1 or None) for v in range(1, 6)]
    assert ledger.verify("m", known=[rows[-1].hash]) == []
    damage(path, *statements)
    assert any(says in finding for finding in ledger.verify("m", known=[rows[-1].hash])), ledger.verify("m")


def test_a_row_changed_with_its_hash_breaks_the_link_after_it(ledger: Ledger, path: Path) -> None:
    rows = [promote(ledger, v, v - 1 or None) for v in range(1, 4)]
    forged = {**rows[1].to_json(), "why": "bribed"}
    forged["hash"] = hash_of(forged)
    damage(path, f"UPDATE ledger SET why = 'bribed', hash = '{forged['hash']}' WHERE sequence = 2")
    assert ledger.verify("m") == ["m: row 3 does not follow row 2: one of them was replaced"]


def test_a_damaged_row_raises_an_error_of_ours(ledger: Ledger, path: Path) -> None:
    promote(ledger, 1, None)
    damage(path, "UPDATE ledger SET action = 'blessed'")
    with pytest.raises(LedgerError, match="row 1 of m in the ledger is damaged"):
        ledger.rows("m")


def test_a_newer_schema_is_refused(ledger: Ledger, path: Path) -> None:
    damage(path, "UPDATE ledger_schema SET version = 99")
    with pytest.raises(LedgerError, match="schema 99, this remint supports 5"):
        Ledger(f"sqlite:///{path}")


@pytest.mark.parametrize("url", ["mysql://u@h/d", "nonsense", "duckdb:///x"])
def test_an_unsupported_address_is_reported_as_the_users_mistake(url: str) -> None:
    with pytest.raises(SettingsError, match="expected sqlite:///FILE or postgresql"):
        Ledger(url)


def test_a_file_that_is_not_a_database_raises_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is not a database, and long enough to be read as one" * 100)
    with pytest.raises(LedgerError, match="not a database"):
        Ledger(f"sqlite:///{tmp_path}/text.db")


def test_a_password_is_never_in_a_message() -> None:
    with pytest.raises(SettingsError) as caught:
        Ledger("mysql://user:hunter2@host/d")
    assert "hunter2" not in str(caught.value)
