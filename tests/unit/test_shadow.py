"""Shadow: its settings, its intervals, the gate's rules on it, and how a version that awaits it is settled."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, ks_2samp

from remint.errors import IntegrityError, SettingsError
from remint.promotion import decide, gate, kept_decisions, shadow
from remint.promotion.decision import Decision
from remint.promotion.page import write
from remint.promotion.queries import kept_decision
from remint.promotion.shadow import decide_again, judge_waiting
from remint.promotion.shadow_report import ShadowReport, summarise
from remint.promotion.why import why
from remint.runtime.home import Home
from remint.settings.params import read_params, validate_params
from remint.settings.shadow import ServingSettings
from remint.stores.ledger.chain import Ledger
from remint.stores.ledger.row import LedgerRow
from remint.stores.ledger.shadow_counts import ShadowCounts, ShadowCountsTable
from remint.stores.open import open_ledger, open_serving_events, open_shadow_counts, open_tracking
from tests.support import promotion_cases as cases
from tests.support.promotion_cases import MODEL
from tests.support.shadow_cases import SERVING, counts, record_waiting, waiting
from tests.support.team import SOURCE
from tests.unit.test_gate import RULES, evidence


@pytest.fixture
def home(registered: Home, tmp_path: Path) -> Home:
    home = cases.copy_home(registered, tmp_path / "home")
    cases.record_decision(home, "promoted", 1)
    return home


def report(*parts: ShadowCounts) -> ShadowReport:
    return summarise(MODEL, 2, 1, "r" * 64, parts)


# Settings


def params(serving: dict[str, Any], **promotion: Any) -> None:
    content = read_params(SOURCE)
    block = content["pipelines"]["digits-vae"]
    block["serving"] = serving
    block["promotion"] = {**block["promotion"], **promotion}
    validate_params(content)


def bound(metric: str, **limits: float) -> dict[str, Any]:
    return {"require": {"iwae": {"max": 2.43}, metric: limits}}


REQUIRED = {"iwae": {"max": 2.43}, "shadow_error_rate": {"max": 0.001}}


@pytest.mark.parametrize(
    ("serving", "promotion", "words"),
    [
        (
            {"shadow": 0.1},
            {"improve": {"metric": "shadow_latency"}},
            "promotion: improve: shadow_latency is measured on requests",
        ),
        ({"shadow": 0.1}, {"never_worse": {"shadow_latency": 1.0}}, "never_worse: shadow_latency is measured on requests"),
        ({}, {"require": REQUIRED}, "promotion.require: shadow_error_rate needs serving.shadow"),
        ({"shadow": 0.1}, {"require": REQUIRED}, "1,000 serving.answers cannot show a shadow_error_rate of at most 0.001: their"),
        ({"shadow": 0.1}, {"require": REQUIRED}, "interval reaches 0.0037 without an error: raise it to 3,688"),
        (
            {"shadow": 0.1},
            bound("shadow_error_rate", max=0),
            "at most 0: their interval reaches 0.0037 without an error: raise the",
        ),
        (
            {"shadow": 0.1},
            bound("shadow_score_distance", max=0.05),
            "interval reaches 0.094 without a difference: raise it to 3,506",
        ),
        ({"shadow": 0.1}, bound("shadow_score_distance", max=1e-200), "reaches 0.094 without a difference: raise the bound"),
        ({"shadow": 0.1}, bound("shadow_score_distance", max=0), "at most 0: their interval reaches 0.094 without a difference"),
        ({"shadow": 0.1}, bound("shadow_latency", max=-1), "shadow_latency is the version's seconds over the champion's: max is"),
        ({"shadow": 0.1}, bound("shadow_latency", max=0), "shadow_latency is the version's seconds over the champion's: max is"),
        ({"shadow": 0.1}, bound("shadow_latency", min=1), "shadow_latency is better when it is lower: give max only"),
        ({"shadow": 0.1}, {"require": {"shadow_errors": {"max": 1}}}, "did you mean 'shadow_error_rate'?"),
        ({"answers": 50}, {}, "serving: shadow: missing: give the share"),
        ({"shadow": 0.0}, {}, "serving.shadow: input should be greater than 0"),
        ({"shadow": 0.1, "deadline": "two days"}, {}, "serving.deadline: expected a duration, such as 90m"),
        ({"shadow": 0.1, "answer": 50}, {}, "did you mean 'answers'?"),
    ],
)
def test_a_shadow_that_cannot_decide_is_refused_in_one_line(
    serving: dict[str, Any], promotion: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        params(serving, **promotion)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_answers_that_the_error_names_are_enough() -> None:
    params({"shadow": 0.1, "answers": 3688}, require=REQUIRED)
    with pytest.raises(SettingsError):
        params({"shadow": 0.1, "answers": 3687}, require=REQUIRED)
    distance = bound("shadow_score_distance", max=0.05)
    params({"shadow": 0.1, "answers": 3506}, **distance)
    with pytest.raises(SettingsError):
        params({"shadow": 0.1, "answers": 3505}, **distance)
    same = report(counts(3506, scores=[(a, a) for a in np.random.default_rng(2).standard_normal(3506)]))
    assert 0.0499 < same.metrics["shadow_score_distance"].high <= 0.05
    params({"shadow": 0.1}, **bound("shadow_latency", max=1.5))
    assert [ServingSettings(shadow=0.1, deadline=each).seconds for each in ("5s", "90m", "2d")] == [5, 5_400, 172_800]


# Intervals


@pytest.mark.parametrize(("errors", "n"), [(0, 1000), (3, 1000), (50, 50), (1, 7)])
def test_the_error_rate_has_the_interval_of_clopper_and_pearson(errors: int, n: int) -> None:
    found = report(counts(n, {"sample: RuntimeError": errors})).metrics["shadow_error_rate"]
    low = beta.ppf(0.025, errors, n - errors + 1) if errors else 0.0
    high = beta.ppf(0.975, errors + 1, n - errors) if errors < n else 1.0
    assert (found.value, found.n) == (errors / n, n)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_the_intervals_of_latency_and_scores_cover_the_truth() -> None:
    """Of 400 repeats each interval misses its truth in 5% at most; 30 is six deviations above 5% of them, less the slack."""
    dice, missed = np.random.default_rng(0), {"shadow_latency": 0, "shadow_score_distance": 0}
    distance = math.erf(0.25 / math.sqrt(2.0))  # between N(0, 1) and N(0.5, 1), at 0.25
    for _ in range(400):
        ratios = dice.lognormal(math.log(1.3), 0.8, 41)
        base = dice.standard_normal(200)
        pairs = list(zip(base, base * 0.3 + dice.standard_normal(200) * math.sqrt(0.91) + 0.5, strict=True))
        found = report(counts(200, seconds=[(0.01, 0.01 * ratio) for ratio in ratios], scores=pairs)).metrics
        for name, truth in (("shadow_latency", 1.3), ("shadow_score_distance", distance)):
            missed[name] += not found[name].low <= truth <= found[name].high
    assert missed["shadow_latency"] <= 30 and missed["shadow_score_distance"] <= 30
    assert missed["shadow_latency"] > 0, "an interval that always covers is too wide"


def test_the_distance_of_scores_is_that_of_kolmogorov_and_smirnov() -> None:
    dice = np.random.default_rng(1)
    pairs = list(zip(dice.integers(0, 20, 300).astype(float), dice.integers(5, 25, 300).astype(float), strict=True))
    found = report(counts(300, scores=pairs)).metrics["shadow_score_distance"]
    assert found.value == pytest.approx(ks_2samp(*zip(*pairs, strict=True)).statistic)
    assert report(counts(300, scores=[(a, a) for a, _ in pairs])).metrics["shadow_score_distance"].value == 0.0


def test_parts_of_several_servers_add_up_and_a_metric_without_values_is_missing() -> None:
    a = counts(60, {"encode: DataError": 2}, [(0.1, 0.2)] * 4, [(1.0, 2.0)], "a", dropped=3)
    b = counts(40, {"encode: DataError": 1, "sample: not finite": 1}, [(0.1, 0.4)] * 5, [(1.0, 3.0)], "b", dropped=1)
    both = report(a, b)
    whole = counts(100, {"encode: DataError": 3, "sample: not finite": 1}, [*a.seconds, *b.seconds], [*a.scores, *b.scores])
    assert both.metrics == report(whole).metrics
    assert (both.n, both.dropped, both.hosts) == (100, 4, ("a", "b"))
    assert both.errors == {"encode: DataError": 3, "sample: not finite": 1}
    assert report(counts(5)).metrics.keys() == {"shadow_error_rate"} and report().metrics == {}


# Gate


def judged(challenger: float, serving: ServingSettings | None, champion: float | None = 1.9, **more: Any) -> Decision:
    rival = None if champion is None else evidence(champion, key="champion", noise=2)
    return gate.decide("m", evidence(challenger), 2, rival, None if champion is None else 1, RULES, serving=serving, **more)


ON = ServingSettings.model_validate(SERVING)


@pytest.mark.parametrize("challenger", [1.5, 1.8999, 2.2, 2.6])
def test_only_a_version_that_would_be_promoted_awaits_shadow(challenger: float) -> None:
    without, asked = judged(challenger, None), judged(challenger, ON)
    assert asked.verdict == {"promoted": "awaiting_shadow"}.get(without.verdict, without.verdict)
    assert judged(challenger, ServingSettings()) == without
    if asked.verdict == "awaiting_shadow":
        assert asked.terms is not None and asked.terms.serving == ON and asked.reasons[:-1] == without.reasons
        assert Decision.model_validate_json(asked.model_dump_json()).digest == asked.digest
    else:
        assert asked == without


def test_a_first_version_has_no_requests_to_answer() -> None:
    rules = type(RULES).model_validate({"require": {"nll": {"max": 2.43}, "shadow_error_rate": {"max": 0.1}}})
    assert judged(1.9, ON, None).verdict == "promoted"
    assert gate.decide("m", evidence(1.9), 2, None, None, rules, serving=ON).verdict == "promoted"


def test_a_requirement_on_the_shadow_alone_promotes_nothing() -> None:
    rules = type(RULES).model_validate({"require": {"shadow_error_rate": {"max": 0.1}}})
    decision = gate.decide("m", evidence(1.5), 2, evidence(1.9, key="champion"), 1, rules, serving=ON)
    assert decision.verdict == "refused" and "has no promotion rules" in decision.reasons[0]


def test_the_shadow_comes_before_the_person() -> None:
    manual = RULES.model_copy(update={"approval": "manual"})
    asked = gate.decide("m", evidence(1.5), 2, evidence(1.9, key="champion", noise=2), 1, manual, serving=ON)
    assert asked.verdict == "awaiting_shadow"
    again = decide_again(asked, report(counts(100)))
    assert again.verdict == "awaiting_approval" and "remint promote m/2" in again.reasons[-1]
    assert decide_again(asked, report(counts(99))).verdict == "refused"


def test_missing_answers_refuse() -> None:
    for parts in ([], [counts(60), counts(39)]):
        found = decide_again(waiting(), report(*parts))
        assert found.verdict == "refused" and "it needs 100 within 1h" in found.reasons[0]
        assert [rule.rule for rule in found.rules] == ["improve", "evidence"]
    found = decide_again(waiting(), report(counts(60), counts(40)))
    assert (
        found.verdict == "promoted" and found.terms is None and found.evidence["shadow"] == report(counts(60), counts(40)).digest
    )


def test_without_a_bound_no_copy_may_fail() -> None:
    found = decide_again(waiting(), report(counts(100, {"encode: DataError": 1})))
    assert found.verdict == "refused" and "it did not: 1 x encode: DataError" in found.reasons[0]
    allowed = waiting(require={"shadow_error_rate": {"max": 0.06}})
    assert decide_again(allowed, report(counts(100, {"encode: DataError": 1}))).verdict == "promoted"


def test_a_required_metric_that_was_not_measured_refuses() -> None:
    for metric in ("shadow_latency", "shadow_score_distance"):
        found = decide_again(waiting(require={metric: {"max": 1e6}}), report(counts(100)))
        assert found.verdict == "refused" and f"requirement {metric} not met: no copy has such values" in found.reasons[0]


@settings(max_examples=200, deadline=None)
@given(
    copies=st.integers(0, 300),
    failed=st.integers(0, 300),
    ratio=st.floats(0.2, 5.0),
    most_errors=st.none() | st.floats(0.01, 1.0),
    most_latency=st.none() | st.floats(0.2, 5.0),
    manual=st.booleans(),
)
def test_only_enough_answers_within_the_far_limits_promote(
    copies: int, failed: int, ratio: float, most_errors: float | None, most_latency: float | None, manual: bool
) -> None:
    failed = min(failed, copies)
    bounds = {"shadow_error_rate": most_errors, "shadow_latency": most_latency}
    required = {metric: {"max": most} for metric, most in bounds.items() if most is not None}
    found_report = report(counts(copies, {"x": failed} if failed else {}, [(1.0, ratio)] * (copies - failed)))
    found = decide_again(waiting(require=required, approval="manual" if manual else "auto"), found_report)
    metrics = found_report.metrics
    holds = copies >= 100 and (most_errors is not None or not failed)
    for metric, most in bounds.items():
        holds = holds and (most is None or (metric in metrics and metrics[metric].high <= most))
    assert found.verdict == (("awaiting_approval" if manual else "promoted") if holds else "refused")


# Counts in the ledger's database


def test_a_part_is_written_once_however_often_it_is_sent(tmp_path: Path) -> None:
    table = ShadowCountsTable(f"sqlite:///{tmp_path}/ledger.db")
    for _ in range(2):
        table.append("r", "server", 0, counts(5))
    table.append("r", "server", 1, counts(6))
    table.append("other", "server", 0, counts(9))
    assert [part.copies for part in table.of("r")] == [5, 6] and table.of("none") == []


def test_damaged_counts_are_named(home: Home) -> None:
    open_shadow_counts(home).append("r" * 64, "server", 0, counts(5))
    cases.execute_sql(home, "UPDATE shadow_counts SET counts = '{}'")
    with pytest.raises(IntegrityError, match="shadow counts of the ledger's row rrrrrrrrrrrr are damaged"):
        open_shadow_counts(home).of("r" * 64)


def test_the_newest_version_that_awaits_shadow_against_the_present_champion_is_found(home: Home) -> None:
    book = open_ledger(home)
    assert book.awaiting_shadow(MODEL) is None
    second, third = record_waiting(home, waiting(2)), record_waiting(home, waiting(3))
    cases.append_row(home, "kept", 4)
    assert book.awaiting_shadow(MODEL) == third
    decide.reject(home, f"{MODEL}/3", "no")
    assert book.awaiting_shadow(MODEL) == second
    cases.append_row(home, "promoted", 4)
    assert book.awaiting_shadow(MODEL) is None


# Settling


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.announced: list[tuple[Decision, LedgerRow]] = []

    def judge(self, home: Home) -> list[LedgerRow]:
        self.lines.clear()
        return judge_waiting(
            home, MODEL, self.lines.append, lambda _, __, decision, row, ___: self.announced.append((decision, row))
        )


def answered(home: Home, row: LedgerRow, part: ShadowCounts, server: str = "s") -> None:
    open_shadow_counts(home).append(row.hash, server, 0, part)


def test_enough_answers_promote_and_everything_follows_the_row(home: Home) -> None:
    row, said = record_waiting(home, waiting()), Said()
    (home.report(MODEL, 2) / write.NAME).write_text("<p><!-- since 2 --><!-- /since --></p>")
    open_serving_events(home).append(MODEL, "shadowed", 2, "host-7", "it passed")
    assert said.judge(home) == [] and "no server asked it of 100" in said.lines[0]
    answered(home, row, counts(60), "a")
    assert said.judge(home) == [] and "60 copies of requests on a" in said.lines[0]
    answered(home, row, counts(50), "b")
    (new,) = said.judge(home)
    assert (new.action, new.version, new.champion_after, new.who, new.evidence) == ("promoted", 2, 2, "gate", row.evidence)
    assert said.lines == [
        f"{MODEL}/2 awaited shadow; promoted: it answered 110 copies of requests on a, 2026-11-30 10:00 to 2026-11-30 11:00 UTC"
    ]
    assert open_tracking(home).aliases(MODEL) == {"champion": 2}
    kept = ShadowReport.read(home.report(MODEL, 2) / "shadow.json")
    version = open_tracking(home).version(f"{MODEL}/2")
    assert (
        open_tracking(home).attachment(version, "shadow.json", home.path / "back").read_text()
        == (home.report(MODEL, 2) / "shadow.json").read_text()
    )
    decision = kept_decision(home, version)
    assert decision is not None and decision.evidence["shadow"] == kept.digest and decision.digest == new.decision
    assert kept.digest[:12] in new.why and kept_decisions.differences(home, MODEL, open_ledger(home).raw(MODEL)) == []
    page = (home.report(MODEL, 2) / write.NAME).read_text()
    assert "110 copies of requests on a, 2026-11-30 10:00 to 2026-11-30 11:00 UTC; 0 more were dropped" in page
    assert "<b>promoted</b>" in page and "shadow_error_rate" in page and "host-7" in page
    assert said.announced == [(decision, new)] and said.judge(home) == [] and said.lines == []
    open_serving_events(home).append(MODEL, "switched", 2, "host-8", "it passed")
    why(home, f"{MODEL}/2")
    assert "host-8" in (home.report(MODEL, 2) / write.NAME).read_text(), "why brings the page up to date"


def test_the_deadline_refuses(home: Home) -> None:
    row = record_waiting(home, waiting(), at=datetime.now(UTC) - timedelta(hours=1))
    answered(home, row, counts(99))
    said = Said()
    (new,) = said.judge(home)
    assert (new.action, new.champion_after) == ("refused", 1) and "it needs 100 within 1h" in new.why
    assert f"{MODEL}/2 awaited shadow; refused: 99 copies" in said.lines[0]


def test_the_reason_at_the_deadline_names_the_servers_that_refused_it(home: Home) -> None:
    record_waiting(home, waiting(), at=datetime.now(UTC) - timedelta(hours=1))
    events = open_serving_events(home)
    for host, event in (("host-7", "refused"), ("host-8", "refused"), ("host-8", "shadowed")):
        events.append(MODEL, event, 2, host, "as a shadow: it is damaged")  # type: ignore[arg-type]
    (new,) = Said().judge(home)
    assert "host-7 refused it: as a shadow: it is damaged" in new.why and "host-8" not in new.why
    assert "Does `remint serve` run?" not in new.why


@pytest.mark.parametrize("answers", [0, 100])
def test_a_version_that_was_deleted_is_refused_at_once(home: Home, answers: int) -> None:
    answered(home, record_waiting(home, waiting()), counts(answers))
    cases.delete_version(home, 2)
    (new,) = Said().judge(home)
    assert (new.action, new.version, new.champion_after) == ("refused", 2, 1) and f"{MODEL} has no version 2" in new.why
    assert Said().judge(home) == [] and open_ledger(home).awaiting_shadow(MODEL) is None
    assert not (home.report(MODEL, 2) / kept_decisions.PENDING).exists()


def test_damaged_counts_refuse_at_once(home: Home) -> None:
    answered(home, record_waiting(home, waiting()), counts(100))
    cases.execute_sql(home, "UPDATE shadow_counts SET counts = '{}'")
    (new,) = Said().judge(home)
    assert new.action == "refused" and "are damaged" in new.why


def test_a_changed_report_is_found(home: Home) -> None:
    answered(home, record_waiting(home, waiting()), counts(100))
    Said().judge(home)
    path = home.report(MODEL, 2) / "shadow.json"
    path.write_text(path.read_text().replace('"n": 100', '"n": 900'))
    (line,) = kept_decisions.differences(home, MODEL, open_ledger(home).raw(MODEL))
    assert line == f"{MODEL}: the shadow.json of version 2 on this machine was changed: its decision has another digest"


def test_answers_of_an_earlier_wait_do_not_count(home: Home) -> None:
    answered(home, record_waiting(home, waiting()), counts(100))
    record_waiting(home, waiting())
    assert Said().judge(home) == []


def test_another_champion_or_a_person_ends_the_wait(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(home, record_waiting(home, waiting(2)), counts(100))
    answered(home, record_waiting(home, waiting(3)), counts(100))
    said, append = Said(), Ledger.append

    def rejected_meanwhile(book: Ledger, *given: Any, **more: Any) -> LedgerRow:
        monkeypatch.setattr(Ledger, "append", append)
        decide.reject(home, f"{MODEL}/2", "no")
        return append(book, *given, **more)

    monkeypatch.setattr(Ledger, "append", rejected_meanwhile)
    assert [(row.version, row.action) for row in said.judge(home)] == [(3, "promoted")]
    assert f"{MODEL}/2 awaits shadow, and was not judged: {MODEL}/2 was rejected" in said.lines[0]
    answered(home, record_waiting(home, waiting(4, champion=3)), counts(100))
    decide.rollback(home, MODEL, "it blurs")
    assert said.judge(home) == []


def test_a_person_need_not_wait(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide.fresh, "check", lambda *_: "not looked at")
    answered(home, record_waiting(home, waiting()), counts(100, {"encode: DataError": 100}))
    assert decide.promote(home, f"{MODEL}/2", "it fixes a leak", who="ada").champion_after == 2
    assert Said().judge(home) == [] and open_ledger(home).awaiting_shadow(MODEL) is None


def test_damaged_bytes_are_refused(home: Home) -> None:
    answered(home, record_waiting(home, waiting()), counts(100))
    cases.flip_bit(home, 2)
    (new,) = Said().judge(home)
    assert new.action == "refused" and "weights.safetensors" in new.why


@pytest.mark.parametrize("dies_at", ["sync_mlflow_to_ledger", "open_tracking"])
def test_a_process_that_dies_is_finished_by_the_next_one(home: Home, monkeypatch: pytest.MonkeyPatch, dies_at: str) -> None:
    answered(home, record_waiting(home, waiting()), counts(100))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shadow, dies_at, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        Said().judge(home)
    said = Said()
    said.judge(home)
    assert open_tracking(home).aliases(MODEL) == {"champion": 2}
    assert [row.action for row in open_ledger(home).rows(MODEL)] == ["promoted", "awaiting_shadow", "promoted"]
    assert len(said.announced) == 1 and not (home.report(MODEL, 2) / kept_decisions.PENDING).exists()


def test_a_decision_that_is_not_kept_is_told_and_decides_nothing(home: Home) -> None:
    answered(home, record_waiting(home, waiting()), counts(100))
    (home.report(MODEL, 2) / kept_decisions.DECISION).write_text("{}")
    said = Said()
    assert said.judge(home) == [] and f"its decision is not kept: run `remint run {MODEL}`" in said.lines[0]
