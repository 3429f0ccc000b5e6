"""Promote, reject and roll back on a real MLflow and ledger: a compare-and-swap in the ledger, then MLflow follows."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from remint.data import sources
from remint.errors import ApprovalExpired, ChampionChanged, DataError, IntegrityError, NotFoundError, SettingsError
from remint.promotion import decide, expiry
from remint.promotion.projection import current_version, sync_mlflow_to_ledger
from remint.promotion.why import sections, why
from remint.records import canonical
from remint.runtime.home import Home
from remint.runtime.manifest import sha256_file
from remint.settings.params import load_params, write_params
from remint.stores.ledger.collected import CollectedVersions
from remint.stores.ledger.row import LedgerRow
from remint.stores.mlflow import VersionTags
from remint.stores.open import fetch_bundle, open_ledger, open_tracking
from tests.support import promotion_cases as cases
from tests.support.promotion_cases import MODEL

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture
def home(registered: Home, tmp_path: Path) -> Home:
    return cases.copy_home(registered, tmp_path / "home")


@pytest.fixture
def checked_bundles(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace the check in a fresh process: it takes seconds, and few of these tests are about it. List the checked bundles."""
    checked: list[Path] = []

    def check(bundle: Path, log: Path) -> str:
        checked.append(bundle)
        return "not looked at"

    monkeypatch.setattr("remint.promotion.decide.fresh.check", check)
    return checked


def aliases(home: Home) -> dict[str, int]:
    return open_tracking(home).aliases(MODEL)


def rows(home: Home) -> list[LedgerRow]:
    return open_ledger(home).rows(MODEL)


@pytest.mark.parametrize("reason", ["", " \t", "\u200b\u00ad\ufeff", "\u3164\u2800"])
def test_a_decision_needs_a_reason_that_can_be_seen(home: Home, reason: str) -> None:
    cases.record_decision(home, "promoted", 1)
    ref = f"{MODEL}/2"
    acts = (lambda: decide.promote(home, ref, reason), lambda: decide.reject(home, ref, reason))
    for act in (*acts, lambda: decide.rollback(home, MODEL, reason)):
        with pytest.raises(SettingsError, match="a decision needs a reason"):
            act()
    assert len(rows(home)) == 1


@pytest.mark.slow
def test_a_person_promotes_a_version_that_awaits_approval(home: Home) -> None:
    """A fresh process loads the promoted model, because no record says that one has loaded it before."""
    cases.record_decision(home, "promoted", 1)
    cases.record_decision(home, "awaiting_approval", 2)
    cases.remove_verified_tag(home, 2)
    row = decide.promote(home, f"{MODEL}/2", "looked at the samples", who="ada")
    assert (row.action, row.champion_before, row.champion_after, row.who) == ("promoted", 1, 2, "ada")
    assert row.why == "looked at the samples" and row.evidence == ""
    assert aliases(home) == {"champion": 2}
    tags = open_tracking(home).version(f"{MODEL}/2").tags
    assert (tags.verdict, tags.ledger_hash, tags.ledger_row) == ("promoted", row.hash, "3")
    answer = why(home, MODEL)
    assert answer.approver is not None and answer.approver.who == "ada"
    assert "  looked at the samples" in dict(sections(answer))["Approved"]


def test_a_promotion_is_made_against_the_champion_that_the_version_was_judged_against(
    home: Home, checked_bundles: list[Path]
) -> None:
    cases.record_decision(home, "promoted", 1)
    cases.record_decision(home, "kept", 2)
    cases.record_decision(home, "promoted", 3)
    before = rows(home)
    with pytest.raises(
        ChampionChanged, match=rf"the champion is now {MODEL}/3 \(by gate, .* UTC\), but {MODEL}/2 should replace"
    ) as said:
        decide.promote(home, f"{MODEL}/2", "it is fine")
    assert f"replace {MODEL}/1. Nothing was written. Run `remint run {MODEL}` to judge it again, or give --against 3" in str(
        said.value
    )
    for stale in (1, 4, "none"):
        with pytest.raises(ChampionChanged, match="--against 3"):
            decide.promote(home, f"{MODEL}/2", "it is fine", against=stale)  # type: ignore[arg-type]
    assert rows(home) == before and checked_bundles == []
    decide.promote(home, f"{MODEL}/2", "knowingly", against=3)
    assert aliases(home) == {"champion": 2} and checked_bundles == [], (
        "a fresh process loaded these bytes when they were registered"
    )


def test_promoting_an_unjudged_version_requires_the_expected_champion(home: Home, checked_bundles: list[Path]) -> None:
    with pytest.raises(SettingsError, match=f"{MODEL}/1 was never judged. .*: --against none"):
        decide.promote(home, f"{MODEL}/1", "first")
    assert decide.promote(home, f"{MODEL}/1", "first", against="none").champion_after == 1
    with pytest.raises(SettingsError, match="is the champion already"):
        decide.promote(home, f"{MODEL}/1", "again", against=1)
    with pytest.raises(SettingsError, match=f"remint rollback {MODEL}"):
        decide.reject(home, f"{MODEL}/1", "no")


def test_a_promotion_during_the_check_of_the_files_wins(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    cases.record_decision(home, "promoted", 1)
    cases.record_decision(home, "kept", 2)

    def meanwhile(bundle: Path, log: Path) -> str:
        cases.append_row(home, "promoted", 3, who="eve")
        return ""

    cases.remove_verified_tag(home, 2)
    monkeypatch.setattr("remint.promotion.decide.fresh.check", meanwhile)
    with pytest.raises(ChampionChanged, match=rf"the champion is now {MODEL}/3 \(by eve"):
        decide.promote(home, f"{MODEL}/2", "mine")
    assert [row.version for row in rows(home)] == [1, 2, 3]


@pytest.mark.parametrize("damage", [cases.flip_bit, lambda home, version: shutil.rmtree(cases.model_folder(home, version))])
def test_a_damaged_version_is_not_promoted_even_if_a_local_copy_is_intact(
    home: Home, checked_bundles: list[Path], damage: object
) -> None:
    cases.record_decision(home, "promoted", 1)
    cases.record_decision(home, "kept", 2)
    fetch_bundle(home, current_version(home, f"{MODEL}/2"))
    damage(home, 2)  # type: ignore[operator]
    with pytest.raises(IntegrityError):
        decide.promote(home, f"{MODEL}/2", "it is fine")
    assert len(rows(home)) == 2 and aliases(home) == {"champion": 1, "challenger": 2} and checked_bundles == []


def test_a_model_that_does_not_load_in_a_fresh_process_is_not_promoted(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(bundle: Path, log: Path) -> str:
        raise IntegrityError("it draws other samples")

    cases.remove_verified_tag(home, 1)
    monkeypatch.setattr("remint.promotion.decide.fresh.check", check)
    with pytest.raises(IntegrityError, match="other samples"):
        decide.promote(home, f"{MODEL}/1", "first", against="none")
    assert rows(home) == [] and aliases(home) == {}


def test_rejecting_a_version_keeps_the_champion(home: Home) -> None:
    cases.record_decision(home, "promoted", 1)
    cases.record_decision(home, "awaiting_approval", 2)
    row = decide.reject(home, f"{MODEL}/2", "smears the sevens", who="ada")
    assert (row.champion_before, row.champion_after, row.version) == (1, 1, 2)
    assert (
        decide.objection(open_ledger(home).rows(MODEL, 2)) == f"{MODEL}/2 was rejected on {row.at[:10]} by ada: smears the sevens"
    )
    with pytest.raises(ChampionChanged, match="was rejected on .* by ada: smears the sevens: nothing was written; decide again"):
        cases.append_row(home, "promoted", 2)  # the gate, which had judged it before the rejection
    with pytest.raises(ChampionChanged, match="was rejected"):
        cases.append_row(home, "awaiting_approval", 2)
    cases.append_row(home, "refused", 2)
    cases.append_row(home, "promoted", 2, evidence="", who="eve")  # a person may promote it
    assert decide.objection(open_ledger(home).rows(MODEL, 2)) is None
    cases.append_row(home, "promoted", 1)
    cases.append_row(home, "promoted", 2)


def test_a_veto_outlives_collection_and_a_new_registration(home: Home) -> None:
    cases.record_decision(home, "promoted", 1)
    decide.reject(home, f"{MODEL}/2", "smears the sevens", who="ada")
    first = open_tracking(home).version(f"{MODEL}/2")
    cases.delete_version(home, 2)
    CollectedVersions(home.ledger_url).record(MODEL, {2: first.key})
    again = cases.register_model(home, seed=1)
    assert again.key == first.key and again.version not in (1, 2), "a number is given once"
    veto = decide.vetoed_by(home, again)
    assert veto is not None and veto.startswith(f"{MODEL}/2 was rejected on ") and veto.endswith(" by ada: smears the sevens")
    assert decide.vetoed_by(home, open_tracking(home).version(f"{MODEL}/1")) is None
    cases.append_row(home, "promoted", again.version, evidence="", who="eve")
    assert decide.vetoed_by(home, again) is None


def test_a_rollback_restores_the_previous_champion(home: Home, checked_bundles: list[Path]) -> None:
    for version in (1, 2, 3):
        cases.record_decision(home, "promoted", version)
    row = decide.rollback(home, MODEL, "the sevens blur", who="ada")
    assert (row.action, row.version, row.champion_before, row.champion_after) == ("rolled_back", 3, 3, 2)
    assert row.why == "the sevens blur" and row.evidence == "" and aliases(home) == {"champion": 2}
    store = open_tracking(home)
    left, back = (store.version(f"{MODEL}/{version}").tags for version in (3, 2))
    assert (left.verdict, left.ledger_hash) == ("rolled_back", row.hash)
    assert (back.verdict, back.ledger_hash, back.ledger_row) == ("promoted", row.hash, "4")
    approver = why(home, MODEL).to_json()["approver"]
    assert approver == {"who": "ada", "action": "rolled_back", "at": row.at, "why": "the sevens blur"}
    again = decide.rollback(home, MODEL, "worse still", who="ada")
    assert again.champion_after == 1, "what was rolled back is not gone back to"
    assert again.why.splitlines() == [
        "worse still",
        f"skipped: {MODEL}/3 was rolled back on {row.at[:10]} by ada: the sevens blur",
    ]
    with pytest.raises(
        IntegrityError, match=f"no former champion of {MODEL} can be restored; nothing was written: {MODEL}/2 was rolled"
    ):
        decide.rollback(home, MODEL, "and again")
    assert len(rows(home)) == 5
    decide.promote(home, f"{MODEL}/3", "after all", against=1)
    assert decide.rollback(home, MODEL, "no").champion_after == 1


def test_a_rollback_skips_champions_that_do_not_load_and_says_why(home: Home, checked_bundles: list[Path]) -> None:
    for version in (1, 2, 3, 4):
        cases.record_decision(home, "promoted", version)
    fetch_bundle(home, current_version(home, f"{MODEL}/3"))
    cases.flip_bit(home, 3)
    cases.delete_version(home, 2)
    row = decide.rollback(home, MODEL, "bad")
    assert row.champion_after == 1
    _, damaged, gone = row.why.splitlines()
    assert damaged.startswith(f"skipped: {MODEL}/3 does not load: ") and "weights.safetensors is damaged" in damaged
    assert gone.startswith(f"skipped: {MODEL}/2 does not load: {MODEL} has no version 2")


def test_a_rollback_without_a_previous_champion_is_refused(home: Home) -> None:
    with pytest.raises(NotFoundError, match="has no champion to roll back from"):
        decide.rollback(home, MODEL, "bad")
    cases.record_decision(home, "promoted", 1)
    with pytest.raises(NotFoundError, match=f"{MODEL}/1 is the first champion of {MODEL}"):
        decide.rollback(home, MODEL, "bad")
    assert len(rows(home)) == 1


def test_a_rollback_from_a_deleted_champion_works(home: Home, checked_bundles: list[Path]) -> None:
    for version in (1, 2):
        cases.record_decision(home, "promoted", version)
    cases.delete_version(home, 2)
    assert sync_mlflow_to_ledger(home, MODEL) == [] and aliases(home) == {}, "it stands for nothing, rather than for another"
    assert decide.rollback(home, MODEL, "gone").champion_after == 1
    assert aliases(home) == {"champion": 1}


def test_an_approval_expires_when_the_data_changed(home: Home, checked_bundles: list[Path]) -> None:
    cases.record_decision(home, "promoted", 1)
    cases.record_decision(home, "awaiting_approval", 2)
    store = open_tracking(home)
    assert expiry.data_changed(home, store.version(f"{MODEL}/2"), open_ledger(home).rows(MODEL, 2)) is None
    store.set_tags(store.version(f"{MODEL}/4"), VersionTags(dataset="e" * 64))  # registered last
    with pytest.raises(
        ApprovalExpired, match=rf"approval of {MODEL}/2 expired: {MODEL}/4 has other data since then .*eeee.* --against 1"
    ) as said:
        decide.promote(home, f"{MODEL}/2", "fine")
    assert "\n" not in str(said.value) and len(rows(home)) == 2
    assert decide.promote(home, f"{MODEL}/2", "knowingly", against=1).champion_after == 2


def test_an_approval_expires_when_an_older_version_was_judged_on_other_data(home: Home, checked_bundles: list[Path]) -> None:
    store = open_tracking(home)
    store.set_tags(store.version(f"{MODEL}/1"), VersionTags(dataset="e" * 64))
    cases.record_decision(home, "promoted", 1)
    cases.record_decision(home, "awaiting_approval", 4)
    assert expiry.data_changed(home, store.version(f"{MODEL}/4"), open_ledger(home).rows(MODEL, 4)) is None
    cases.record_decision(home, "kept", 1)  # the source gives the former data again
    with pytest.raises(ApprovalExpired, match=f"{MODEL}/1 has other data since then"):
        decide.promote(home, f"{MODEL}/4", "fine")


@pytest.mark.parametrize("verdict", ["kept", "refused"])
def test_a_version_that_awaits_no_approval_does_not_expire(home: Home, checked_bundles: list[Path], verdict: str) -> None:
    cases.record_decision(home, "promoted", 1)
    cases.record_decision(home, verdict, 2)  # type: ignore[arg-type]
    store = open_tracking(home)
    store.set_tags(store.version(f"{MODEL}/4"), VersionTags(dataset="e" * 64))
    assert decide.promote(home, f"{MODEL}/2", "over the gate").champion_after == 2


@pytest.mark.parametrize(("held_out", "file"), [(0.2, "x.npy"), ("./y.npy", "x.npy"), ("./y.npy", "y.npy")])
def test_an_approval_expires_when_a_small_source_holds_other_data(home: Home, held_out: float | str, file: str) -> None:
    block = {"source": "x.npy", "kind": "image", "shape": [1, 4, 4], "levels": 5, "split": {"held_out": held_out}}
    write_params({"datasets": {"digits": block}, "pipelines": {}}, home.repository)
    x_NCHW = np.random.default_rng(0).integers(0, 5, (20, 1, 4, 4), dtype=np.uint8)
    np.save(home.repository / "x.npy", x_NCHW)
    np.save(home.repository / "y.npy", x_NCHW[:5])
    sources.snapshot("digits", load_params(home.repository).datasets["digits"], home.repository, home.path / "raw")
    data = canonical({"name": "digits", "source": "x.npy", "raw_sha256": sha256_file(home.path / "raw" / "data.npz")})
    store = open_tracking(home)
    store.set_tags(store.version(f"{MODEL}/4"), VersionTags(data=data))
    cases.record_decision(home, "awaiting_approval", 4)

    def changed() -> str | None:
        return expiry.data_changed(home, store.version(f"{MODEL}/4"), open_ledger(home).rows(MODEL, 4))

    assert changed() is None
    np.save(home.repository / file, x_NCHW[::-1])
    assert changed() == f"{'x.npy' if held_out == 0.2 else 'x.npy or ./y.npy'} changed since then"
    (home.repository / file).write_bytes(b"no array")
    assert (changed() or "").startswith("its data can no longer be read: ")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "snapshot", Mock(side_effect=DataError("the data do not fit:\n  column 'a' is new\nrepair them")))
        assert changed() == "its data can no longer be read: the data do not fit: column 'a' is new"
    (home.repository / "params.yaml").write_text("datasets: nonsense")
    assert changed() is None, "settings that are broken tell nothing of the data"
