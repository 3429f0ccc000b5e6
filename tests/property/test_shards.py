"""Shards are a function of the examples alone, and appended examples leave all but the last one as they are."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from remint.data import shards
from remint.data.arrays import ShardedArray

LEAST, MOST = 4, 16  # examples in a shard, of 3 bytes each
examples = hnp.arrays(np.uint8, st.tuples(st.integers(20, 120), st.just(3)), elements=st.integers(0, 255))


def written(x_NX: np.ndarray, block: int) -> list[np.ndarray]:
    """Write an array in blocks of so many examples. Return its shards."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(shards, WHOLE=1, LEAST=3 * LEAST, MOST=3 * MOST):
        writer = shards.Writer(Path(folder), "x", x_NX.shape, x_NX.dtype)
        for at in range(0, len(x_NX), block):
            writer.append(x_NX[at : at + block])
        writer.close()
        assert sorted(path.name for path in Path(folder).iterdir()) == writer.names
        return [np.load(Path(folder) / name) for name in writer.names]


@settings(max_examples=100, deadline=None)
@given(examples, examples, st.integers(1, 50))
def test_shards_do_not_depend_on_blocks_or_on_what_follows(x_NX: np.ndarray, more_NX: np.ndarray, block: int) -> None:
    alone = written(x_NX, len(x_NX))
    assert [part.tobytes() for part in written(x_NX, block)] == [part.tobytes() for part in alone]
    np.testing.assert_array_equal(np.concatenate(alone), x_NX, strict=True)
    assert all(LEAST <= len(part) <= MOST for part in alone[:-1]) and 1 <= len(alone[-1]) <= MOST
    longer = written(np.concatenate([x_NX, more_NX]), block)
    assert [part.tobytes() for part in longer[: len(alone) - 1]] == [part.tobytes() for part in alone[:-1]]


@settings(max_examples=100, deadline=None)
@given(examples, st.lists(st.integers(1, 200), max_size=5), st.data())
def test_a_sharded_array_is_indexed_as_numpy_does(x_NX: np.ndarray, cuts: list[int], data: st.DataObject) -> None:
    sharded = ShardedArray(np.split(x_NX, sorted({cut for cut in cuts if cut < len(x_NX)})))
    count = len(x_NX)
    bound = st.none() | st.integers(-count - 3, count + 3)
    key = data.draw(
        st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, -1, -3]))
        | st.integers(-count, count - 1)
        | hnp.arrays(np.int64, st.integers(0, 9), elements=st.integers(-count, count - 1))
        | hnp.arrays(np.bool_, count)
    )
    np.testing.assert_array_equal(sharded[key], x_NX[key], strict=True)
    np.testing.assert_array_equal(sharded[key, ..., 1], x_NX[key, ..., 1])
