"""Roots of garbage collection: versions that must never be removed, each with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from remint.promotion.roots import Root, champions, root_reasons, roots
from remint.runtime import jobs
from remint.runtime.home import Home
from remint.stores.ledger.chain import Ledger, awaiting
from remint.stores.ledger.collected import CollectedVersions
from remint.stores.mlflow import VersionTags
from remint.stores.open import open_ledger, open_tracking
from tests.support import registry_cases as cases

pytestmark = pytest.mark.usefixtures("forked")


def decide(chain: Ledger, action: str, version: int, after: int | None, before: int | None) -> None:
    chain.append(
        "m", action, version, champion_after=after, who="w", why="y", evidence=f"{action}{version}", expected_champion=before
    )


@pytest.fixture
def chain(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path}/ledger.db")


def test_champions_are_listed_newest_first_without_duplicates(chain: Ledger) -> None:
    for version in (1, 2, 3):
        decide(chain, "promoted", version, version, version - 1 or None)
    decide(chain, "kept", 4, 3, 3)
    assert champions(chain.rows("m")) == [3, 2, 1]


def test_a_rolled_back_or_rejected_champion_is_not_a_rollback_target(chain: Ledger) -> None:
    decide(chain, "promoted", 1, 1, None)
    decide(chain, "promoted", 2, 2, 1)
    decide(chain, "promoted", 3, 3, 2)
    decide(chain, "rejected", 1, 3, 3)
    chain.append("m", "rolled_back", 3, champion_after=2, who="w", why="y", evidence="", expected_champion=3)
    assert champions(chain.rows("m")) == [2]


def test_a_collected_champion_does_not_count_towards_the_window(chain: Ledger) -> None:
    for version in (1, 2, 3):
        decide(chain, "promoted", version, version, version - 1 or None)
    assert champions(chain.rows("m"), {2}) == [3, 1]
    assert champions(chain.rows("m"), {3}) == [3, 2, 1], "the present champion is one even so"


def waiting(chain: Ledger) -> list[int]:
    return [row.version for row in awaiting(chain.rows("m"), "awaiting_approval")]


def test_an_approval_is_pending_until_a_decision_or_another_promotion(chain: Ledger) -> None:
    decide(chain, "promoted", 1, 1, None)
    decide(chain, "awaiting_approval", 2, 1, 1)
    decide(chain, "awaiting_approval", 3, 1, 1)
    assert waiting(chain) == [2, 3]
    decide(chain, "rejected", 3, 1, 1)
    assert waiting(chain) == [2]
    decide(chain, "promoted", 4, 4, 1)
    assert waiting(chain) == []


def test_collected_versions_are_recorded_once(tmp_path: Path) -> None:
    gone = CollectedVersions(f"sqlite:///{tmp_path}/ledger.db")
    gone.record("m", {1: "a", 3: "b"})
    gone.record("m", {3: "b", 4: "a"})
    gone.record("other", {9: "a"})
    assert CollectedVersions(f"sqlite:///{tmp_path}/ledger.db").versions("m") == {1, 3, 4}
    assert gone.versions("m", "a") == {1, 4} and gone.versions("m", "c") == frozenset()


@pytest.mark.slow
def test_each_root_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Home(tmp_path, tmp_path / "home").ensure()
    store, chain = open_tracking(home), open_ledger(home)
    for seed in range(6):
        cases.make_bundle(tmp_path / f"bundle{seed}", seed, pipeline="m")
        cases.register(store, tmp_path / f"bundle{seed}")
    for version in (1, 2, 3):
        decide(chain, "promoted", version, version, version - 1 or None)
    store.set_tags(store.version("m/5"), VersionTags(keep="a paper cites it"))
    store.set_alias("m", "shadow", 6)
    with jobs.live(home, pipeline="m") as job:
        found = roots(home, window=2)
        assert [type(root) for root in found] == [Root] * 4
        assert {root.version.ref: root.why for root in found} == {
            "m/2": "former champion 1, kept for a rollback",
            "m/3": f"champion of the ledger, running job {job.id} compares its model with it",
            "m/5": "kept by tag: a paper cites it",
            "m/6": "@shadow",
        }
    store._client.delete_model_version("m", "3")
    assert set(root_reasons(home)) == {"m/1", "m/2", "m/3", "m/5", "m/6"}, (
        "the ledger's champion is one, though MLflow has lost it"
    )
    assert {root.version.ref for root in roots(home)} == {"m/1", "m/2", "m/5", "m/6"}
