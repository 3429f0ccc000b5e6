"""Drift: changes are named, unchanged columns are not, and the rate of false alarms is at most the stated one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from remint.data.arrays import Dataset, Split
from remint.evaluation import contrast, drift, matching
from remint.evaluation.contrast import Groups
from remint.records import Column, DatasetVersion, DataSpec, Drift

Array = np.ndarray[Any, Any]

TABLE = DataSpec(
    shape=(5,),
    columns=(
        Column(name="age", mean=40.0, scale=9.0),
        Column(name="height", mean=170.0, scale=12.0),
        Column(name="income", missing=True),  # skewed
        Column(name="colour", categories=("blue", "green", "red", "violet")),
        Column(name="smokes", categories=("no", "yes"), missing=True),
    ),
    classes=2,
)
IMAGES = DataSpec(shape=(3, 6, 5), levels=256)
NOTHING = np.zeros(0)


def table(generator: np.random.Generator, count: int) -> Array:
    x_ND = generator.normal(size=(count, 5)).astype(np.float32)
    x_ND[:, 2] = np.exp(x_ND[:, 2])
    x_ND[generator.random(count) < 0.1, 2] = np.nan
    x_ND[:, 3] = generator.choice(4, size=count, p=[0.5, 0.3, 0.195, 0.005])
    x_ND[:, 4] = generator.integers(2, size=count)
    return x_ND


def dataset(x_NX: Array, spec: DataSpec = TABLE, y_N: Array | None = None, **version: Any) -> Dataset:
    """Make a dataset with this training split; each of the two other splits has one example."""
    counts = {"train": len(x_NX), "validation": 1, "held_out": 1}
    about = {"name": "d", "source": "s", "raw_sha256": "", "spec": spec, "split": {"seed": 0}, "files": {}}
    small = Split(x_NX[:1], None if y_N is None else y_N[:1])
    return Dataset(DatasetVersion.model_validate(about | {"counts": counts} | version), Split(x_NX, y_N), small, small)


def columns(x_NX: Array) -> Array:
    """Extract the numbers as features, missing ones as 0."""
    return np.nan_to_num(x_NX.reshape(len(x_NX), -1).astype(np.float64))


def drift_between(before: Dataset, after: Dataset) -> Drift:
    return drift.measure_drift(before, after, columns, "sha")


def test_disjoint_sets_get_the_interval_of_welch_and_the_test_of_wilcoxon() -> None:
    generator = np.random.default_rng(0)
    a_N, b_N = generator.normal(size=30), generator.normal(0.3, 2.0, size=50)
    tested = contrast.mean(Groups(NOTHING, b_N, a_N))
    oracle = stats.ttest_ind(b_N, a_N, equal_var=False)
    limits = oracle.confidence_interval()
    assert tested is not None
    np.testing.assert_allclose([tested.low, tested.high], [limits.low, limits.high], rtol=1e-10)
    wilcoxon = stats.mannwhitneyu(b_N.round(1), a_N.round(1), use_continuity=False, method="asymptotic")  # with ties
    ranked = contrast.mean(Groups(NOTHING, b_N.round(1), a_N.round(1)))
    assert ranked is not None and ranked.p == pytest.approx(wilcoxon.pvalue, rel=1e-10)


def test_for_appended_data_the_contrast_tests_the_added_values() -> None:
    generator = np.random.default_rng(0)
    kept_N, added_N = generator.normal(size=60), generator.normal(0.4, 1.0, size=20)
    tested = contrast.mean(Groups(kept_N, added_N, NOTHING))
    oracle = stats.ttest_ind(added_N, kept_N, equal_var=False)
    assert tested is not None
    wilcoxon = stats.mannwhitneyu(added_N, kept_N, use_continuity=False, method="asymptotic")
    assert tested.p == pytest.approx(wilcoxon.pvalue, rel=1e-10)
    assert tested.after - tested.before == pytest.approx(np.concatenate([kept_N, added_N]).mean() - kept_N.mean())
    assert (tested.low, tested.high) == pytest.approx(tuple(0.25 * limit for limit in oracle.confidence_interval()), rel=1e-10)


def test_shares_of_disjoint_sets_get_the_test_of_pearson() -> None:
    a_N, b_N = np.repeat([0, 1, 2], [30, 50, 20]), np.repeat([0, 1, 2], [60, 40, 50])
    found = contrast.shares(Groups(np.zeros(0, int), b_N, a_N), 3)
    assert found is not None
    assert found.p == pytest.approx(stats.chi2_contingency([[30, 50, 20], [60, 40, 50]], correction=False).pvalue, rel=1e-10)


def test_rare_categories_are_merged() -> None:
    a_N, b_N = np.repeat(range(5), [50, 46, 2, 1, 1]), np.repeat(range(5), [47, 47, 1, 2, 3])
    found = contrast.shares(Groups(np.zeros(0, int), b_N, a_N), 5)
    assert found is not None
    joined = [[50, 50], [47, 53]]  # the rare ones reach an expected count of 5 only with the next
    assert found.p == pytest.approx(stats.chi2_contingency(joined, correction=False).pvalue, rel=1e-10)
    assert contrast.shares(Groups(np.zeros(0, int), np.zeros(40, int), np.zeros(40, int)), 2) is None


def test_holm_correction_of_a_worked_example() -> None:
    assert contrast.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert contrast.holm([0.9, 0.8]) == [1.0, 1.0] and contrast.holm([]) == []


def test_different_constants_are_told_apart() -> None:
    same = contrast.mean(Groups(NOTHING, np.full(5, 0.1), np.full(9, 0.1)))
    other = contrast.mean(Groups(NOTHING, np.full(5, 0.2), np.full(9, 0.1)))
    assert same is not None and other is not None
    assert same.p == 1.0 and other.p < 0.001 and other.low == other.high == pytest.approx(0.1)
    assert contrast.mean(Groups(np.ones(5), NOTHING, NOTHING)) is None


@pytest.mark.parametrize("appended", [0, 20, 60])
def test_unchanged_data_give_a_false_alarm_in_at_most_5_percent(appended: int) -> None:
    alarms, repeats = 0, 200
    for seed in range(repeats):
        generator = np.random.default_rng([seed, appended])
        before_ND = table(generator, 200)
        added_ND = table(generator, appended or 300)
        after_ND = np.concatenate([before_ND, added_ND]) if appended else added_ND
        first, second = dataset(before_ND), dataset(after_ND)
        places = matching.match_examples(first.train, second.train)
        p = contrast.holm([change.p for change in drift._tests(first, second, places)])
        assert len(p) >= 8
        alarms += min(p) < drift.LEVEL
    # 95% of binomial counts of 200 at 5% are at most 15
    assert alarms <= 15, alarms


def test_only_the_column_that_moved_by_half_a_deviation_is_named() -> None:
    generator = np.random.default_rng(1)
    before_ND, after_ND = table(generator, 400), table(generator, 400)
    after_ND[:, 1] += 0.5
    found = drift_between(dataset(before_ND), dataset(after_ND))
    (change,) = found.changed
    assert (change.of, change.statistic) == ("height", "mean")
    assert change.before == pytest.approx(170.0, abs=2.0) and change.after == pytest.approx(176.0, abs=2.0)
    assert change.low < 0.5 < change.high and change.high - change.low < 0.4
    assert "mean of height" in found.summary and (found.kept, found.added, found.removed) == (0, 400, 400)


def test_changed_spread_shares_and_missing_values_are_named() -> None:
    generator = np.random.default_rng(2)
    before_ND, after_ND = table(generator, 600), table(generator, 600)
    after_ND[:, 0] *= 1.5
    after_ND[after_ND[:, 3] == 1, 3] = 2  # green becomes red
    after_ND[generator.random(600) < 0.1, 4] = np.nan
    found = drift_between(dataset(before_ND), dataset(after_ND))
    named = {(change.of, change.statistic): change for change in found.changed}
    assert set(named) == {("age", "spread"), ("colour", "share"), ("smokes", "missing")}
    spread, share, gaps = named["age", "spread"], named["colour", "share"], named["smokes", "missing"]
    assert spread.low < np.log(1.5) < spread.high and spread.before < 9.0 < spread.after
    assert share.category == "green" and share.after == 0.0 and share.before == pytest.approx(0.3, abs=0.05)
    assert gaps.before == 0.0 and gaps.after == pytest.approx(0.1, abs=0.05)


def test_appended_rows_of_the_same_distribution_are_counted_and_give_no_alarm() -> None:
    generator = np.random.default_rng(100)
    before_ND = table(generator, 300)
    before_ND[1] = before_ND[0]  # a duplicate row
    after_ND = np.concatenate([before_ND, table(generator, 80), before_ND[:1]])[generator.permutation(381)]
    found = drift_between(dataset(before_ND), dataset(after_ND))
    assert (found.kept, found.added, found.removed) == (300, 81, 0)
    assert found.changed == () and "none changed beyond chance" in found.summary
    assert found.distance is not None and found.floor is not None
    assert found.floor.low < found.distance.value < found.floor.high and "within" in found.summary
    assert (found.before["train"], found.after["train"]) == (300, 381)


def test_drift_of_appended_rows_is_found_although_most_rows_are_unchanged() -> None:
    generator = np.random.default_rng(4)
    before_ND, added_ND = table(generator, 900), table(generator, 100)
    added_ND[:, 0] += 2.0
    found = drift_between(dataset(before_ND), dataset(np.concatenate([before_ND, added_ND])))
    assert {change.of for change in found.changed} == {"age"}
    (change,) = (change for change in found.changed if change.statistic == "mean")
    assert change.low < 0.2 < change.high
    assert found.distance is not None and found.floor is not None
    assert found.distance.value > found.floor.high and "above the range" in found.summary


def test_for_unchanged_data_no_distance_is_measured() -> None:
    x_ND = table(np.random.default_rng(5), 50)
    found = drift_between(dataset(x_ND), dataset(x_ND[::-1]))
    assert found.comparable and found.kept == 50 and found.changed == () and found.distance is None
    assert found.summary == "the 50 training examples did not change"


def test_the_interval_of_the_distance_covers_a_known_shift() -> None:
    """Two normal distributions whose means differ by 1 in one of two columns: the distance is 1 plus a bias at these sizes."""
    spec = DataSpec(shape=(2,), columns=(Column(name="a"), Column(name="b")))
    covered = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        before_ND, after_ND = (generator.normal(size=(800, 2)).astype(np.float32) for _ in range(2))
        after_ND[:, 0] += 1.0
        first, second = dataset(before_ND, spec), dataset(after_ND, spec)
        places = matching.match_examples(first.train, second.train)
        drift_distance, _ = drift._distance(first.train, second.train, places, columns, {})
        assert drift_distance is not None
        covered += drift_distance.low <= 1.0 <= drift_distance.high
    assert covered >= 34  # 95% of 40 are 38; fewer than 34 have a chance below 2%


def test_drift_of_images_reports_brightness_classes_and_a_picture(tmp_path: Path) -> None:
    generator = np.random.default_rng(6)
    before, after = (generator.integers(60, 160, size=(200, 3, 6, 5)).astype(np.uint8) for _ in range(2))
    after[:, 0] += 8
    spec = IMAGES.model_copy(update={"classes": 2, "class_names": ("cat", "dog")})
    y_N, z_N = (generator.random(200) < 0.5).astype(np.int64), (generator.random(200) < 0.8).astype(np.int64)
    first, second = dataset(before, spec, y_N), dataset(after, spec, z_N)
    found = drift_between(first, second)
    named = {(change.of, change.statistic) for change in found.changed}
    assert {("channel 0", "mean"), ("brightness", "mean"), ("label", "share")} <= named
    assert not {of for of, _ in named} & {"channel 1", "channel 2"}
    drift.write(found, first, second, tmp_path)
    assert Drift.read(tmp_path / "drift.json") == found
    assert (tmp_path / "drift.png").read_bytes()[:4] == b"\x89PNG"


def test_drift_of_a_table_has_a_picture(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    first, second = dataset(table(generator, 100)), dataset(table(generator, 100))
    drift.write(drift_between(first, second), first, second, tmp_path)
    assert (tmp_path / "drift.png").read_bytes()[:4] == b"\x89PNG"


def test_data_of_another_schema_are_reported_as_not_comparable(tmp_path: Path) -> None:
    x_ND = table(np.random.default_rng(8), 40)
    narrower = TABLE.model_copy(update={"shape": (4,), "columns": TABLE.columns[:4]})
    first, second = dataset(x_ND), dataset(x_ND[:, :4], narrower)
    found = drift_between(first, second)
    assert not found.comparable and "not comparable" in found.summary and "3 numeric and 1 categorical" in found.summary
    drift.write(found, first, second, tmp_path)
    assert (tmp_path / "drift.json").exists() and not (tmp_path / "drift.png").exists()


def test_another_split_is_compared_and_reported() -> None:
    x_ND = table(np.random.default_rng(9), 200)
    found = drift_between(dataset(x_ND[:150]), dataset(x_ND[50:], split={"seed": 1}))
    assert found.comparable and (found.kept, found.added, found.removed) == (100, 50, 50)
    assert "the settings of the split changed" in found.summary


def test_ranks_equal_those_of_scipy() -> None:
    value_N = np.random.default_rng(0).integers(0, 30, 200).astype(np.float64)
    assert np.array_equal(contrast._ranks(value_N), stats.rankdata(value_N))


def test_examples_that_repeat_are_matched_as_often_as_they_are_on_both_sides() -> None:
    """Against a count by hand, with labels: the same values with another label are another example."""
    generator = np.random.default_rng(3)
    before_ND, now_ND = (generator.integers(4, size=(count, 2)).astype(np.float32) for count in (200, 150))
    before_N, now_N = (generator.integers(2, size=count) for count in (200, 150))
    found = matching.match_examples(Split(before_ND, before_N), Split(now_ND, now_N))
    former, present = (
        [(*x_D.tolist(), y) for x_D, y in zip(x_ND, y_N, strict=True)] for x_ND, y_N in ((before_ND, before_N), (now_ND, now_N))
    )
    left, kept, added, removed = Counter(former), [], [], []
    for place, example in enumerate(present):
        (kept if left[example] > 0 else added).append(place)
        left[example] -= 1
    for place, example in enumerate(former):
        if left[example] > 0:
            removed.append(place)
            left[example] -= 1
    assert [found.kept.tolist(), found.added.tolist(), found.removed.tolist()] == [kept, added, removed]
    assert kept and added and removed


def test_of_many_examples_a_share_is_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counts are of all, and a change that is large is found in a share."""
    generator = np.random.default_rng(5)
    former, present = table(generator, 4_000), table(generator, 4_000)
    present[:2_000] = former[:2_000]
    present[2_000:, 1] += 2.0
    monkeypatch.setattr(drift, "MAX_TESTED", 1_000)
    found = drift.measure_drift(dataset(former), dataset(present), None, "")
    assert (found.kept, found.added, found.removed) == (2_000, 2_000, 2_000)
    assert found.changed[0].of == "height" and found.changed[0].statistic == "mean"
    assert found.changed[0].after - found.changed[0].before == pytest.approx(12.0, rel=0.2), "half the rows, 2 deviations of 12"
