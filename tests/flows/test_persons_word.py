"""Decisions of a person outlast scheduled runs: judge, settle and the ledger, without training.

Ledger, MLflow and gate are real. The tests write the evidence in place of training and evaluation, and omit Prefect's
artifacts and the page (tests/e2e has them).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows import approval, artifacts
from flows.artifacts import announce
from remint.errors import SettingsError
from remint.evaluation.evidence import Evidence
from remint.promotion import champion, decide, settlement
from remint.promotion.judge import Judgement, judge_version
from remint.promotion.outcome import Outcome
from remint.promotion.page import write
from remint.promotion.projection import current_version, sync_mlflow_to_ledger
from remint.promotion.retraining import Retraining
from remint.promotion.settlement import settle, settled_before
from remint.records import DatasetVersion, EvaluationReport, Leakage, MetricValue, TrainedModel
from remint.runtime.home import Home
from remint.stores.git import Commit
from remint.stores.mlflow import ModelVersion, Tracking
from remint.stores.open import open_ledger, open_tracking
from tests.support import promotion_cases as cases
from tests.support.promotion_cases import MODEL
from tests.support.registry_cases import SPEC
from tests.support.retraining_cases import CLEAN_COMMIT, Events, params_of, retraining, write_records
from tests.support.trials import Trials

pytestmark = pytest.mark.usefixtures("forked")

RULES = {"require": {"nll": {"max": 2.43}}, "improve": {"metric": "nll"}}
MEAN = {1: 2.0, 2: 1.9, 3: 1.8}  # each version is better than the one before
DATASET = DatasetVersion(
    name="digits", source="s", raw_sha256="0" * 64, spec=SPEC, split={}, counts={}, files={"held_out.npy": ""}
)


@pytest.fixture
def home(registered: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    def page(_job: Retraining, _version: ModelVersion, judgement: Judgement, _row: Any, folder: Path) -> Path:
        (folder / "report.html").write_text(judgement.decision.verdict)
        return folder / "report.html"

    def measured(job: Retraining, _own: Evidence, holder: int) -> champion.ChampionEvidence:
        return champion.ChampionEvidence(evidence_of(job.home, holder))

    monkeypatch.setattr(write, "write", page)
    monkeypatch.setattr(artifacts, "show_decision", lambda *_: None)
    monkeypatch.setattr(artifacts, "tell_awaiting", lambda *_: None)
    monkeypatch.setattr(approval, "ask", lambda row: f"form {row.sequence}")
    monkeypatch.setattr(champion, "evidence", measured)
    monkeypatch.setattr("remint.promotion.decide.fresh.check", lambda *_: "not looked at")
    return cases.copy_home(registered, tmp_path / "home")


def trained_of(home: Home, version: int) -> TrainedModel:
    return TrainedModel.read(home.path / "bundles" / str(version - 1) / "training.json")


def evidence_of(home: Home, version: int) -> Evidence:
    values_N = 0.1 * np.random.default_rng(version).standard_normal(300)
    values_N += MEAN[version] - values_N.mean()
    near = {"low": MEAN[version] - 0.02, "high": MEAN[version] + 0.02}
    value = MetricValue(name="nll", value=MEAN[version], n=300, seed=0, fingerprint={"K": 1}, **near)
    trained = trained_of(home, version)
    report = EvaluationReport(
        pipeline=MODEL,
        model_key=trained.key,
        weights_sha256=trained.weights_sha256,
        dataset="d" * 64,
        metrics={"nll": value},
        leakage=Leakage(checked=300, exact=0, near=0, tolerance="equal"),
    )
    return Evidence(report, {"nll": values_N})


@contextmanager
def retraining_of(
    home: Home, version: int, commit: Commit = CLEAN_COMMIT, events: Events | None = None, **rules: Any
) -> Iterator[tuple[Retraining, Evidence]]:
    """Open the retraining that trained this version. Yield it and its evidence."""
    params = params_of(MODEL, evaluation={"metrics": ["nll"]}, promotion={**RULES, **rules})
    with retraining(home, params, MODEL, commit=commit, events=events) as job:
        write_records(job, DATASET, trained_of(home, version), evidence_of(home, version))
        yield job, Evidence.load(job.out("reports"))


def run_gate(home: Home, version: int, commit: Commit = CLEAN_COMMIT, events: Events | None = None, **rules: Any) -> Outcome:
    """Run the end of flows/retrain.py after a training with this version as its result."""
    with retraining_of(home, version, commit, events, **rules) as (job, evidence):
        found = settled_before(job, evidence, announce)
        if found is not None:
            return found
        registered = cases.register_model(home, version - 1, dirty=str(commit.dirty).lower(), commit=commit.sha)
        home.report(MODEL, version).mkdir(parents=True, exist_ok=True)
        return settle(job, registered, evidence, judge_version(job, registered, evidence), announce)


def verdict(answer: Outcome) -> tuple[str, bool, int | None]:
    return answer.decision.verdict, answer.unchanged, answer.champion


@pytest.mark.parametrize(("name", "reason"), [("\u200b\u3164", "it blurs"), ("ada", "\u2060 ")])
def test_an_answer_in_prefect_needs_a_name_and_a_reason_that_can_be_seen(home: Home, name: str, reason: str) -> None:
    answer = approval.Answer(decision="reject", reason=reason, your_name=name)
    with pytest.raises(SettingsError, match="an answer needs your_name and a reason"):
        approval._carry_out(home, f"{MODEL}/2", answer)


def test_the_next_scheduled_run_does_not_promote_a_rolled_back_version(home: Home) -> None:
    assert verdict(run_gate(home, 1)) == ("promoted", False, 1)
    assert verdict(run_gate(home, 2)) == ("promoted", False, 2)
    decide.rollback(home, MODEL, "the sevens blur", who="ada")
    count = len(open_ledger(home).rows(MODEL))
    for _ in range(2):
        assert verdict(run_gate(home, 2)) == ("rolled_back", True, 1), "the same evidence: nothing is judged again"
    assert len(open_ledger(home).rows(MODEL)) == count

    other = run_gate(
        home, 2, require={"nll": {"max": 2.5}}
    )  # other rules: it is judged again, and it is better than the champion
    assert verdict(other) == ("refused", False, 1)
    reason, *_ = other.decision.reasons
    assert reason.startswith(f"{MODEL}/2 was rolled back on 20") and reason.endswith(
        " by ada: the sevens blur; only a person can promote it now"
    )
    assert [(rule.rule, rule.passed) for rule in other.decision.rules] == [
        ("person", False),
        ("leakage", True),
        ("require", True),
        ("improve", True),
    ]
    assert verdict(run_gate(home, 2)) == ("rolled_back", True, 1), "and the first rules are no way around it"

    assert verdict(run_gate(home, 3)) == ("promoted", False, 3), "a version that nobody spoke against"
    assert verdict(run_gate(home, 2, require={"nll": {"max": 2.6}}))[0] == "refused"
    decide.promote(home, f"{MODEL}/2", "looked again", against=3, who="eve")
    assert decide.objection(open_ledger(home).rows(MODEL, 2)) is None, "a person's promotion clears it"
    assert open_tracking(home).aliases(MODEL) == {"champion": 2}


def test_a_version_refused_for_missing_evidence_is_judged_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    run_gate(home, 1)
    with monkeypatch.context() as patch:
        patch.setattr(
            champion,
            "evidence",
            lambda *_: champion.ChampionEvidence(unavailable_reason="champion digits-flow/1: its files are gone"),
        )
        for _ in range(2):
            assert verdict(run_gate(home, 2)) == ("refused", False, 1)
    assert verdict(run_gate(home, 2)) == ("promoted", False, 2), "its files were put back, and nothing else changed"
    assert verdict(run_gate(home, 2)) == ("promoted", True, 2)


def test_a_version_rejected_while_it_was_judged_is_refused(home: Home) -> None:
    run_gate(home, 1)
    registered = registered_version(home, 2)
    with retraining_of(home, 2) as (job, evidence):
        judgement = judge_version(job, registered, evidence)
        assert judgement.decision.verdict == "promoted"
        decide.reject(home, f"{MODEL}/2", "smears", who="ada")
        answer = settle(job, registered, evidence, judgement, announce)
    assert verdict(answer) == ("refused", False, 1) and "was rejected on" in answer.decision.reasons[0]


def test_an_approval_is_requested_once_and_a_person_decides(home: Home) -> None:
    assert verdict(run_gate(home, 1)) == ("promoted", False, 1)
    first, second = Events(), Events()
    assert verdict(run_gate(home, 2, events=first, approval="manual")) == ("awaiting_approval", False, 1)
    assert verdict(run_gate(home, 2, events=second, approval="manual")) == ("awaiting_approval", True, 1)
    form = f"{MODEL}/2 can also be approved in Prefect: resume the run form 2 of approve/{MODEL}"
    assert ("notice", {"text": form}) in first and not [event for event, _ in second if event == "notice"]
    decide.promote(home, f"{MODEL}/2", "looked", who="ada")
    assert verdict(run_gate(home, 2, approval="manual")) == ("promoted", True, 2)
    assert [row.who for row in open_ledger(home).rows(MODEL)] == ["gate", "gate", "ada"]


def test_a_pending_approval_is_judged_again_after_the_champion_changed(home: Home) -> None:
    run_gate(home, 1)
    assert verdict(run_gate(home, 3, approval="manual")) == ("awaiting_approval", False, 1)
    assert verdict(run_gate(home, 2)) == ("promoted", False, 2)
    assert verdict(run_gate(home, 3, approval="manual")) == ("awaiting_approval", False, 2)


def test_uncommitted_work_is_refused_until_it_is_committed_or_a_person_promotes_it(home: Home) -> None:
    run_gate(home, 1)
    dirty = Commit("f" * 40, dirty=True, changed=("src/model.py",))
    answer = run_gate(home, 2, dirty)
    assert verdict(answer) == ("refused", False, 1)
    assert answer.decision.reasons[0].startswith("uncommitted changes in src/model.py;")
    assert verdict(run_gate(home, 2, dirty)) == ("refused", True, 1)
    assert verdict(run_gate(home, 2)) == ("promoted", False, 2), "a clean commit that gives the same key clears the mark"
    assert verdict(run_gate(home, 1, dirty))[0] == "refused"
    assert verdict(run_gate(home, 1))[1:] == (False, 2), "what was said of uncommitted work is not said of the clean commit"
    assert verdict(run_gate(home, 3, dirty))[0] == "refused"
    decide.promote(home, f"{MODEL}/3", "an emergency", who="ada")
    assert open_tracking(home).aliases(MODEL) == {"champion": 3}


def test_a_run_repairs_the_champion_alias_before_it_measures_the_champion(home: Home) -> None:
    run_gate(home, 1)
    cases.append_row(home, "promoted", 2)
    registered, events = registered_version(home, 3), Events()
    with retraining_of(home, 3, events=events) as (job, evidence):
        assert judge_version(job, registered, evidence).decision.champion == 2
    assert open_tracking(home).aliases(MODEL) == {"champion": 2}
    assert any(event == "notice" and f"names {MODEL}/2 now" in fields["text"] for event, fields in events)


@pytest.mark.parametrize("point", ["project", "page", "attach", "set_tags", "artifacts"])
def test_the_next_run_completes_the_effects_of_a_row_after_a_crash(
    home: Home, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    run_gate(home, 1)
    registered, tracking = registered_version(home, 2), open_tracking(home)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    owner, name = {
        "project": (settlement, "sync_mlflow_to_ledger"),
        "page": (write, "write"),
        "attach": (Tracking, "attach"),
        "set_tags": (Tracking, "set_tags"),
        "artifacts": (artifacts, "show_decision"),
    }[point]
    with retraining_of(home, 2) as (job, evidence):
        judgement = judge_version(job, registered, evidence)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, interrupt)
            settle(job, registered, evidence, judgement, announce)
    assert verdict(run_gate(home, 2)) == ("promoted", True, 2)
    assert [row.version for row in open_ledger(home).rows(MODEL)] == [1, 2]
    assert tracking.aliases(MODEL) == {"champion": 2}
    version = tracking.version(f"{MODEL}/2")
    assert version.tags.decision_sha256 == judgement.decision.digest
    kept = [tracking.attachment(version, name, home.path / "got") for name in ("decision.json", "report.html")]
    assert [path.read_text() for path in kept] == [(home.report(MODEL, 2) / path.name).read_text() for path in kept]
    assert sorted(path.name for path in home.report(MODEL, 2).iterdir()) == ["decision.json", "report.html"]


def test_a_decision_without_a_ledger_row_does_not_count(home: Home) -> None:
    """The process died before it wrote the row, and an older row has the same evidence."""
    run_gate(home, 1)
    run_gate(home, 2)
    with retraining_of(home, 2) as (job, evidence):
        decision = judge_version(job, current_version(home, f"{MODEL}/2"), evidence).decision
    decision.model_copy(update={"verdict": "refused"}).write(home.report(MODEL, 2) / "pending_decision.json")
    assert verdict(run_gate(home, 2)) == ("kept", False, 2), "judged again"
    assert sorted(path.name for path in home.report(MODEL, 2).iterdir()) == ["decision.json", "report.html"]


@pytest.mark.case(15)
def test_of_two_gates_at_once_the_better_version_stays_champion(home: Home, trials: Trials) -> None:
    """Both are better than the champion, and each was judged against it. The second one is judged again, against the first."""
    run_gate(home, 1)
    versions = {number: registered_version(home, number) for number in (2, 3)}
    for trial in trials(short=2, full=500):
        start, verdicts = threading.Barrier(2), dict[int, str]()

        def race(number: int) -> None:
            job, evidence = found[number]  # noqa: B023
            start.wait(60)  # noqa: B023
            time.sleep(delays[number])  # noqa: B023
            answer = settle(job, versions[number], evidence, judgements[number], announce)  # noqa: B023
            verdicts[number] = answer.decision.verdict  # noqa: B023

        with ExitStack() as stack:
            found = {number: stack.enter_context(retraining_of(home, number)) for number in (2, 3)}
            judgements = {number: judge_version(job, versions[number], evidence) for number, (job, evidence) in found.items()}
            assert {judgement.decision.verdict for judgement in judgements.values()} == {"promoted"}
            delays = {number: trial.random.uniform(0.0, 0.01) for number in (2, 3)}
            threads = [threading.Thread(target=race, args=(number,)) for number in (2, 3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert verdicts[3] == "promoted" and verdicts[2] in ("promoted", "refused", "kept")
        sync_mlflow_to_ledger(home, MODEL)
        assert open_ledger(home).champion(MODEL) == 3 and open_tracking(home).aliases(MODEL)["champion"] == 3
        trial.note(races=1, wins_of_the_worse=0, worse_came_first=verdicts[2] == "promoted")
        decide.promote(home, f"{MODEL}/1", "the next race", against=3, who="ada")


def registered_version(home: Home, version: int) -> ModelVersion:
    """Return a version that is registered and not yet judged."""
    home.report(MODEL, version).mkdir(parents=True, exist_ok=True)
    return open_tracking(home).version(f"{MODEL}/{version}")
