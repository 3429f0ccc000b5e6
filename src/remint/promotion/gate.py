"""The gate: evidence and rules in, a decision with reasons out. Pure: no file, no clock, no vendor.

The challenger has the burden of proof. A rule holds, is open (chance can explain the numbers) or is broken. The worst of
them gives the verdict:

    rule          holds                                        open               broken
    require       the whole 95% interval is within bounds      -                  any other outcome
    improve       shown better by more than the margin         anything between   shown worse than the champion
    never_worse   shown worse by no more than the tolerance    anything between   shown worse by more than it
    verdict       promoted, or it awaits shadow or approval    kept               refused

``require`` checks the interval's far limit, not the value: a value at the bound is beyond it in half of all repetitions,
and an interval that is wide because of few examples must not open the gate. A challenger that is shown to be worse on the
metric that it should improve is refused, not kept: something broke, and a person should look. Missing, broken or
incomparable evidence refuses at any numbers.

"Shown" is one-sided at ``improve.confidence`` (0.95 for guards without ``improve``), by a bootstrap over pairs
(remint.promotion.paired): over examples for likelihoods, over repeated draws for metrics of samples. More comparisons give
chance more tries, so they share the error level (Bonferroni). One better ``improve.metric`` is enough to promote: these
metrics share that level. One comparison that shows the challenger worse is enough to refuse: all comparisons share that
level. The guards need no correction to hold: chance would have to pass all of them.

An interval over examples leaves out the randomness of training. Two trainings that differ in the seed alone do differ, and
with ``margin: 0`` the luckier one is promoted each time. ``margin: auto`` asks for more than seed-to-seed variation explains:
the gains of all nights over one champion, and of the seeds that ``remint spread`` recorded, are held together
(promotion/nights.py). A challenger that is worse by less than that variation is kept, not refused.

A schedule asks the same question every night. So the error level is one for the life of the model, and each try takes its
share (promotion/trials.py). The levels of the guards, and of a refusal, are those of one decision.

A version that a person rejected or rolled back is refused at any numbers, until a person promotes it.

A champion of another schema is compared on the held-out examples that it can describe, if they are at least half of all. If
it can describe fewer, or none, the requirements alone do not promote: the version awaits a person's approval.

With ``serving.shadow`` a version that would be promoted first answers copies of requests, and remint.promotion.shadow judges
it again by these answers. Without a champion there are no requests to copy. A person with ``approval: manual`` is asked last.

``leakage``: held-out examples that are also in the training split do not measure generalisation. Above a share of them the
challenger is refused; if the champion was trained on them, the two are not comparable.
"""

from __future__ import annotations

from remint.evaluation.evidence import Evidence
from remint.promotion import comparable, trials
from remint.promotion.comparable import Part
from remint.promotion.decision import Decision, RuleResult, ShadowTerms, Verdict
from remint.promotion.leaked import leakage_reason
from remint.promotion.rulings import (
    Case,
    Ruling,
    State,
    awaits_approval,
    awaits_shadow,
    evidence,
    improve,
    leakage,
    never_worse,
    require,
    schema,
    suggested,
    with_trial,
)
from remint.promotion.trials import Past
from remint.records import Leakage, digest
from remint.settings.judging import PromotionSettings
from remint.settings.shadow import ServingSettings
from remint.stores.ledger.spreads import SeedSpread

_VERDICTS: dict[State, Verdict] = {"holds": "promoted", "open": "kept", "broken": "refused"}


def decide(
    model: str,
    challenger: Evidence,
    challenger_version: int,
    champion: Evidence | None,
    champion_version: int | None,
    rules: PromotionSettings,
    *,
    dirty: str | None = None,  # the uncommitted changes; None: built from a clean commit
    person: str | None = None,  # a person's veto, in words; None: there is none
    incomparable: str | None = None,  # why the champion could not be evaluated; None: it was
    training_failure: str | None = None,  # how the training went wrong; None: it did not
    spread: SeedSpread | None = None,  # seed-to-seed variation of this pipeline; None: not measured
    recipe: str = "",  # digest of the challenger's recipe, as in SeedSpread
    champion_leakage: Leakage | None = None,  # into the champion's training split, if that is another one
    obstacle: str | None = None,  # why the champion, of another schema, can describe no example; None: it can
    part: Part | None = None,  # the examples that a champion of another schema can describe; None: all
    serving: ServingSettings | None = None,  # None: no shadow
    past: Past | None = None,  # earlier trials and the champion's recipe; None: there were none
) -> Decision:
    """Return the decision on one challenger, with every rule and every number.

    ``champion`` is the champion's evidence on the challenger's data, measured with today's settings. Bad evidence gives a
    refusal with its reason, never an exception and never a promotion.
    """
    sides = (model, challenger, challenger_version, champion, champion_version)
    found = (dirty, person, incomparable, training_failure)
    case = with_trial(Case(*sides, rules, spread, recipe, *found, champion_leakage, obstacle, part, past or Past()))
    rulings = _rulings(case)
    states = {ruling.state for ruling in rulings}
    worst: State = "broken" if "broken" in states else "open" if "open" in states else "holds"
    verdict = _VERDICTS[worst]
    reasons = [ruling.result.reason for ruling in rulings if ruling.state == worst]
    reasons += trials.told(model, case.past.trials, case.trial)
    if verdict == "kept" and any(ruling.result.rule == "schema" for ruling in rulings if ruling.state == "open"):
        verdict = "awaiting_approval"
    elif verdict == "promoted" and champion_version is not None and serving is not None and serving.shadow is not None:
        verdict = "awaiting_shadow"
        rulings.append(awaits_shadow(serving))
        reasons.append(rulings[-1].result.reason)
    elif verdict == "promoted" and rules.approval == "manual":
        verdict = "awaiting_approval"
        rulings.append(awaits_approval(model, challenger_version))
        reasons.append(rulings[-1].result.reason)
    sources = {
        "challenger": comparable.digest_of(challenger),
        **({"champion": comparable.digest_of(champion)} if champion else {}),
        **({"spread": spread.digest} if spread else {}),
        **({"part": comparable.digest_of(part.challenger)} if part else {}),
    }
    return Decision(
        model=model,
        verdict=verdict,
        challenger=challenger_version,
        champion=champion_version,
        rules=tuple(ruling.result for ruling in rulings),
        reasons=tuple(reasons),
        evidence={**sources, "rules": digest(rules.model_dump(mode="json"))},
        terms=ShadowTerms(serving=serving, promotion=rules) if serving and verdict == "awaiting_shadow" else None,
        trial=case.trial,
    )


def _rulings(case: Case) -> list[Ruling]:
    rules = case.rules
    if not rules.metrics():
        return [
            evidence(
                "broken",
                f"{case.model} has no promotion rules: write promotion.require or promotion.improve in params.yaml"
                + suggested(case, case.challenger.report.metrics),
            )
        ]
    if case.is_champion:
        return [
            evidence("open", f"it is the champion {case.model}/{case.champion_version} itself: same weights, data and settings")
        ]
    rulings = []
    if case.dirty is not None:
        uncommitted = f"{case.dirty}; commit and run again, or promote it yourself with a reason"
        rulings.append(Ruling("broken", RuleResult(rule="clean", passed=False, reason=uncommitted)))
    if case.person is not None:
        by_hand = f"{case.person}; only a person can promote it now"
        rulings.append(Ruling("broken", RuleResult(rule="person", passed=False, reason=by_hand)))
    if case.training_failure is not None:
        rulings.append(evidence("broken", f"{case.training_failure}; the gate does not promote a training that went wrong"))
    rulings.append(leakage(case, case.challenger.report.leakage))
    rulings += [require(case, metric) for metric in sorted(rules.required)]
    if case.is_first_version:
        if not rules.required:
            missing = "no champion, and no requirements for a first version: write promotion.require in params.yaml"
            rulings.append(evidence("broken", missing + suggested(case, rules.metrics())))
        return rulings
    if case.incomparable is not None:
        return [*rulings, evidence("broken", f"not comparable: {case.incomparable}")]
    if case.champion_leakage is not None and case.champion_leakage.share > rules.leakage:
        leaked = leakage_reason(case.champion_leakage, rules.leakage)
        seen = f"not comparable: the champion was trained on examples that are held out now: {leaked}"
        return [*rulings, evidence("broken", seen)]
    if case.obstacle is not None or case.part is not None:
        rulings.append(schema(case))
        if rulings[-1].state == "open":
            return rulings
    if rules.improve is not None:
        rulings += improve(case, rules.improve)
    return rulings + [never_worse(case, metric) for metric in sorted(rules.never_worse)]
