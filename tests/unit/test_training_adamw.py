"""AdamW: the bits of torch's own, also with weight decay, changing settings and absent gradients; a broken step changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from remint.training.adamw import AdamW

SHAPES = ((3, 4), (), (7,), (2, 1, 3, 3))


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_its_steps_are_those_of_torch_to_the_bit(weight_decay: float) -> None:
    ours, theirs = parameters(), parameters()
    optimizer, reference = AdamW(ours, weight_decay), torch.optim.AdamW(theirs, weight_decay=weight_decay, fused=True)
    generator = torch.Generator().manual_seed(1)
    for step in range(20):
        broken, betas, learning_rate = torch.tensor(float(step % 5 == 3)), (0.9 - 0.01 * step, 0.99), 0.1 / (step + 1)
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = torch.randn(one.shape, generator=generator) if (step + index) % 3 else None
            other.grad = None if one.grad is None else one.grad.clone()
        optimizer.step(learning_rate, betas, broken)
        reference.param_groups[0].update(lr=learning_rate, betas=betas)
        reference.found_inf = broken  # type: ignore[attr-defined]
        reference.step()
        for one, other in zip(ours, theirs, strict=True):
            assert torch.equal(one, other), step
    expected = {
        f"{index}.{name}": tensor for index, entry in reference.state_dict()["state"].items() for name, tensor in entry.items()
    }
    assert optimizer.tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in optimizer.tensors.items())


def test_a_broken_step_changes_nothing() -> None:
    changed = parameters()
    optimizer = AdamW(changed, 0.1)

    def every() -> list[Tensor]:
        return [tensor.detach().clone() for tensor in (*changed, *optimizer.tensors.values())]

    for broken in (0.0, 1.0):
        before = every()
        for parameter in changed:
            parameter.grad = torch.full_like(parameter, torch.nan if broken else 1.0)
        optimizer.step(0.1, (0.9, 0.99), torch.tensor(broken))
        assert all(torch.equal(one, other) for one, other in zip(before, every(), strict=True)) == bool(broken)


def test_without_gradients_a_step_does_nothing() -> None:
    changed = parameters()
    AdamW(changed, 0.1).step(0.1, (0.9, 0.99), torch.tensor(0.0))
    assert all(torch.equal(one, other) for one, other in zip(changed, parameters(), strict=True))
