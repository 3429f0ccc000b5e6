"""Decisions stored with the versions against their digests in the ledger: remint history NAME --verify."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from remint.promotion.decision import Decision
from remint.promotion.projection import sync_mlflow_to_ledger
from remint.promotion.queries import history
from remint.runtime.home import Home
from remint.stores.ledger.collected import CollectedVersions
from remint.stores.mlflow import VersionTags
from remint.stores.open import open_ledger, open_tracking
from tests.support import promotion_cases as cases
from tests.support.promotion_cases import MODEL


@pytest.fixture
def home(registered: Home, tmp_path: Path) -> Home:
    """Make a home: version 1 promoted, 2 kept, both with decisions on this machine and in MLflow; 3 rejected by a person."""
    home = cases.copy_home(registered, tmp_path / "home")
    record_decision(home, decision(1, None, "promoted"))
    record_decision(home, decision(2, 1, "kept"))
    cases.append_row(home, "rejected", 3, evidence="", who="ada")
    sync_mlflow_to_ledger(home, MODEL)
    assert findings(home) == []
    return home


def decision(version: int, champion: int | None, verdict: str, reason: str = "by the rules") -> Decision:
    fields = {"model": MODEL, "verdict": verdict, "challenger": version, "champion": champion}
    return Decision.model_validate({**fields, "rules": (), "reasons": (reason,), "evidence": {"report": "r" * 64}})


def record_decision(home: Home, found: Decision) -> None:
    """Record a decision as a run does: append the row, then write the decision on this machine and in MLflow."""
    after = found.challenger if found.verdict == "promoted" else found.champion
    said = {"who": "gate", "why": "by the rules", "evidence": found.evidence["report"], "decision": found.digest}
    open_ledger(home).append(
        MODEL, found.verdict, found.challenger, champion_after=after, expected_champion=found.champion, **said
    )
    path = local_path(home, found.challenger)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.write(path)
    store = open_tracking(home)
    store.attach(store.version(f"{MODEL}/{found.challenger}"), {"decision.json": path})


def local_path(home: Home, version: int) -> Path:
    return home.report(MODEL, version) / "decision.json"


def path_in_mlflow(home: Home, version: int) -> Path:
    return cases.model_folder(home, version).parent / "decision.json"


def findings(home: Home) -> list[str]:
    return list(history(home, MODEL, verify=True).findings)


@pytest.mark.parametrize(("place", "where"), [(local_path, "on this machine"), (path_in_mlflow, "in MLflow")])
def test_a_changed_decision_is_reported_with_its_place(home: Home, place: object, where: str) -> None:
    path = place(home, 2)  # type: ignore[operator]
    said = [f"{MODEL}: the decision.json of version 2 {where} was changed or replaced: it does not match the digest in row 2"]
    decision(2, 1, "kept", "a better reason").write(path)
    assert findings(home) == said
    path.write_text("{not json")
    assert findings(home) == said
    decision(1, None, "promoted").write(path)  # the decision on another version
    assert findings(home) == said
    assert history(home, MODEL).findings == (), "only --verify compares"


def test_one_copy_of_a_decision_is_enough_and_no_copy_is_a_finding(home: Home) -> None:
    local_path(home, 1).unlink()
    path_in_mlflow(home, 2).unlink()
    assert findings(home) == []
    local_path(home, 2).unlink()
    said = "the decision.json of version 2, recorded in row 2, is missing on this machine and in MLflow"
    assert findings(home) == [f"{MODEL}: {said}"]
    CollectedVersions(home.ledger_url).record(MODEL, {2: "k" * 64})
    assert findings(home) == [], "remint gc removed that version"


def test_a_version_that_mlflow_no_longer_has_lacks_its_decision_there(home: Home) -> None:
    cases.delete_version(home, 2)
    assert findings(home) == []
    shutil.rmtree(home.report(MODEL, 2))
    assert any("the decision.json of version 2, recorded in row 2, is missing" in line for line in findings(home))


def test_a_changed_tag_alone_is_not_a_finding(home: Home) -> None:
    store = open_tracking(home)
    store.set_tags(store.version(f"{MODEL}/2"), VersionTags(decision_sha256="0" * 64))
    assert findings(home) == []


def test_a_changed_decision_is_found_even_if_the_tag_agrees_with_it(home: Home) -> None:
    other, store = decision(2, 1, "kept", "a better reason"), open_tracking(home)
    other.write(local_path(home, 2))
    store.set_tags(store.version(f"{MODEL}/2"), VersionTags(decision_sha256=other.digest))
    assert len(findings(home)) == 1


def test_a_changed_digest_in_a_row_breaks_the_chain(home: Home) -> None:
    other = decision(2, 1, "kept", "a better reason")
    for path in (local_path(home, 2), path_in_mlflow(home, 2)):
        other.write(path)
    cases.execute_sql(home, f"UPDATE ledger SET decision = '{other.digest}' WHERE sequence = 2")
    assert findings(home) == [f"{MODEL}: row 2 was changed: its hash does not match its content"]


def test_the_newest_decision_on_a_version_is_kept(home: Home) -> None:
    record_decision(home, decision(2, 1, "promoted"))
    assert findings(home) == []


def test_a_pending_decision_of_the_newest_row_is_not_a_finding(home: Home) -> None:
    record_decision(home, decision(2, 1, "promoted"))
    local_path(home, 2).rename(local_path(home, 2).with_name("pending_decision.json"))
    for path in (local_path(home, 2), path_in_mlflow(home, 2)):
        decision(2, 1, "kept").write(path)
    assert findings(home) == []


def test_an_unreachable_store_is_reported(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    with sqlite3.connect(home.path / "mlflow/mlflow.db") as database:
        database.execute("UPDATE runs SET artifact_uri = 's3://bucket/runs/' || run_uuid")
    (said,) = findings(home)
    assert said.startswith(f"{MODEL}: decisions in MLflow were not compared: MLflow could not fetch decision.json of {MODEL}/1")
    local_path(home, 1).write_text("{}")
    assert len(findings(home)) == 2, "what is on this machine is compared all the same"
