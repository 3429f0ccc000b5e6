"""An example's split is a function of its pixels and the seed, and of nothing else."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from remint.data.splits import assign
from remint.recipe import SplitSettings

images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 30), st.just(1), st.just(2), st.just(2)), elements=st.integers(0, 3))
splits = st.builds(SplitSettings, validation=st.floats(0.01, 0.49), held_out=st.floats(0.01, 0.49), seed=st.integers(0, 99))


@settings(max_examples=100, deadline=None)
@given(images, images, splits, st.randoms(use_true_random=False))
def test_order_company_and_layout_do_not_matter(
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
def test_a_larger_held_out_share_only_adds_to_it(x_NCHW: np.ndarray, split: SplitSettings, part: float) -> None:
    smaller = split.model_copy(update={"held_out": split.held_out * part})
    assert (assign(x_NCHW, split)[assign(x_NCHW, smaller) == 2] == 2).all()
