"""The convolutional trunks: shapes, initialisation, resampling and receptive fields."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from remint.errors import SettingsError
from remint.models.convolutional import (
    Activation,
    DownsamplingNetwork,
    SameSizeNetwork,
    UpsamplingNetwork,
    dilation_rates,
    downsample,
    stages,
    upsample,
    widths,
)


def random_numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def perturbed(module: nn.Module) -> nn.Module:
    """Return the module in float64 with every weight changed from its initial value."""
    module.double()
    with torch.no_grad():
        for index, parameter in enumerate(module.parameters()):
            parameter.add_(0.2 * random_numbers(*parameter.shape, seed=index))
    return module


@pytest.mark.parametrize(
    ("size", "count"), [((8, 8), 2), ((16, 16), 3), ((28, 28), 3), ((32, 32), 4), ((64, 64), 5), ((3, 4), 1)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_down_and_up_sampling_have_the_right_shapes_at_every_size(size: tuple[int, int], count: int, channels: int) -> None:
    torch.manual_seed(0)
    down = DownsamplingNetwork(channels, size, 8, 1, 5, extra_features=2, dilation=2).double()
    up = UpsamplingNetwork(5, 8, 1, channels, size, dilation=2).double()
    features = down(random_numbers(2, channels, *size), random_numbers(2, 2))
    assert features.shape == (2, 5) and features.dtype == torch.float64
    assert up(features).shape == (2, channels, *size)
    assert len(down.stages) == len(up.stages) == len(stages(size)) == count


@pytest.mark.parametrize(("size", "stop"), [((9, 9), "9 x 9"), ((22, 22), "11 x 11"), ((64, 8), "32 x 4")])
def test_a_size_that_cannot_be_halved_is_refused_by_name(size: tuple[int, int], stop: str) -> None:
    with pytest.raises(SettingsError, match=f"stops at {stop}"):
        DownsamplingNetwork(1, size, 8, 1, 5)


def test_coarser_maps_have_more_channels_up_to_four_times() -> None:
    assert widths(16, 5) == [16, 32, 64, 64, 64]


@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 1, 2), (2, 2, 7, 7)])
def test_doubling_is_bilinear_interpolation(shape: tuple[int, ...]) -> None:
    x = random_numbers(*shape)
    torch.testing.assert_close(upsample(x), F.interpolate(x, scale_factor=2, mode="bilinear"), rtol=0, atol=1e-15)


def test_halving_is_bilinear_interpolation_and_undoes_the_doubling_of_a_constant() -> None:
    x = random_numbers(2, 3, 4, 6)
    torch.testing.assert_close(downsample(x), F.interpolate(x, scale_factor=0.5, mode="bilinear"), rtol=0, atol=1e-15)
    ones = torch.ones(1, 1, 3, 3)
    assert torch.equal(downsample(upsample(ones)), ones)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("side", [8, 32, 64])
@torch.no_grad()
def test_variance_is_kept_at_initialisation_and_when_the_branches_open(side: int, activation: Activation) -> None:
    torch.manual_seed(0)
    down = DownsamplingNetwork(3, (side, side), 16, 2, 64, activation=activation)
    up = UpsamplingNetwork(64, 16, 2, 3, (side, side), activation=activation)
    features, coarse = torch.randn(16, 64), torch.randn(16, 3, *stages((side, side))[-1])
    for _ in range(len(down.stages) - 1):  # images are smooth: halving white noise would leave a quarter of the variance
        coarse = upsample(coarse)
    coarse = coarse / coarse.std()
    assert 0.3 < float(down(coarse).std()) < 3.0
    assert 0.3 < float(up(features).std()) < 3.0
    for trunk in (down, up):  # as after training: the zero layers have the scale of the others
        for name, parameter in trunk.named_parameters():
            if name.endswith("branch.4.weight"):
                nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5)
    assert 0.3 < float(down(coarse).std()) < 3.0
    assert 0.3 < float(up(features).std()) < 3.0


def test_every_block_is_the_identity_at_initialisation_and_the_zero_trunk_is_zero() -> None:
    torch.manual_seed(0)
    x = random_numbers(2, 3, 5, 5)
    trunk = SameSizeNetwork(3, 8, 4, 2).double()
    torch.testing.assert_close(trunk(x), trunk.last(trunk.stem(x, None)), rtol=0, atol=0)
    assert torch.equal(SameSizeNetwork(3, 8, 4, 2, zero=True).double()(x), torch.zeros(2, 4, 5, 5, dtype=torch.float64))


def test_dilation_rates_double_up_to_the_largest_that_fits_the_map() -> None:
    assert dilation_rates(5, 4) == [1, 2, 4, 4, 4]
    assert dilation_rates(3, 1) == [1, 1, 1]
    assert dilation_rates(3, 4, (8, 8)) == [1, 2, 4]
    assert dilation_rates(3, 4, (4, 8)) == [1, 2, 2]
    assert dilation_rates(2, 4, (1, 1)) == [1, 1]


@pytest.mark.parametrize(("dilation", "reach"), [(1, 3), (2, 5), (4, 7)])
def test_receptive_field_grows_with_dilation(dilation: int, reach: int) -> None:
    """After three blocks with rates r, the middle output depends on exactly sum(r) inputs in each direction."""
    torch.manual_seed(0)
    trunk = perturbed(SameSizeNetwork(1, 8, 1, 3, dilation=dilation))
    x = random_numbers(1, 1, 21, 21).requires_grad_(True)
    (gradient,) = torch.autograd.grad(trunk(x)[0, 0, 10, 10], x)
    seen = gradient[0, 0] != 0
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert (int(rows.min()), int(rows.max())) == (10 - reach, 10 + reach)
    assert (int(columns.min()), int(columns.max())) == (10 - reach, 10 + reach)


def test_examples_are_independent_and_the_side_input_is_used() -> None:
    torch.manual_seed(0)
    trunk = perturbed(DownsamplingNetwork(1, (8, 8), 4, 1, 2, extra_features=3))
    x, beside = random_numbers(3, 1, 8, 8), random_numbers(3, 3, seed=1)
    whole = trunk(x, beside)
    torch.testing.assert_close(trunk(x[1:2], beside[1:2]), whole[1:2], rtol=1e-12, atol=1e-12)
    other = trunk(x, beside.flip(0))
    assert not torch.allclose(other[0], whole[0]) and torch.allclose(other[1], whole[1])


def test_second_derivatives_equal_finite_differences() -> None:
    torch.manual_seed(0)
    trunk = perturbed(DownsamplingNetwork(1, (8, 8), 2, 1, 1))
    x = random_numbers(1, 1, 8, 8).requires_grad_(True)
    assert torch.autograd.gradgradcheck(trunk, (x,))
