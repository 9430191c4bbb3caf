"""Does bfloat16 change how fast entries are chosen, and never which? On data easy to tell apart, and on hard."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.dictionaries.screening import Screen, largest_of
from microtome.dictionaries.selection import above, batch_top_k, top_k

UNITS, D = 160, 16


def product(kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """plain: Gaussian. alike: all units nearly the same, so that bfloat16 cannot tell. outlying: one huge dimension."""
    source = torch.Generator().manual_seed(seed)
    x, encoder = torch.randn(12, D, generator=source), torch.randn(UNITS, D, generator=source)
    if kind == "alike":
        encoder = encoder[:1] + 1e-3 * encoder
    if kind == "outlying":
        x[:, 0] *= 300
    return x, encoder, torch.randn(UNITS, generator=source) * (kind != "alike")


KINDS = pytest.mark.parametrize("kind", ["plain", "alike", "outlying"])


def exact(parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    x, encoder, bias = parts
    return x @ encoder.mT + bias


@KINDS
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 8))
def test_the_same_are_chosen(kind: str, seed: int, k: int) -> None:
    parts = product(kind, seed)
    low = [
        top_k(*parts, k, half=True),
        batch_top_k(*parts, 12 * k, half=True),
        above(*parts, torch.full((UNITS,), 0.5), half=True),
    ]
    full = [top_k(*parts, k), batch_top_k(*parts, 12 * k), above(*parts, torch.full((UNITS,), 0.5))]
    for one, other in zip(low, full, strict=True):
        # Two ways to sum in float32 may differ by their rounding, and so choose differently among equals.
        scale = float(parts[0].norm(dim=-1).max() * parts[1].norm(dim=-1).max())
        assert len(one.pre) == len(other.pre)
        assert torch.allclose(one.pre.sort().values, other.pre.sort().values, atol=D * 2**-23 * scale)
        pre = exact(parts)[one.entries.row, one.entries.unit]
        assert torch.allclose(one.pre, pre, atol=D * 2**-23 * scale)
        places = one.entries.row * UNITS + one.entries.unit
        assert bool((places.diff() > 0).all())


@KINDS
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15)
def test_the_error_is_within_its_bound(kind: str, seed: int) -> None:
    parts = product(kind, seed)
    screen = Screen(*parts)
    truth = parts[0].double() @ parts[1].double().mT + parts[2]
    low = screen.pre(slice(0, 12)).double()
    bound = screen.error[:, None] + screen.reach(truth.float())
    assert bool(((low - truth).abs() <= bound).all())
    assert float((low - truth).abs().max()) > 0


def test_rows_that_cannot_be_told_apart_are_not_certified() -> None:
    _, values, certified = largest_of(Screen(*product("alike", 0)), 4, 5)
    assert not bool(certified.any())
    assert values.shape == (12, 4)
    clear = (
        torch.eye(D).repeat(1, 1)[:12],
        torch.cat([torch.eye(D) * 3, 0.01 * torch.randn(UNITS - D, D)]),
        torch.zeros(UNITS),
    )
    assert bool(largest_of(Screen(*clear), 1, 5)[2].all())
