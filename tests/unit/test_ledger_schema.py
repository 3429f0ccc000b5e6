"""Database of the ledger: one schema version; a database of an older remint is migrated when it is opened."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import sqlalchemy as sa

from remint.errors import LedgerError, NotFoundError
from remint.records import digest
from remint.runtime.addresses import with_driver
from remint.stores.ledger import schema
from remint.stores.ledger.chain import Ledger
from remint.stores.ledger.collected import CollectedVersions
from remint.stores.ledger.leases import Leases, LeaseState
from remint.stores.ledger.serving_events import ServingEvents
from remint.stores.ledger.spreads import SeedSpread, Spreads
from tests.support.old_ledger import COLLECTED, LEASES, LEDGER, OLD_HASHES, PARTS, SPREADS, execute

_names = count()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    """Return the address of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return str(request.getfixturevalue("postgres").database(f"schema{next(_names)}"))


def versions(url: str) -> dict[str, list[int]]:
    """Return every table with a schema version, and its versions."""
    engine = sa.create_engine(with_driver(url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        names = [name for name in sa.inspect(connection).get_table_names() if name.endswith("_schema")]
        return {name: list(connection.execute(sa.text(f"SELECT version FROM {name}")).scalars()) for name in names}


def test_a_database_of_the_old_code_is_migrated_without_loss(url: str) -> None:
    execute(url, *LEDGER, *COLLECTED, *SPREADS, *LEASES)
    ledger = Ledger(url)
    # an older remint stops at each of these: "has schema 5, this remint knows 1: use the one that wrote it"
    assert versions(url) == {name: [5] for name in ("ledger_schema", *schema.PARTS)}
    assert [row.hash for row in ledger.rows("digits-vae")] == OLD_HASHES
    assert {row.decision for row in ledger.rows("digits-vae")} == {""}
    assert ledger.verify("digits-vae", known=OLD_HASHES) == []
    assert CollectedVersions(url).versions("digits-vae") == {2}
    values = {"nll": (1.5, 1.25)}
    assert Spreads(url).newest("digits-vae") == SeedSpread(
        pipeline="digits-vae", recipe="r", dataset="d", seeds=(0, 1), values=values
    )
    assert Leases(url).read("retrain digits-vae") == LeaseState(3, 9, None)


def test_a_database_of_version_2_gets_the_events_of_serving(url: str) -> None:
    Ledger(url)
    execute(url, "DROP TABLE serving_events", "ALTER TABLE ledger DROP COLUMN trial", "UPDATE ledger_schema SET version = 2")
    events = ServingEvents(url)
    assert events.append("digits-vae", "loaded", 1, "host", "it passed") == events.of("digits-vae")[0]
    assert versions(url)["ledger_schema"] == [5]


def test_rows_are_appended_to_a_migrated_chain_and_their_hash_covers_the_decision(url: str) -> None:
    execute(url, *LEDGER)
    said = {"who": "gate", "why": "better", "evidence": "e", "decision": "f" * 64}
    row = Ledger(url).append("digits-vae", "promoted", 4, champion_after=4, expected_champion=1, **said)
    ledger = Ledger(url)
    assert ledger.last("digits-vae") == row and (row.sequence, row.previous, row.decision) == (5, OLD_HASHES[-1], "f" * 64)
    assert row.hash == digest({key: value for key, value in row.to_json().items() if key not in ("hash", "trial")})
    assert ledger.verify("digits-vae", known=[*OLD_HASHES, row.hash]) == []
    for sequence, decision in ((5, "0" * 64), (5, ""), (2, "f" * 64)):
        before = ledger.raw("digits-vae")[sequence - 1]["decision"]
        execute(url, f"UPDATE ledger SET decision = '{decision}' WHERE sequence = {sequence}")
        assert ledger.verify("digits-vae") == [f"digits-vae: row {sequence} was changed: its hash does not match its content"]
        execute(url, f"UPDATE ledger SET decision = '{before}' WHERE sequence = {sequence}")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("first", [Ledger, CollectedVersions, Spreads, Leases])
def test_all_tables_exist_whichever_part_existed_or_is_opened_first(
    part: str, first: Callable[[str], object], tmp_path: Any
) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    execute(url, *PARTS[part])
    first(url)
    tables = sa.inspect(sa.create_engine(url)).get_table_names()
    assert {"ledger", "collected_versions", "seed_spreads", "leases"} <= set(tables)
    assert {value for found in versions(url).values() for value in found} == {5}
    assert Ledger(url).verify("digits-vae", known=OLD_HASHES if part == "ledger" else []) == []


def test_a_new_database_has_one_table_that_says_its_version(url: str) -> None:
    Leases(url)
    assert versions(url) == {"ledger_schema": [5]}


def test_a_row_that_an_older_remint_appends_after_the_migration_verifies(url: str) -> None:
    """The older remint checked the version before the migration and does not know the new column."""
    execute(url, *LEDGER[:3])
    Ledger(url)
    execute(url, LEDGER[3])
    assert Ledger(url).verify("digits-vae", known=OLD_HASHES[:1]) == []


def test_a_newer_database_is_refused_and_left_as_it_is(url: str) -> None:
    execute(url, *LEDGER, "UPDATE ledger_schema SET version = 99")
    for opened in (Ledger, CollectedVersions, Spreads, Leases, schema.reach):
        with pytest.raises(
            LedgerError, match="has schema 99, this remint supports 5: install the version of remint that wrote it"
        ):
            opened(url)
    columns = sa.inspect(sa.create_engine(with_driver(url), poolclass=sa.NullPool)).get_columns("ledger")
    assert "decision" not in {column["name"] for column in columns}


def test_a_reader_makes_and_migrates_nothing(url: str) -> None:
    for opened in (Ledger, ServingEvents):
        with pytest.raises(NotFoundError, match="there is no ledger at .*: the first remint run makes it"):
            opened(url, make=False)
    assert versions(url) == {}
    execute(url, *LEDGER)
    with pytest.raises(LedgerError, match="has schema 1: run remint models, which brings it to 5"):
        Ledger(url, make=False)
    assert versions(url) == {"ledger_schema": [1]}
    assert Ledger(url).head("digits-vae") == Ledger(url, make=False).head("digits-vae")


def test_the_check_of_reach_accepts_an_old_database_without_migrating_it(url: str) -> None:
    execute(url, *LEDGER)
    schema.reach(url)
    assert versions(url) == {"ledger_schema": [1]}
