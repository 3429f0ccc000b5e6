"""MLflow follows the ledger after any interruption, and the hashes in MLflow reveal changes of the ledger."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from remint.errors import LedgerError, NotFoundError
from remint.promotion import queries
from remint.promotion.projection import current_version, sync_mlflow_to_ledger
from remint.promotion.why import why
from remint.records import digest
from remint.runtime.home import Home
from remint.stores.ledger.chain import Action, projection
from remint.stores.ledger.database import Database
from remint.stores.open import open_ledger, open_tracking
from tests.support import promotion_cases as cases
from tests.support.promotion_cases import MODEL

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture
def home(registered: Home, tmp_path: Path) -> Home:
    return cases.copy_home(registered, tmp_path / "home")


def tags(home: Home, version: int) -> dict[str, str]:
    found = open_tracking(home).version(f"{MODEL}/{version}").tags.to_json()
    return {key: found.get(key, "") for key in ("verdict", "ledger_hash", "ledger_row")}


def test_aliases_follow_the_last_row(home: Home) -> None:
    book = open_ledger(home)
    assert projection([]) == {"champion": None, "challenger": None}
    said = []
    for action, version in (
        ("promoted", 1),
        ("kept", 2),
        ("awaiting_approval", 3),
        ("rejected", 3),
        ("promoted", 3),
        ("kept", 3),
    ):
        cases.append_row(home, action, version, evidence="" if action == "rejected" or version == 3 else "e")  # type: ignore[arg-type]
        said.append(tuple(projection(book.rows(MODEL)).values()))
    book.append(MODEL, "rolled_back", 3, champion_after=1, who="ada", why="", evidence="", expected_champion=3)
    said.append(tuple(projection(book.rows(MODEL)).values()))
    assert said == [(1, None), (1, 2), (1, 3), (1, 3), (3, None), (3, None), (1, None)]


def test_the_next_command_completes_what_a_crash_interrupted(home: Home) -> None:
    """Three processes in turn died between the ledger and MLflow."""
    first, second, third = (cases.append_row(home, *what) for what in (("promoted", 1), ("refused", 2), ("promoted", 3)))  # type: ignore[arg-type]
    assert open_tracking(home).aliases(MODEL) == {} and tags(home, 3)["verdict"] == ""
    said = sync_mlflow_to_ledger(home, MODEL)
    assert f"{MODEL}@champion named nothing; it names {MODEL}/3 now, as the ledger does" in said and len(said) == 4
    assert open_tracking(home).aliases(MODEL) == {"champion": 3}
    for version, row in ((1, first), (2, second), (3, third)):
        assert tags(home, version) == {"verdict": row.action, "ledger_hash": row.hash, "ledger_row": str(row.sequence)}
    assert sync_mlflow_to_ledger(home, MODEL) == []


@pytest.mark.parametrize("touch", ["models", "why", "history --verify", "version"])
def test_every_query_that_needs_mlflow_synchronises_first(home: Home, touch: str) -> None:
    cases.record_decision(home, "promoted", 1)
    row = cases.append_row(home, "promoted", 2)
    asked = {
        "models": lambda: queries.models(home, MODEL),
        "why": lambda: why(home, f"{MODEL}@champion"),
        "history --verify": lambda: queries.history(home, MODEL, verify=True),
        "version": lambda: current_version(home, MODEL),
    }
    asked[touch]()
    assert open_tracking(home).aliases(MODEL) == {"champion": 2} and tags(home, 2)["ledger_hash"] == row.hash


def test_the_description_of_a_version_says_the_newest_decision_and_its_reasons(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, store = open_ledger(home), open_tracking(home)
    store.set_description(store.version(f"{MODEL}/3"), "the one of the paper")

    def decide(action: Action, version: int, why: str, after: int | None) -> list[str]:
        book.append(
            MODEL, action, version, champion_after=after, who="ada", why=why, evidence="", expected_champion=book.champion(MODEL),
            at=datetime(2026, 5, 1, tzinfo=UTC),
        )  # fmt: skip
        sync_mlflow_to_ledger(home, MODEL)
        return [store.version(f"{MODEL}/{number}").description for number in (1, 2, 3)]

    own = "the one of the paper"
    kept = f"{MODEL}/2 was kept on 2026-05-01 by ada: a; b"
    promoted = [f"{MODEL}/{number} was promoted on 2026-05-01 by ada: better" for number in (1, 2)]
    assert decide("promoted", 1, "better", 1) == [promoted[0], "", own]
    assert decide("kept", 2, "a\nb", 1) == [promoted[0], kept, own]
    assert decide("promoted", 2, "better", 2) == [*promoted, own]
    assert decide("promoted", 3, "better", 3) == [*promoted, own]
    monkeypatch.setenv("TEAM_PASSWORD", "correct-horse")
    back = f"{MODEL}/3 was rolled back on 2026-05-01 by ada: it says ***"
    assert decide("rolled_back", 3, "it says correct-horse", 1)[0] == f"{MODEL}/1 is in production again: {back}"
    assert len(decide("kept", 2, "a" * 9000, 1)[1]) == 5000


@pytest.mark.parametrize(("alias", "to"), [("champion", 2), ("champion", None), ("challenger", 3)])
def test_an_edited_alias_is_restored_from_the_ledger(home: Home, alias: str, to: int | None) -> None:
    cases.record_decision(home, "promoted", 1)
    open_tracking(home).set_alias(MODEL, alias, to)
    (said,) = sync_mlflow_to_ledger(home, MODEL)
    assert said.startswith(f"{MODEL}@{alias} named ") and open_tracking(home).aliases(MODEL) == {"champion": 1}


def test_without_differences_only_one_row_and_one_entry_are_read(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    for version in (1, 2, 3):
        cases.record_decision(home, "promoted", version)
    made: list[str] = []
    asked: list[str] = []

    def count(*arguments: object) -> None:
        made.append(str(arguments[2]))

    engine = Database(home.ledger_url)._engine
    sa.event.listen(engine, "before_cursor_execute", count)

    def asks(name: str, real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is threading.main_thread():  # others log the load to runs that other tests left open
                asked.append(name)
            return real(*arguments, **named)

        return call

    for name in [each for each in dir(MlflowClient) if not each.startswith("_")]:
        if callable(real := getattr(MlflowClient, name)):
            monkeypatch.setattr(MlflowClient, name, asks(name, real))
    assert sync_mlflow_to_ledger(home, MODEL) == []
    sa.event.remove(engine, "before_cursor_execute", count)
    (query,) = [each for each in made if "FROM ledger" in each and "ledger_schema" not in each]
    assert "LIMIT" in query
    assert asked == ["search_registered_models"]


def test_an_edited_last_row_makes_no_champion_and_nothing_is_appended_to_it(home: Home) -> None:
    cases.record_decision(home, "promoted", 1)
    cases.record_decision(home, "kept", 2)
    before = open_tracking(home).aliases(MODEL)
    cases.execute_sql(home, "UPDATE ledger SET champion_after = 2, action = 'promoted' WHERE sequence = 2")
    for touch in (
        lambda: sync_mlflow_to_ledger(home, MODEL),
        lambda: queries.models(home, MODEL),
        lambda: cases.append_row(home, "kept", 3),
        lambda: open_ledger(home).champion(MODEL),
    ):
        with pytest.raises(LedgerError, match=f"row 2 of {MODEL} in the ledger was changed outside remint"):
            touch()
    assert open_tracking(home).aliases(MODEL) == before and len(open_ledger(home).rows(MODEL)) == 2


def test_a_model_without_decisions_is_left_alone(home: Home) -> None:
    open_tracking(home).set_alias(MODEL, "champion", 1)  # a model that only MLflow manages
    assert sync_mlflow_to_ledger(home, MODEL) == [] and sync_mlflow_to_ledger(home, "nobody") == []
    assert open_tracking(home).aliases(MODEL) == {"champion": 1}


def findings(home: Home) -> list[str]:
    return list(queries.history(home, MODEL, verify=True).findings)


def test_an_intact_history_verifies_against_the_hashes_in_mlflow(home: Home) -> None:
    for action, version in (("promoted", 1), ("refused", 2), ("promoted", 3)):
        cases.record_decision(home, action, version)  # type: ignore[arg-type]
    answer = queries.history(home, MODEL, verify=True)
    assert answer.findings == () and answer.kept_hashes == 3 and len(answer.rows) == 3
    assert queries.history(home, MODEL).kept_hashes == 0
    with pytest.raises(NotFoundError, match="unknown model"):
        queries.history(home, "digits-flo", verify=True)


def test_a_truncated_ledger_is_found_and_stays_found(home: Home) -> None:
    for version in (1, 2, 3):
        cases.record_decision(home, "promoted", version)
    cases.execute_sql(home, "DELETE FROM ledger WHERE sequence = 3")
    assert queries.history(home, MODEL).findings == (), "from within it looks whole"
    for _ in range(2):  # and no command overwrites the evidence
        (said,) = findings(home)
        assert said.startswith(
            f"{MODEL}: row 3, whose hash is a tag of {MODEL}/3, is gone or was rewritten: no row has its hash "
        )
        queries.models(home, MODEL)
    cases.record_decision(home, "promoted", 2 if open_ledger(home).champion(MODEL) != 2 else 1)
    assert len(findings(home)) == 1


def test_the_hash_of_a_missing_row_on_a_version_is_not_overwritten(home: Home) -> None:
    cases.record_decision(home, "promoted", 1)
    lost = cases.record_decision(home, "kept", 1)
    cases.execute_sql(home, "DELETE FROM ledger WHERE sequence = 2")
    sync_mlflow_to_ledger(home, MODEL)
    assert tags(home, 1)["ledger_hash"] == lost.hash


def test_the_loss_of_rows_without_a_promotion_is_found(home: Home) -> None:
    cases.record_decision(home, "promoted", 1)
    cases.record_decision(home, "refused", 2)
    cases.delete_version(home, 2)
    cases.execute_sql(home, "DELETE FROM ledger WHERE sequence = 2")
    assert findings(home)[0].startswith(
        f"{MODEL}: row 2, the newest that the aliases of {MODEL} followed, is gone or was rewritten"
    )


def test_a_rewritten_ledger_is_found(home: Home) -> None:
    for version in (1, 2, 3):
        cases.record_decision(home, "promoted", version)
    forged, previous = [], ""
    for row in open_ledger(home).rows(MODEL):
        said = {**row.to_json(), "why": "the committee agreed", "previous": previous}
        del said["hash"], said["decision"], said["trial"]  # these are ""
        previous = digest(said)
        forged.append(
            f"UPDATE ledger SET why = '{said['why']}', previous = '{said['previous']}', hash = '{previous}' WHERE sequence = {row.sequence}"
        )
    cases.execute_sql(home, *forged)
    assert queries.history(home, MODEL).findings == ()
    said = findings(home)
    assert len(said) == 3 and all(
        any(f"row {number}, whose hash is a tag of {MODEL}/{number}," in line for line in said) for number in (1, 2, 3)
    )


def test_an_emptied_ledger_is_found(home: Home) -> None:
    cases.record_decision(home, "promoted", 1)
    cases.execute_sql(home, "DELETE FROM ledger")
    with pytest.raises(NotFoundError):
        queries.history(home, MODEL)
    (said,) = findings(home)
    assert f"row 1, whose hash is a tag of {MODEL}/1, is gone" in said


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ("UPDATE ledger SET why = 'bribed' WHERE sequence = 2", "row 2 was changed"),
        ("UPDATE ledger SET action = 'blessed' WHERE sequence = 3", "row 3 was changed"),
        ("UPDATE ledger SET why = x'00ff' WHERE sequence = 1", "row 1 was changed"),
        ("DELETE FROM ledger WHERE sequence = 2", "row 2 removed"),
    ],
)
def test_an_edited_row_is_named_and_the_history_is_still_shown(home: Home, edit: str, says: str) -> None:
    for version in (1, 2, 3):
        cases.record_decision(home, "promoted", version)
    cases.execute_sql(home, edit)
    assert any(says in line for line in findings(home)), findings(home)
