"""The PostgreSQL role of a server: the SQL of the production page lets it follow and record events, and nothing more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import ProgrammingError

from remint.errors import LedgerError
from remint.runtime.addresses import with_driver
from remint.runtime.home import Home
from remint.serving.app.follow import Follower
from remint.serving.app.slot import Slot
from remint.stores.ledger.serving_events import ServingEvents
from remint.stores.ledger.shadow_counts import ShadowCountsTable
from remint.stores.open import open_ledger
from tests.support import promotion_cases as cases
from tests.support.postgres import Postgres
from tests.support.promotion_cases import MODEL
from tests.support.shadow_cases import counts
from tests.support.team import SOURCE

pytestmark = pytest.mark.usefixtures("forked")
PAGE = SOURCE / "docs/how-to/production.md"
FORBIDDEN = (
    "INSERT INTO ledger SELECT * FROM ledger",
    "UPDATE ledger SET version = 2",
    "DELETE FROM ledger",
    "UPDATE serving_events SET why = ''",
    "DELETE FROM serving_events",
    "TRUNCATE serving_events",
    "DROP TABLE serving_events",
    "DELETE FROM drift_checks",
    "UPDATE shadow_counts SET counts = ''",
    "DELETE FROM shadow_counts",
    "UPDATE ledger_schema SET version = 9",
    "SELECT * FROM leases",
    "CREATE TABLE more (a int)",
)


@pytest.fixture
def home(registered: Home, tmp_path: Path) -> Home:
    return cases.copy_home(registered, tmp_path / "home")


@pytest.fixture
def addresses(postgres: Postgres) -> Iterator[tuple[str, str]]:
    """Addresses of a ledger: its owner's, and that of a server's role, which does not exist yet."""
    owner = postgres.database("role")
    yield owner, owner.replace("//remint@", "//remint_serve@")
    postgres.execute('DROP DATABASE "role" WITH (FORCE)')
    postgres.execute("DROP ROLE remint_serve")


def test_the_role_of_the_page_follows_and_records_and_changes_nothing(
    home: Home, addresses: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, role = addresses
    monkeypatch.setenv("REMINT_LEDGER", owner)
    cases.append_row(home, "promoted", 1)
    (block,) = [sql for sql in re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL) if "remint_serve" in sql]
    engine = sa.create_engine(with_driver(owner), poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(block)

    said: list[str] = []
    slot = Slot(MODEL, 9)
    follower = Follower(home, {MODEL: slot}, 3600.0, "cpu", said.append)
    for number in (1, 2):
        monkeypatch.setenv("REMINT_LEDGER", owner)
        if number == 2:
            cases.append_row(home, "promoted", 2)
        monkeypatch.setenv("REMINT_LEDGER", role)
        follower.look(MODEL)
        assert slot.version is not None and slot.version.number == number, said
    events = ServingEvents(role, make=False)
    assert [(event.event, event.version) for event in events.of(MODEL)] == [("loaded", 1), ("switched", 2)]

    counted = ShadowCountsTable(role, make=False)
    counted.append("r", "server", 0, counts(5))
    assert counted.of("r") == [counts(5)]
    with pytest.raises(LedgerError, match="permission denied"):
        open_ledger(home).append(MODEL, "promoted", 3, champion_after=3, who="server", why="", evidence="", expected_champion=2)
    before = open_ledger(home).raw(MODEL)
    as_server = sa.create_engine(with_driver(role), poolclass=sa.NullPool)
    for statement in FORBIDDEN:
        with pytest.raises(ProgrammingError, match="permission denied|must be owner"), as_server.begin() as connection:
            connection.exec_driver_sql(statement)
    assert open_ledger(home).raw(MODEL) == before and events.verify(MODEL) == [] and len(events.of(MODEL)) == 2
