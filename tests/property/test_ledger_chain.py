"""The ledger agrees with a small model after any sequence of decisions, and any damage is found."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from remint.errors import ChampionChanged
from remint.stores.ledger.chain import CHAMPION_ACTIONS, Ledger

VERSIONS = st.integers(1, 4)
MODELS = st.sampled_from(["a", "b"])
COLUMNS = {
    "action": "'x'",
    "champion_before": "77",
    "champion_after": "77",
    "version": "77",
    "who": "'x'",
    "why": "'x'",
    "evidence": "'x'",
    "decision": "'x'",
}


class Promotions(RuleBasedStateMachine):
    """Append with right and wrong expectations, through two handles, and read the rows from disk each time."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.url = f"sqlite:///{self.folder.name}/ledger.db"
        self.written: dict[str, list[tuple[str, int, int | None]]] = {"a": [], "b": []}

    def teardown(self) -> None:
        self.folder.cleanup()

    def champion(self, model: str) -> int | None:
        return self.written[model][-1][2] if self.written[model] else None

    @rule(
        model=MODELS,
        action=st.sampled_from(
            ["promoted", "kept", "refused", "awaiting_approval", "awaiting_shadow", "rejected", "rolled_back"]
        ),
        version=VERSIONS,
        back_to=st.none() | VERSIONS,
        expected=st.just("present") | st.none() | VERSIONS,
    )
    def append(self, model: str, action: str, version: int, back_to: int | None, expected: str | int | None) -> None:
        present = self.champion(model)
        expected = present if expected == "present" else expected
        after = {"promoted": version, "rolled_back": back_to}.get(action, expected)
        try:
            Ledger(self.url).append(
                model, action, version, champion_after=after, who="w", why="y", evidence="", expected_champion=expected
            )
        except ChampionChanged:
            assert expected != present
        else:
            assert expected == present
            self.written[model].append((action, version, after))

    @invariant()
    def agrees(self) -> None:
        ledger = Ledger(self.url)
        for model, written in self.written.items():
            rows = ledger.rows(model)
            assert [(row.action, row.version, row.champion_after) for row in rows] == written
            assert ledger.champion(model) == self.champion(model)
            assert ledger.verify(model, known=[row.hash for row in rows]) == []
            changes = [row for row in rows if row.champion_before != row.champion_after]
            assert all(row.action in CHAMPION_ACTIONS for row in changes)


TestPromotions = Promotions.TestCase
TestPromotions.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), length=st.integers(1, 5))
def test_any_edit_of_any_row_is_found_and_named(data: st.DataObject, length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        ledger = Ledger(f"sqlite:///{path}")
        for version in range(1, length + 1):
            ledger.append(
                "m",
                "promoted",
                version,
                champion_after=version,
                who="w",
                why="y",
                evidence="",
                expected_champion=version - 1 or None,
            )
        column = data.draw(st.sampled_from(sorted(COLUMNS)))
        victim = data.draw(st.integers(1, length))
        connection = sqlite3.connect(path)
        connection.execute(f"UPDATE ledger SET {column} = {COLUMNS[column]} WHERE sequence = {victim}")
        connection.commit()
        connection.close()
        assert f"m: row {victim} was changed: its hash does not match its content" in ledger.verify("m")
