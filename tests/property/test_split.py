"""The split of an example is a function of its content and the seed only."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from remint.data.columns import standardise
from remint.data.identity import canonical_rows, choose_rule, digests
from remint.data.limits import Limits
from remint.data.schema import Schema
from remint.data.splits import assign, divide, group_words, learn_limits
from remint.records import Column, DataSpec
from remint.settings.split import SplitSettings

images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 30), st.just(1), st.just(2), st.just(2)), elements=st.integers(0, 3))
splits = st.builds(SplitSettings, validation=st.floats(0.01, 0.49), held_out=st.floats(0.01, 0.49), seed=st.integers(0, 99))


def assigned(x_NX: np.ndarray, split: SplitSettings) -> np.ndarray:
    return assign(digests(x_NX, split.seed, occurrences=False), split)


@settings(max_examples=100, deadline=None)
@given(images, images, splits, st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_order_other_examples_or_layout(
    x_NCHW: np.ndarray, more_NCHW: np.ndarray, split: SplitSettings, random: object
) -> None:
    alone_N = assigned(x_NCHW, split)
    assert (assigned(np.concatenate([x_NCHW, more_NCHW]), split)[: len(x_NCHW)] == alone_N).all()
    order = np.array(random.sample(range(len(x_NCHW)), len(x_NCHW)))  # type: ignore[attr-defined]
    assert (assigned(x_NCHW[order], split) == alone_N[order]).all()
    assert (assigned(np.asfortranarray(x_NCHW), split) == alone_N).all()
    by_content: dict[bytes, int] = {}
    for image_CHW, index in zip(x_NCHW, alone_N.tolist(), strict=True):
        assert by_content.setdefault(bytes(image_CHW), index) == index


@settings(max_examples=50, deadline=None)
@given(images, splits, st.floats(0.0, 1.0))
def test_a_larger_held_out_share_only_adds_examples(x_NCHW: np.ndarray, split: SplitSettings, part: float) -> None:
    smaller = split.model_copy(update={"held_out": split.held_out * part})
    assert (assigned(x_NCHW, split)[assigned(x_NCHW, smaller) == 2] == 2).all()


COLUMNS = (Column(name="b", mean=1.0, scale=0.5, missing=True), Column(name="a", categories=("x", "y", "z"), missing=True))
rows = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 30), st.just(2)), elements=st.sampled_from([0.0, -0.0, 1.0, 2.0, 1.0 + 1e-12, np.nan])
).map(lambda x_ND: np.stack([x_ND[:, 0], np.floor(x_ND[:, 1])], axis=1))


@settings(max_examples=100, deadline=None)
@given(rows, rows, splits)
def test_equal_rows_are_in_one_split_for_any_schema_and_column_order(
    x_ND: np.ndarray, more_ND: np.ndarray, split: SplitSettings
) -> None:
    alone_N = assigned(canonical_rows(x_ND, COLUMNS), split)
    assert (assigned(canonical_rows(np.concatenate([x_ND, more_ND]), COLUMNS), split)[: len(x_ND)] == alone_N).all()
    assert (assigned(canonical_rows(x_ND[:, ::-1], COLUMNS[::-1]), split) == alone_N).all()
    # A later schema: another mean and scale, and a new category that shifts the codes of the others by one.
    later = (Column(name="b", mean=9.0, scale=7.0), Column(name="a", categories=("w", "x", "y", "z")))
    assert (assigned(canonical_rows(x_ND + np.array([0.0, 1.0]), later), split) == alone_N).all()
    by_content: dict[bytes, int] = {}
    for row_D, index in zip(standardise(x_ND, COLUMNS) + np.float32(0.0), alone_N.tolist(), strict=True):
        assert by_content.setdefault(bytes(np.nan_to_num(row_D, nan=99.0)), index) == index


def test_different_rows_are_split_independently() -> None:
    """Otherwise one cell would decide for all rows. The limit is three standard deviations of the held-out share."""
    split = SplitSettings()
    numbers_ND = np.stack([np.arange(3_000.0), np.zeros(3_000)], axis=1)
    mixed_ND = np.stack([np.repeat(np.arange(1_000.0), 3), np.tile([0.0, 1.0, np.nan], 1_000)], axis=1)
    for x_ND in (numbers_ND, mixed_ND):
        held_out = (assigned(canonical_rows(x_ND, COLUMNS), split) == 2).sum()
        assert abs(held_out - 600) < 3 * (3_000 * 0.2 * 0.8) ** 0.5
    triples_N3 = assigned(canonical_rows(mixed_ND, COLUMNS), split).reshape(1_000, 3)
    assert (triples_N3 != triples_N3[:, :1]).any(1).mean() > 0.3  # rows of one triple differ only in their category


def splits_by_row(x_ND: np.ndarray, split: SplitSettings) -> dict[tuple[bytes, int], int]:
    """Return the split of each occurrence of each row."""
    before: dict[bytes, int] = {}
    found = {}
    for x_D, index in zip(x_ND, assign(digests(x_ND, split.seed, occurrences=True), split).tolist(), strict=True):
        occurrence = before[bytes(x_D)] = before.get(bytes(x_D), -1) + 1
        found[bytes(x_D), occurrence] = index
    return found


@settings(max_examples=100, deadline=None)
@given(rows, rows, splits, st.randoms(use_true_random=False))
def test_appended_removed_and_reordered_rows_move_no_occurrence(
    x_ND: np.ndarray, more_ND: np.ndarray, split: SplitSettings, random: object
) -> None:
    x_ND, more_ND = canonical_rows(x_ND, COLUMNS), canonical_rows(more_ND, COLUMNS)
    alone = splits_by_row(x_ND, split)
    order = random.sample(range(len(x_ND)), len(x_ND))  # type: ignore[attr-defined]
    assert splits_by_row(x_ND[order], split) == alone
    longer = splits_by_row(np.concatenate([x_ND, more_ND]), split)
    assert {key: longer[key] for key in alone} == alone
    fewer = splits_by_row(x_ND[order[: len(order) // 2]], split)
    assert {key: alone[key] for key in fewer} == fewer
    first = assigned(x_ND, split)
    assert all(alone[bytes(x_D), 0] == index for x_D, index in zip(x_ND, first.tolist(), strict=True))


def test_copies_of_few_rows_are_divided_as_the_shares_say() -> None:
    x_ND = np.repeat(np.arange(4, dtype=np.uint64), 2_000)[:, None]
    split = SplitSettings()
    split_N = assign(digests(x_ND, split.seed, occurrences=True), split)
    for row in range(4):  # of each value, in each split; three standard deviations
        shares = np.bincount(split_N[x_ND[:, 0] == row], minlength=3) / 2_000
        assert np.abs(shares - [0.7, 0.1, 0.2]).max() < 3 * (0.25 / 2_000) ** 0.5
    assert choose_rule(x_ND) == "occurrence"
    continuous = np.random.default_rng(0).normal(size=(8_000, 1)).view(np.uint64)
    continuous[:400] = continuous[400:800]
    assert choose_rule(continuous) == "content"


@settings(max_examples=50, deadline=None)
@given(images, splits, st.floats(0.001, 0.4))
def test_a_calibration_share_takes_examples_from_training_only(x_NCHW: np.ndarray, split: SplitSettings, share: float) -> None:
    before_N = assigned(x_NCHW, split)
    after_N = assigned(x_NCHW, split.model_copy(update={"calibration": share}))
    assert set(before_N[after_N != before_N].tolist()) <= {0} and set(after_N[after_N != before_N].tolist()) <= {3}


groups = st.lists(st.integers(0, 9), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(groups, groups, splits, st.randoms(use_true_random=False))
def test_no_group_is_in_two_splits_and_other_rows_move_none(
    group_N: list[int], more_N: list[int], split: SplitSettings, random: object
) -> None:
    """After appends, deletions and reorderings, too."""

    def split_of(members: list[int]) -> dict[int, set[int]]:
        lenient = split.model_copy(update={"validation": 0.0, "held_out": 0.0})  # one group may hold all rows here
        words_N = group_words("key", lenient, [str(member) for member in members])
        found: dict[int, set[int]] = {}
        for member, index in zip(members, assigned(words_N[:, None], split).tolist(), strict=True):
            found.setdefault(member, set()).add(index)
        return found

    alone = split_of(group_N)
    assert all(len(indices) == 1 for indices in alone.values())
    shuffled = random.sample(group_N + more_N, len(group_N + more_N))  # type: ignore[attr-defined]
    longer, fewer = split_of(shuffled), split_of(shuffled[: 1 + len(shuffled) // 2])
    assert {member: longer[member] for member in alone} == alone and {**longer, **fewer} == longer


SCHEMA = Schema(
    dataset="d",
    version=1,
    settings={},
    spec=DataSpec(shape=(1,), columns=(Column(name="x"),), classes=3, class_names=("a", "b", "c")),
)
LEARNT = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2)), min_size=1, max_size=40)  # day and class of each row


def imported(rows: list[tuple[int, int, int]], split: SplitSettings, kept: Limits) -> tuple[dict[int, int], Limits]:
    """Divide rows (number, day, class) by the limits that are kept. Return the split of each number, and the limits now."""
    number_N, day_N, y_N = (np.array([row[place] for row in rows]) for place in range(3))
    arrays = {"x": number_N.astype(np.float64)[:, None], "y": y_N}
    if split.time:
        dates_N = np.datetime64("2024-01-01T00:00:00.000000") + day_N * np.timedelta64(1, "D")
        arrays["time"] = dates_N if split.time == "date" else day_N.astype(np.float64)
    found = learn_limits("d", split, SCHEMA, arrays)
    assert found is not None
    kept = kept.joined(found)
    split_N = divide(arrays, split, SCHEMA.spec, "content", kept.only(found))
    return dict(zip(number_N.tolist(), split_N.tolist(), strict=True)), kept


@settings(max_examples=100, deadline=None)
@given(
    LEARNT,
    st.sampled_from([("date", 0.2), ("number", 0.2), ("date", "1d"), ("date", "10d"), ("date", "2w")]),
    st.integers(1, 5),
    st.randoms(use_true_random=False),
)
def test_in_time_no_row_that_was_trained_on_is_ever_held_out(
    learnt: list[tuple[int, int]], rule: tuple[str, float | str], imports: int, random: object
) -> None:
    """However rows are appended, deleted and reordered: the newest rows, too."""
    rows = [(number, *row) for number, row in enumerate(learnt)]
    split, kept, trained = SplitSettings(time=rule[0], held_out=rule[1]), Limits(), set[int]()
    for _ in range(imports):
        here = random.sample(rows, random.randint(1, len(rows)))  # type: ignore[attr-defined]
        found, kept = imported(here, split, kept)
        assert not trained & {number for number, index in found.items() if index == 2}
        trained |= {number for number, index in found.items() if index == 0}


@settings(max_examples=100, deadline=None)
@given(LEARNT, LEARNT, splits, st.floats(0.0, 0.3), st.randoms(use_true_random=False))
def test_the_limits_of_each_class_give_its_shares_and_stay(
    learnt: list[tuple[int, int]], more: list[tuple[int, int]], shares: SplitSettings, calibration: float, random: object
) -> None:
    rows = [(number, *row) for number, row in enumerate(learnt + more)]
    split = shares.model_copy(update={"stratify": True})
    first, kept = imported(rows[: len(learnt)], split, Limits())
    for label in range(3):
        members = [number for number, _, y in rows[: len(learnt)] if y == label]
        counts = np.bincount([first[number] for number in members], minlength=3)
        assert counts[2] == round(split.held_out * len(members))  # type: ignore[operator]
        assert counts[2] + counts[1] == round((split.held_out + split.validation) * len(members))  # type: ignore[operator]
    for here in (rows[::-1], random.sample(rows, 1 + len(rows) // 2)):  # type: ignore[attr-defined]
        later, kept = imported(here, split, kept)
        assert {number: first[number] for number in first if number in later} == {
            number: later[number] for number in later if number in first
        }
    if shares.training > calibration > 0.0:
        later, _ = imported(rows, split.model_copy(update={"calibration": calibration}), kept)
        moved = {(before, later[number]) for number, before in first.items() if later[number] != before}
        assert moved <= {(0, 3)}, "calibration takes from training only"


values = st.lists(st.integers(0, 30), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(values, values, values)
def test_what_a_held_out_part_holds_is_never_trained_on(here: list[int], later: list[int], apart: list[int]) -> None:
    """Whatever the other part holds: the later values are appended, the others deleted."""
    split_of: dict[int, int] = {}
    for rows in (here, here + later, later[::-1]):
        number_N = np.array(rows + apart, dtype=np.float64)
        arrays = {"x": number_N[:, None], "held_out": np.arange(len(number_N)) >= len(rows)}
        split_N = divide(arrays, SplitSettings(held_out="test"), SCHEMA.spec, "content", Limits())
        assert (split_N[len(rows) :] == 2).all()
        for value, index in zip(rows, split_N.tolist(), strict=False):
            assert index in ((-1,) if value in apart else (0, 1)) and split_of.setdefault(value, index) == index
