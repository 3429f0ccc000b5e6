"""Tries of the gate over the life of a model: their cost, and what does not cost or reset anything."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remint.errors import LedgerError
from remint.evaluation.levels import share
from remint.promotion import trials
from remint.promotion.trials import Night, Past, Trial, draws, following
from remint.records import canonical
from remint.stores.ledger.chain import Ledger
from remint.stores.ledger.row import LedgerRow
from remint.stores.ledger.seen import MOST, SeenExamples, ages, sha256
from remint.stores.ledger.spreads import SeedSpread


def night(key: str, gain: float = 0.1, **more: Any) -> Night:
    usual = {
        "recipe": "r",
        "champion": 1,
        "champion_recipe": "r",
        "confidence": 0.95,
        "auto": True,
        "ages": ((0, 1.0),),
        "metrics": 1,
    }
    return Night(key=key, **{**usual, "gains": {"nll": (gain, 0.05)}, **more})


def life(*nights: Night) -> list[Trial]:
    made: list[Trial] = []
    for each in nights:
        made.append(following(made, each))
    return made


def test_the_tries_of_a_life_never_spend_more_than_the_budget() -> None:
    dice = np.random.default_rng(0)
    nights = [night(f"k{n}", recipe=f"r{dice.integers(40)}", champion=int(1 + n // 50)) for n in range(400)]
    made = life(*nights)
    assert all(before.spent < after.spent < 1.0 for before, after in pairwise(made))
    assert made[-1].number == 400 and made[-1].spent == pytest.approx(sum(trial.weight for trial in made))


def test_a_replay_of_the_same_weights_costs_nothing_and_counts_once() -> None:
    first, again, other = life(night("a", 0.3), night("a", 0.3), night("b", 0.2))
    assert (again.number, again.weight, again.spent, again.asked) == (1, 0.0, first.spent, first.asked)
    assert draws([first], again, "nll").nights_N == (0.3,)
    assert other.number == 2 and draws([first, again], other, "nll").nights_N == (0.3, 0.2)
    last = following([first, again, other], night("a", 0.3))
    assert draws([first, again, other], last, "nll").nights_N == (0.3, 0.2)


def test_another_metric_or_champion_resets_no_budget() -> None:
    made = life(night("a"), night("b", gains={"iwae": (0.1, 0.05)}), night("c", champion=2))
    assert [trial.number for trial in made] == [1, 2, 3] and made[0].spent < made[1].spent < made[2].spent
    assert draws(made[:1], made[1], "iwae").nights_N == (0.1,)
    assert draws(made[:2], made[2], "nll").nights_N == (0.1,)


def test_a_new_recipe_is_held_against_the_nights_of_the_champion_s() -> None:
    made = life(night("a", 0.1), night("b", 0.2), night("c", 0.9, recipe="new"), night("d", 0.8, recipe="new"))
    found = draws(made[:3], made[3], "nll")
    assert (found.before_A, found.nights_N) == ((0.0, 0.1, 0.2), (0.9, 0.8))
    assert [trial.recipes for trial in made] == [0, 0, 1, 1]
    assert made[2].weight == pytest.approx(share(3) / 2 + share(1) / 2) and made[3].weight == pytest.approx(share(4) / 2)
    back = following(made, night("e", 0.0))
    assert draws(made, back, "nll").nights_N == (0.1, 0.2, 0.0), "the other recipe's nights are none of its own"


def test_recipes_are_questions_to_the_examples_and_new_examples_make_up_for_them() -> None:
    made = life(*[night(f"k{n}", recipe=f"r{n}") for n in range(5)])
    assert [trial.asked for trial in made] == [1, 2, 3, 4, 5]
    assert [trial.level for trial in made] == pytest.approx([0.05 * share(n) for n in range(1, 6)])
    half, whole = (following(made, night("x", recipe="x", ages=ages)) for ages in (((0, 0.5),), ()))
    assert (half.asked, whole.asked) == (3.5, 1.0)
    assert half.spent == whole.spent > made[-1].spent, "new examples buy nothing of the budget for seeds"
    assert following(made, night("y", recipe="r4")).asked == 5, "a further night of a recipe is no question, and the others count"
    assert following(made, night("z", auto=False)).asked == 6, "with a number as the margin each try is one"
    since = following(made, night("w", recipe="w", ages=((0, 0.25), (4, 0.75))))
    assert since.asked == pytest.approx(1 + 3 * 0.25 + 2 * 1.0), "examples that trial 4 saw first were asked by 4 and 5"


def test_a_night_on_other_examples_resets_nothing() -> None:
    made = life(*[night(f"k{n}", recipe=f"r{n}") for n in range(100)], night("detour", recipe="z", gains={}, ages=()))
    assert following(made, night("back", recipe="new")).asked == 101


def test_a_night_of_broken_data_hides_no_later_gain() -> None:
    dice = np.random.default_rng(1)
    usual = [night(f"k{n}", float(gain)) for n, gain in enumerate(0.003 * dice.normal(size=20))]
    for bad in (-0.1, -100.0):
        made = life(*usual, night("bad", bad))
        gains = [following(made, night(f"new{n}", 0.012, recipe="new")) for n in range(1)]
        made.append(gains[0])
        later = following(made, night("new again", 0.0125, recipe="new"))
        assert later.evidence["nll"] > later.needed, bad


def test_examples_are_told_as_moved_since_the_decision_on_the_champion() -> None:
    ages = ((1, 0.1), (2, 0.3), (3, 0.4))
    made = life(night("champion", gains={}, champion=None), night("a"), night("b", champion=2))
    tonight = following(made, night("c", champion_key="champion", ages=ages))
    assert draws(made, tonight, "nll").moved == pytest.approx(0.9), "also after nights against another champion"
    assert draws(made, following(made, night("d", ages=ages)), "nll").moved == pytest.approx(0.6)


def test_several_metrics_share_the_budgets() -> None:
    (one,) = life(night("a"))
    (two,) = life(night("a", metrics=2, gains={"nll": (0.1, 0.05), "fd": (0.1, 0.05)}))
    assert (two.level, two.needed) == pytest.approx((one.level / 2, 2 * one.needed))


def test_seeds_of_the_champion_are_draws_and_other_seeds_tell_the_spread() -> None:
    spread = SeedSpread(pipeline="m", recipe="r", dataset="d", seeds=(0, 1, 2), values={"nll": (1.90, 1.91, 1.88)})
    past = Past(champion_recipe="r", champion_dataset="d", champion_seed=1, champion_values={"nll": 1.91})
    own, other = past.seeds(spread, "nll", "lower")
    assert own == pytest.approx((0.01, 0.03)) and other == ()
    assert past.seeds(spread, "nll", "higher")[0] == pytest.approx((-0.01, -0.03))
    for changed in (
        {"champion_recipe": "x"},
        {"champion_dataset": "x"},
        {"champion_seed": 7},
        {"champion_values": {"nll": 1.95}},
    ):
        elsewhere = Past(**{**vars(past), **changed})
        assert elsewhere.seeds(spread, "nll", "lower") == ((), (1.90, 1.91, 1.88))
    assert past.seeds(spread, "fd", "lower") == past.seeds(None, "nll", "lower") == ((), ())


def test_the_words_say_which_try_its_cost_the_rest_and_the_nights() -> None:
    made = life(*[night(key, gain, seeds={"nll": (0.2, -0.1, 0.05)}) for key, gain in (("a", 0.1), ("b", 0.0))])
    (said,) = trials.told("m", made[:1], made[1])
    assert said.startswith("try 2 of m: cost 6.11% of the error level, 63.2% is left; a new recipe's gain in nll of 4 spreads")
    assert ", of 2 in " in said and ", of 1 in " in said and said.endswith("would be shown")
    (again,) = trials.told("m", made, following(made, night("b")))
    assert "a replay of the same weights costs nothing" in again
    assert trials.told("m", [], following([], night("c", gains={}))) == []


def rows_of(path: Path, made: list[Trial], seen: list[str]) -> tuple[list[LedgerRow], dict[int, str]]:
    ledger = Ledger(f"sqlite:///{path}")
    for number, (trial, text) in enumerate(zip(made, seen, strict=True), start=1):
        said = {"who": "gate", "why": "", "evidence": "e", "champion_after": None, "expected_champion": None}
        ledger.append("m", "kept", number, **said, trial=canonical(trial.to_json()), seen=text)
    return ledger.rows("m"), SeenExamples(f"sqlite:///{path}").of("m")


def test_verification_computes_each_trial_again(tmp_path: Path) -> None:
    texts = ["0 a b c", "", "0 d"]
    nights = [night(f"k{n}", recipe=f"r{n}", sample=sha256(text)) for n, text in enumerate(texts)]
    rows, seen = rows_of(tmp_path / "ledger.db", life(*nights), texts)
    assert trials.check(rows, seen) == [] and trials.of_rows(rows) == life(*nights)
    assert [sequence for sequence, _ in trials.check(rows, {1: seen[1]})] == [3]
    assert trials.seen_is_intact(life(*nights), rows, seen) and not trials.seen_is_intact(life(*nights), rows, {1: seen[1]})
    for key, value in (("number", 1), ("spent", 0.1), ("asked", 1.0), ("level", 0.05), ("evidence", {"nll": 99.0})):
        forged = json.loads(rows[1].trial) | {key: value}
        changed = [rows[0], rows[1].model_copy(update={"trial": canonical(forged)}), rows[2]]
        assert 2 in [sequence for sequence, _ in trials.check(changed, seen)], key
    assert [sequence for sequence, _ in trials.check(rows[1:], seen)] == [2, 3], "a removed try resets nothing unseen"
    damaged = [rows[0].model_copy(update={"trial": "{"}), *rows[1:]]
    assert trials.check(damaged, seen)[0] == (1, "its trial is damaged")


def test_the_newest_try_is_computed_again_before_it_is_used(tmp_path: Path) -> None:
    rows, _ = rows_of(tmp_path / "ledger.db", life(night("a"), night("b")), ["", ""])
    assert trials.checked("m", rows) == life(night("a"), night("b"))
    forged = rows[1].model_copy(update={"trial": canonical(json.loads(rows[1].trial) | {"number": 0, "spent": 0.0})})
    with pytest.raises(LedgerError, match="the newest try of m does not follow from those before it"):
        trials.checked("m", [rows[0], forged])


def test_examples_are_told_by_the_row_that_saw_them_first() -> None:
    examples = np.random.default_rng(0).integers(2**63, size=30_000, dtype=np.uint64)
    shares, text = ages(examples[:10_000], {})
    assert shares == {} and 0.4 * MOST < len(text.split()) - 1 <= 1.1 * MOST
    assert ages(examples[:10_000], {1: text}) == ({1: 1.0}, "")
    moved, more = ages(examples[2_000:12_000], {1: text})
    assert moved == {1: pytest.approx(0.8, abs=0.03)}
    again, none = ages(examples[2_000:12_000], {1: text, 2: more})
    assert again == {1: moved[1], 2: pytest.approx(1 - moved[1])} and none == ""
    grown, _ = ages(examples, {1: text, 2: more})
    assert sum(grown.values()) == pytest.approx(0.4, abs=0.05), "a larger set has a coarser sample"


def test_where_samples_do_not_meet_nothing_counts_as_new() -> None:
    examples = np.random.default_rng(1).integers(2**63, size=1_000_000, dtype=np.uint64)
    _, text = ages(examples, {})
    known = {int(each, 16) for each in text.split()[1:]}
    few = np.array([each for each in examples[:200].tolist() if each not in known][:50], dtype=np.uint64)
    assert ages(few, {7: text})[0] == {7: 1.0}
