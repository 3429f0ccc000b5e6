"""Dropout whose zeros are a function of the key and of a value's place in the global batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from remint.models.layers import Dropout
from remint.training.randomness import dropout_key


def dropped(x_BX: Tensor, key: int, p: float = 0.3, first: int = 0) -> Tensor:
    layer = Dropout(p)
    layer.key, layer.first = torch.tensor(key, dtype=torch.int32), first
    result: Tensor = layer(x_BX)
    return result


@pytest.mark.parametrize("shape", [(7, 5), (6, 3, 4, 4)])
@pytest.mark.parametrize("sizes", [(6,), (3, 3), (1, 4, 1)])
def test_processes_drop_together_what_one_drops(shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    x_BX = torch.randn(6, *shape[1:])
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    parts = [dropped(x_BX[start : start + size], 99, first=start) for start, size in zip(starts, sizes, strict=True)]
    assert torch.equal(torch.cat(parts), dropped(x_BX, 99))


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
def test_the_share_is_p_in_each_row_column_and_step_and_the_mean_stays(p: float) -> None:
    """Within five standard errors of a binomial share: for rows, columns, steps, and pairs of steps and of neighbours."""
    keys = [dropout_key(3, step, 0, 0) for step in range(200)]
    zero_SBD = torch.stack([dropped(torch.ones(64, 48), key, p) == 0 for key in keys]).double()

    def near(shares: Tensor, share: float, count: int) -> bool:
        return bool(((shares - share).abs() < 5 * (share * (1 - share) / count) ** 0.5).all())

    for axes in ((0, 1), (0, 2), (1, 2)):
        assert near(zero_SBD.mean(axes), p, zero_SBD.numel() // zero_SBD.shape[({0, 1, 2} - {*axes}).pop()])
    for a, b in ((zero_SBD[1:], zero_SBD[:-1]), (zero_SBD[:, 1:], zero_SBD[:, :-1]), (zero_SBD[..., 1:], zero_SBD[..., :-1])):
        assert near((a * b).mean(), p * p, a.numel())
    assert dropped(torch.ones(4, 3), 1, p).unique().tolist() in (
        [0.0],
        [pytest.approx(1 / (1 - p))],
        [0.0, pytest.approx(1 / (1 - p))],
    )


def test_steps_phases_layers_and_seeds_have_keys_of_their_own() -> None:
    keys = {
        dropout_key(seed, step, phase, layer) for seed in (0, 1) for step in range(30) for phase in (0, 1) for layer in (0, 1)
    }
    assert len(keys) == 2 * 30 * 2 * 2 and all(-(2**31) <= key < 2**31 for key in keys)


def test_places_are_hashed_by_lowbias32_and_kept() -> None:
    def lowbias32(x: int) -> int:
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    layer = Dropout(0.1)
    layer.first = 5
    found = layer._hashed_places(torch.zeros(3, 4))
    assert [int(word) % 2**32 for word in found.flatten()] == [lowbias32(place) for place in range(20, 32)]
    assert layer._hashed_places(torch.ones(3, 4)) is found and layer._hashed_places(torch.ones(2, 4)) is not found
    layer.first = 0
    assert not torch.equal(layer._hashed_places(torch.ones(3, 4)), found)


def test_compiled_it_drops_the_same() -> None:
    layer, x_BX = Dropout(0.3), torch.randn(6, 10)
    layer.key = torch.tensor(3, dtype=torch.int32)
    compiled = torch.compile(layer, backend="aot_eager")
    for key in (3, -8):
        layer.key.fill_(key)
        assert torch.equal(compiled(x_BX), layer(x_BX))


def test_the_gradient_is_that_of_the_kept_values_in_any_precision() -> None:
    x_BX = torch.randn(5, 40, dtype=torch.float64, requires_grad=True)
    dropped(x_BX, 7).sum().backward()
    assert x_BX.grad is not None
    torch.testing.assert_close(x_BX.grad, (dropped(x_BX, 7) != 0).double() / 0.7, rtol=1e-15, atol=0)
    assert torch.equal(dropped(x_BX.float(), 7) != 0, dropped(x_BX, 7) != 0)


def test_without_a_key_it_is_torch_s_and_in_eval_mode_the_identity() -> None:
    layer, x_BX = Dropout(0.5), torch.randn(9, 9)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ours = layer(x_BX)
        torch.manual_seed(0)
        assert torch.equal(ours, F.dropout(x_BX, 0.5, True))
    assert torch.equal(layer.eval()(x_BX), x_BX)
