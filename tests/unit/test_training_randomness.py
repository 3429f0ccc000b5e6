"""Noise of a training: a pure function of seed, step, phase and row, standard normal, and made for each rank's rows only."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from remint.distributed.world import World
from remint.training.randomness import BATCH, batch_noise

CPU = torch.device("cpu")


def noise(rows: slice, size: int, **where: int) -> Tensor:
    return batch_noise(rows, size, **{"seed": 0, "step": 0, "phase": 0, **where}, device=CPU)


@pytest.mark.parametrize("size", [1, 3, 8, 13, 16, 100])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 15, 30])
def test_ranks_share_one_noise_to_the_bit_and_make_their_rows_of_it(size: int, ranks: int) -> None:
    parts = [noise(World(rank, ranks, CPU).rows(30), size, step=2) for rank in range(ranks)]
    assert torch.equal(torch.cat(parts), noise(slice(0, 30), size, step=2))
    assert torch.equal(noise(slice(0, 30), size, step=2), noise(slice(0, 64), size, step=2)[:30]), "for any batch size"


@pytest.mark.parametrize("size", [1, 8, 21])
def test_a_row_is_box_muller_of_its_own_words_of_philox(size: int) -> None:
    key = np.frombuffer(hashlib.sha256(repr((7, BATCH, 1)).encode()).digest()[:16], np.uint64)
    words = -(-size // 8) * 8
    for row, got in enumerate(noise(slice(0, 5), size, seed=7, step=11, phase=1)):
        raw: Any = np.random.Philox(key=key, counter=row * words // 8 + (11 << 64)).random_raw(words // 2)
        first, second = raw.view(np.uint32).astype(np.float64).reshape(2, -1) / 2**32
        radius = np.sqrt(-2 * np.log(first + 2.0**-33))
        expected = np.concatenate([radius * np.cos(2 * np.pi * second), radius * np.sin(2 * np.pi * second)])[:size]
        np.testing.assert_allclose(got.numpy(), expected, atol=3e-6)


def test_noise_is_standard_normal_and_differs_between_seeds_steps_phases_and_rows() -> None:
    x = noise(slice(0, 1000), 1000).double()
    assert stats.kstest(x.flatten().numpy(), "norm").pvalue > 0.001
    assert abs(x.mean()) < 4e-3 and abs(x.std() - 1) < 3e-3
    assert 4.4 < x.abs().max() < 6.8, "a million draws reach the tails"
    around = [noise(slice(0, 1000), 1000, **{name: 1}) for name in ("seed", "step", "phase")]
    streams = torch.stack([x.flatten(), *(other.double().flatten() for other in around), x.roll(1, 0).flatten()])
    assert (torch.corrcoef(streams) - torch.eye(5)).abs().max() < 5e-3


def test_a_phase_without_noise_gets_none() -> None:
    assert noise(slice(2, 5), 0).shape == (3, 0)
