"""Muon steps by a nearly orthogonal matrix with the gradient's singular vectors."""

import pytest
import torch
from torch import nn

from microtome.testbeds.stories.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_become_about_one_and_vectors_stay(shape: tuple[int, int], scale: float) -> None:
    left, _ = torch.linalg.qr(torch.randn(shape[0], min(shape)))
    right, _ = torch.linalg.qr(torch.randn(shape[1], min(shape)))
    matrix = scale * left @ torch.diag(torch.linspace(0.2, 1, min(shape))) @ right.T
    inner = left.T @ orthogonalised(matrix) @ right
    values = inner.diagonal()
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert torch.allclose(inner, torch.diag(values), atol=1e-4)


def test_fused_matrices_are_stepped_as_if_they_stood_alone() -> None:
    gradient = torch.randn(6, 18)
    fused = nn.Parameter(torch.zeros(6, 18))
    alone = [nn.Parameter(torch.zeros(6, 6)) for _ in range(3)]
    fused.grad = gradient
    for parameter, part in zip(alone, gradient.chunk(3, dim=1), strict=True):
        parameter.grad = part.clone()
    Muon([{"params": [fused], "parts": 3}], lr=0.1, weight_decay=0.0).step()
    Muon([{"params": alone}], lr=0.1, weight_decay=0.0).step()
    assert torch.allclose(fused, torch.cat([p.detach() for p in alone], dim=1), atol=1e-6)
    assert fused.detach().abs().max() > 0


def test_without_a_gradient_nothing_moves_and_decay_shrinks_the_rest() -> None:
    still, decayed = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    decayed.grad = torch.zeros(4, 4)
    Muon([{"params": [still, decayed]}], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(still, torch.ones(4, 4))
    assert torch.allclose(decayed, torch.full((4, 4), 0.95))
