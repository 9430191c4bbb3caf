"""A norm taken apart is the norm: constants read off any class, and the linear view exact at the actual scale."""

import pytest
import torch
from torch import nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from microtome.models.linear_norm import read_norm

D = 13
NORMS = {
    "LayerNorm": (nn.LayerNorm(D), True),
    "LayerNorm without bias": (nn.LayerNorm(D, bias=False), True),
    "LayerNorm without parameters": (nn.LayerNorm(D, elementwise_affine=False), True),
    "LayerNorm, large epsilon": (nn.LayerNorm(D, eps=0.5), True),
    "Cohere": (CohereLayerNorm(hidden_size=D), True),
    "Llama": (LlamaRMSNorm(D), False),
    "Gemma, gain one plus weight": (Gemma2RMSNorm(D), False),
    "torch RMSNorm": (nn.RMSNorm(D, eps=1e-6), False),
}


def norm_of(name: str) -> tuple[nn.Module, bool]:
    module, centred = NORMS[name]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module, centred


@pytest.mark.parametrize("name", NORMS)
def test_pieces_rebuild_the_norm(name: str) -> None:
    module, centred = norm_of(name)
    norm = read_norm(module, D)
    x = 3 * torch.randn(5, D) + 1
    assert norm.centred == centred
    torch.testing.assert_close(norm.push(x, norm.scale(x)) + norm.bias, module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NORMS)
def test_what_it_makes_of_a_sum_is_the_sum(name: str) -> None:
    module, _ = norm_of(name)
    norm = read_norm(module, D)
    parts = torch.randn(7, D)
    scale = norm.scale(parts.sum(0))
    made = norm.push(parts, scale).sum(0) + norm.bias
    torch.testing.assert_close(made, module(parts.sum(0)), rtol=1e-4, atol=1e-5)
    # The negative control: with each part's own scale the sum is something else.
    wrong = norm.push(parts, norm.scale(parts)).sum(0) + norm.bias
    assert (wrong - made).abs().max() > 0.1


@pytest.mark.parametrize("name", NORMS)
def test_pull_is_the_adjoint_of_push(name: str) -> None:
    norm = read_norm(norm_of(name)[0], D)
    x, d = torch.randn(4, D), torch.randn(4, D)
    one = torch.ones(4, 1)
    torch.testing.assert_close((norm.push(x, one) * d).sum(-1), (x * norm.pull(d)).sum(-1))


@pytest.mark.parametrize("module", [None, nn.Identity()])
def test_no_norm_changes_nothing(module: nn.Module | None) -> None:
    norm = read_norm(module, D)
    x = torch.randn(3, D)
    assert torch.equal(norm(x), x)
    assert torch.equal(norm.push(x, norm.scale(x)), x)


def test_a_value_without_direction_has_scale_one() -> None:
    norm = read_norm(nn.LayerNorm(D), D)
    assert torch.equal(norm.scale(torch.full((1, D), 2.0)), torch.ones(1, 1))
