"""The order of the examples: a pure function of (seed, step)."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from remint.data.sampler import batch_indices


@given(count=st.integers(1, 40), batch_size=st.integers(1, 100), seed=st.integers(0, 2**32), steps=st.integers(1, 6))
def test_batches_are_full_and_the_stream_is_one_permutation_after_another(
    count: int, batch_size: int, seed: int, steps: int
) -> None:
    batches = [batch_indices(count, batch_size, seed, step) for step in range(steps)]
    assert {batch.shape for batch in batches} == {(batch_size,)}
    stream = np.concatenate(batches)
    for start in range(0, len(stream), count):
        epoch = stream[start : start + count]
        assert len(set(epoch)) == len(epoch)  # no example twice in one epoch
        assert len(epoch) < count or sorted(epoch) == list(range(count))


def test_the_batch_size_does_not_change_the_order() -> None:
    by_6 = np.concatenate([batch_indices(10, 6, 1, step) for step in range(5)])
    by_10 = np.concatenate([batch_indices(10, 10, 1, step) for step in range(3)])
    assert by_6.tolist() == by_10.tolist()


def test_each_seed_and_epoch_has_a_different_order() -> None:
    first, second = batch_indices(100, 100, 0, 0), batch_indices(100, 100, 0, 1)
    assert first.tolist() != second.tolist()
    assert first.tolist() != batch_indices(100, 100, 1, 0).tolist()


def test_the_order_does_not_depend_on_earlier_calls() -> None:
    alone = batch_indices(10, 4, 5, 7).tolist()
    for step in range(30):
        batch_indices(10, 4, 5, step)
    assert batch_indices(10, 4, 5, 7).tolist() == alone
