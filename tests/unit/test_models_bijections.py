"""Every invertible layer against its inverse and the autograd Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from remint.errors import SettingsError
from remint.models.bijections import LOG_SCALE, ActNorm, Bijection, Chain, Coupling, Marginal, affine, elementwise
from remint.models.contract import standard_normal
from remint.models.glow import InvertibleConvolution, MapCoupling, Multiscale, Squeeze
from remint.settings.recipe import FlowSettings

SPLINE = FlowSettings(hidden=8, layers=1, bins=5, width=4, blocks=2, dilation=2, couplings=2, dropout=0.0)
AFFINE = SPLINE.model_copy(update={"coupling": "affine"})
FIRST_TWO = torch.tensor([True, True, False])
ROW, MAP = (3,), (4, 4, 2)
SPREAD = 0.05  # scale of the weights: with larger ones a stack of random layers is chaotic, and its inverse inaccurate

LAYERS: dict[str, tuple[Callable[[], Bijection], tuple[int, ...], int]] = {  # layer, shape of its input, classes
    "ActNorm of rows": (lambda: ActNorm(3), ROW, 0),
    "ActNorm of maps": (lambda: ActNorm(4), MAP, 0),
    "spline Coupling": (lambda: Coupling(FIRST_TWO, SPLINE, 0), ROW, 0),
    "affine Coupling": (lambda: Coupling(FIRST_TWO, AFFINE, 0), ROW, 0),
    "Coupling given classes": (lambda: Coupling(FIRST_TWO, SPLINE, 2), ROW, 2),
    "spline Marginal": (lambda: Marginal(SPLINE, 0), (1,), 0),
    "Marginal given classes": (lambda: Marginal(AFFINE, 2), (1,), 2),
    "Chain": (lambda: Chain([ActNorm(3), Coupling(FIRST_TWO, AFFINE, 0), Coupling(~FIRST_TWO, SPLINE, 0)]), ROW, 0),
    "Squeeze": (Squeeze, MAP, 0),
    "InvertibleConvolution": (lambda: InvertibleConvolution(4), MAP, 0),
    "spline MapCoupling": (lambda: MapCoupling(4, SPLINE, 0, elementwise(SPLINE)), MAP, 0),
    "affine MapCoupling": (lambda: MapCoupling(4, AFFINE, 0, elementwise(AFFINE)), MAP, 0),
    "MapCoupling given classes": (lambda: MapCoupling(4, AFFINE, 2, elementwise(AFFINE)), MAP, 2),
    "Multiscale": (lambda: Multiscale((2, 4, 4), AFFINE, 0), (32,), 0),
    "spline Multiscale": (lambda: Multiscale((1, 4, 4), SPLINE, 2), (16,), 2),
}


def a_layer(name: str, dtype: torch.dtype) -> tuple[Bijection, Tensor, Tensor | None]:
    """Return a layer that was initialised from data and then perturbed, points, and their classes."""
    make, shape, classes = LAYERS[name]
    torch.manual_seed(0)
    layer = make().to(dtype).eval()
    z = (3.0 * standard_normal((200, *shape), 1) + 1.0).to(dtype)
    c = torch.eye(classes, dtype=dtype)[torch.arange(200) % classes] if classes else None
    with torch.no_grad():
        layer.fit_through(z, c)
        for parameter in layer.parameters():
            parameter.add_(SPREAD * torch.randn_like(parameter))
    return layer.requires_grad_(False), z, c


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_inverse_undoes_the_layer(name: str, dtype: torch.dtype, tolerance: float) -> None:
    layer, z, c = a_layer(name, dtype)
    there, log_det = layer(z, c)
    back, back_log_det = layer(there, c, inverse=True)
    assert there.dtype == back.dtype == log_det.dtype == dtype and log_det.shape == (200,)
    assert name == "Squeeze" or float((there.flatten() - z.flatten()).abs().max()) > 0.1
    torch.testing.assert_close(back, z, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=100 * tolerance)


@pytest.mark.parametrize("name", LAYERS)
def test_the_log_determinant_equals_that_of_the_jacobian(name: str) -> None:
    layer, z, c = a_layer(name, torch.float64)
    _, log_det = layer(z, c)
    for i in range(3):
        given = None if c is None else c[i : i + 1]
        jacobian = torch.autograd.functional.jacobian(lambda v, given=given: layer(v, given)[0].flatten(), z[i : i + 1])
        expected = torch.linalg.slogdet(jacobian.view(z[0].numel(), -1)).logabsdet
        torch.testing.assert_close(log_det[i], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name, (_, _, classes) in LAYERS.items() if classes])
def test_the_layer_depends_on_the_class(name: str) -> None:
    layer, z, c = a_layer(name, torch.float64)
    assert c is not None
    assert not torch.allclose(layer(z, c)[0], layer(z, 1 - c)[0])


@pytest.mark.parametrize("name", LAYERS)
def test_data_dependent_layers_start_as_documented(name: str) -> None:
    """A coupling starts as the identity, a convolution as a rotation, with log-determinant zero."""
    make, shape, classes = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double().eval()
    z = 3.0 * standard_normal((200, *shape), 1).double() + 1.0
    c = torch.eye(classes, dtype=torch.float64)[torch.arange(200) % classes] if classes else None
    with torch.no_grad():
        out = layer.fit_through(z, c)
        again, log_det = layer(z, c)
    torch.testing.assert_close(again, out, rtol=0, atol=0)
    if "oupling" in name or "Marginal" in name:
        torch.testing.assert_close(out, z, rtol=0, atol=1e-12)
    if "onvolution" in name or "Squeeze" in name:
        torch.testing.assert_close(log_det, torch.zeros(200, dtype=torch.float64), rtol=0, atol=1e-6)
        torch.testing.assert_close(out.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1), rtol=1e-6, atol=0)


def test_actnorm_starts_standardised_in_every_channel_and_scale() -> None:
    torch.manual_seed(0)
    flow = Multiscale((1, 8, 8), AFFINE.model_copy(update={"scales": 3}), 0).double().eval()
    z = 5.0 * standard_normal((300, 64), 1).double() - 2.0
    seen: list[Tensor] = []
    for module in flow.modules():
        if isinstance(module, ActNorm):
            module.register_forward_hook(lambda _module, _given, out: seen.append(out[0]))
    with torch.no_grad():
        flow.fit_through(z, None)
    assert len(seen) == 3 * AFFINE.couplings
    for out in seen:
        values = out.transpose(0, 1).flatten(1)
        torch.testing.assert_close(values.mean(1), torch.zeros(len(values), dtype=torch.float64), rtol=0, atol=1e-9)
        torch.testing.assert_close(values.std(1, correction=0), torch.ones(len(values), dtype=torch.float64), rtol=0, atol=1e-9)


def test_a_constant_channel_starts_finite() -> None:
    layer, z = ActNorm(3).double(), standard_normal((50, 3), 1).double()
    z[:, 1] = 4.0
    out = layer.fit_through(z, None).detach()
    assert bool(out.isfinite().all()) and float(out[:, 1].abs().max()) < 1e-9


def test_affine_scales_are_clamped() -> None:
    raw = torch.tensor([-1e6, -1.0, 0.0, 1.0, 1e6], dtype=torch.float64)
    value, log_scale = affine(torch.ones(5, dtype=torch.float64), torch.stack([raw, torch.zeros_like(raw)], dim=-1))
    assert log_scale.abs().max() == LOG_SCALE and bool((log_scale.diff() > 0).all())
    torch.testing.assert_close(value, log_scale.exp())
    assert value.max() == pytest.approx(math.exp(LOG_SCALE))


@pytest.mark.parametrize(("image", "scales", "remedy"), [((1, 28, 28), 3, "use at most 2"), ((3, 5, 8), 1, "network: mlp")])
def test_sides_that_cannot_be_halved_are_refused(image: tuple[int, int, int], scales: int, remedy: str) -> None:
    with pytest.raises(SettingsError, match=rf"model\.scales: {scales} .* {image[1]} x {image[2]} .*{remedy}"):
        Multiscale(image, SPLINE.model_copy(update={"scales": scales}), 0)
