"""Operators for ONNX against those of torch and of scipy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import torch

from remint.serving.exporting import operators


def test_the_normal_distribution_function_and_its_log_agree_with_scipy() -> None:
    x_N = torch.linspace(-37.0, 37.0, 5_001, dtype=torch.float64)
    np.testing.assert_allclose(operators.ndtr(x_N).numpy(), scipy.special.ndtr(x_N.numpy()), rtol=1e-8)
    np.testing.assert_allclose(operators.ndtr(x_N).numpy(), scipy.special.ndtr(x_N.numpy()), atol=1e-15)
    np.testing.assert_allclose(operators.log_ndtr(x_N).numpy(), scipy.special.log_ndtr(x_N.numpy()), rtol=1e-8)
    assert operators.ndtr(x_N.float()).dtype == operators.log_ndtr(x_N.float()).dtype == torch.float32


def test_the_quantile_is_the_inverse() -> None:
    share_N = torch.cat(
        [torch.logspace(-300, -1, 2_000, dtype=torch.float64), torch.linspace(0.1, 1 - 1e-12, 2_000, dtype=torch.float64)]
    )
    np.testing.assert_allclose(operators.ndtri(share_N).numpy(), scipy.special.ndtri(share_N.numpy()), rtol=1e-12, atol=1e-14)


def test_the_hyperbolic_sine_agrees_with_torch() -> None:
    x_N = torch.linspace(-80.0, 80.0, 1_001, dtype=torch.float64)
    torch.testing.assert_close(operators.sinh(x_N), x_N.sinh())


@pytest.mark.parametrize("right", [False, True])
def test_places_among_edges_agree_with_torch_also_on_an_edge(right: bool) -> None:
    edge_QL = torch.tensor([[0.0, 0.2, 0.2, 0.7], [-1.0, 0.0, 3.0, 9.0]])
    x_QN = torch.tensor([[-1.0, 0.0, 0.2, 0.5, 0.7, 2.0], [-1.0, -2.0, 0.0, 9.0, 10.0, 3.0]])
    assert torch.equal(operators.searchsorted(edge_QL, x_QN, right=right), torch.searchsorted(edge_QL, x_QN, right=right))


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("unitriangular", [False, True])
def test_a_triangular_system_is_solved(upper: bool, unitriangular: bool) -> None:
    a_CC, b_CC = torch.randn(2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a_CC = (a_CC + 3 * torch.eye(5)).triu() if upper else (a_CC + 3 * torch.eye(5)).tril()
    expected = torch.linalg.solve_triangular(a_CC, b_CC, upper=upper, unitriangular=unitriangular)
    torch.testing.assert_close(operators.solve_triangular(a_CC, b_CC, upper=upper, unitriangular=unitriangular), expected)
