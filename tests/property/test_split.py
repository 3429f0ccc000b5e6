"""The split of an example is a function of its content and the seed only."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from remint.data.columns import standardise
from remint.data.splits import assign, canonical_rows
from remint.records import Column
from remint.settings.recipe import SplitSettings

images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 30), st.just(1), st.just(2), st.just(2)), elements=st.integers(0, 3))
splits = st.builds(SplitSettings, validation=st.floats(0.01, 0.49), held_out=st.floats(0.01, 0.49), seed=st.integers(0, 99))


@settings(max_examples=100, deadline=None)
@given(images, images, splits, st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_order_other_examples_or_layout(
    x_NCHW: np.ndarray, more_NCHW: np.ndarray, split: SplitSettings, random: object
) -> None:
    alone_N = assign(x_NCHW, split)
    assert (assign(np.concatenate([x_NCHW, more_NCHW]), split)[: len(x_NCHW)] == alone_N).all()
    order = np.array(random.sample(range(len(x_NCHW)), len(x_NCHW)))  # type: ignore[attr-defined]
    assert (assign(x_NCHW[order], split) == alone_N[order]).all()
    assert (assign(np.asfortranarray(x_NCHW), split) == alone_N).all()
    by_content: dict[bytes, int] = {}
    for image_CHW, index in zip(x_NCHW, alone_N.tolist(), strict=True):
        assert by_content.setdefault(bytes(image_CHW), index) == index


@settings(max_examples=50, deadline=None)
@given(images, splits, st.floats(0.0, 1.0))
def test_a_larger_held_out_share_only_adds_examples(x_NCHW: np.ndarray, split: SplitSettings, part: float) -> None:
    smaller = split.model_copy(update={"held_out": split.held_out * part})
    assert (assign(x_NCHW, split)[assign(x_NCHW, smaller) == 2] == 2).all()


COLUMNS = (Column(name="b", mean=1.0, scale=0.5, missing=True), Column(name="a", categories=("x", "y", "z"), missing=True))
rows = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 30), st.just(2)), elements=st.sampled_from([0.0, -0.0, 1.0, 2.0, 1.0 + 1e-12, np.nan])
).map(lambda x_ND: np.stack([x_ND[:, 0], np.floor(x_ND[:, 1])], axis=1))


@settings(max_examples=100, deadline=None)
@given(rows, rows, splits)
def test_equal_rows_are_in_one_split_for_any_schema_and_column_order(
    x_ND: np.ndarray, more_ND: np.ndarray, split: SplitSettings
) -> None:
    alone_N = assign(canonical_rows(x_ND, COLUMNS), split)
    assert (assign(canonical_rows(np.concatenate([x_ND, more_ND]), COLUMNS), split)[: len(x_ND)] == alone_N).all()
    assert (assign(canonical_rows(x_ND[:, ::-1], COLUMNS[::-1]), split) == alone_N).all()
    # A later schema: another mean and scale, and a new category that shifts the codes of the others by one.
    later = (Column(name="b", mean=9.0, scale=7.0), Column(name="a", categories=("w", "x", "y", "z")))
    assert (assign(canonical_rows(x_ND + np.array([0.0, 1.0]), later), split) == alone_N).all()
    by_content: dict[bytes, int] = {}
    for row_D, index in zip(standardise(x_ND, COLUMNS) + np.float32(0.0), alone_N.tolist(), strict=True):
        assert by_content.setdefault(bytes(np.nan_to_num(row_D, nan=99.0)), index) == index


def test_different_rows_are_split_independently() -> None:
    """Otherwise one cell would decide for all rows. The limit is three standard deviations of the held-out share."""
    split = SplitSettings()
    numbers_ND = np.stack([np.arange(3_000.0), np.zeros(3_000)], axis=1)
    mixed_ND = np.stack([np.repeat(np.arange(1_000.0), 3), np.tile([0.0, 1.0, np.nan], 1_000)], axis=1)
    for x_ND in (numbers_ND, mixed_ND):
        held_out = (assign(canonical_rows(x_ND, COLUMNS), split) == 2).sum()
        assert abs(held_out - 600) < 3 * (3_000 * 0.2 * 0.8) ** 0.5
    triples_N3 = assign(canonical_rows(mixed_ND, COLUMNS), split).reshape(1_000, 3)
    assert (triples_N3 != triples_N3[:, :1]).any(1).mean() > 0.3  # rows of one triple differ only in their category
