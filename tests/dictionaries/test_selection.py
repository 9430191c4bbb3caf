"""Are the right entries chosen, whatever the chunks, blocks and guesses?"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from microtome.dictionaries import selection
from microtome.dictionaries.selection import above, batch_top_k, largest, top_k


def product(rows: int, units: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x, encoder = torch.randn(rows, 6, generator=source), torch.randn(units, 6, generator=source)
    return x, encoder, torch.randn(units, generator=source)


def whole(x: Tensor, encoder: Tensor, bias: Tensor) -> Tensor:
    return x @ encoder.mT + bias


@pytest.mark.parametrize("units", [37, 512])  # compared at once; compared in blocks first
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 6), chunk=st.sampled_from([600, 1 << 21]))
def test_the_largest_of_each_row(units: int, seed: int, k: int, chunk: int) -> None:
    parts = product(9, units, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_CHUNK", chunk)
        found = top_k(*parts, k)
    expected = whole(*parts).topk(k)
    entries = found.entries
    assert entries.row.tolist() == sorted(list(range(9)) * k)
    assert torch.equal(entries.unit.view(9, k), expected.indices.sort(-1).values)
    assert torch.allclose(found.pre, whole(*parts)[entries.row, entries.unit], atol=1e-5)


def test_blocks_change_nothing_even_where_many_are_equal() -> None:
    pre = torch.randint(0, 4, (20, 1024), generator=torch.Generator().manual_seed(0)).float()
    for k in (1, 5, 16):
        found = pre.gather(1, largest(pre, k)).sort(-1).values
        assert torch.equal(found, pre.topk(k).values.sort(-1).values)
        assert all(len(set(row)) == k for row in largest(pre, k).tolist())


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 400),
    guess=st.floats(-1, 12),
    chunk=st.sampled_from([80, 1 << 21]),
)
def test_the_largest_of_a_batch_whatever_the_guess(seed: int, count: int, guess: float, chunk: int) -> None:
    parts = product(11, 40, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_CHUNK", chunk)
        found = batch_top_k(*parts, count, guess)
    pre = whole(*parts).flatten()
    kept = min(count, int((pre > 0).sum()))
    place = found.entries.row * 40 + found.entries.unit
    assert place.tolist() == sorted(pre.topk(kept).indices.tolist())
    assert found.least == pytest.approx(float(found.pre.min()) if kept else 0.0)


def test_above_a_floor_of_each_unit() -> None:
    parts = product(11, 40, 2)
    floor = torch.linspace(-1, 2, 40)
    found = above(*parts, floor)
    row, unit = (whole(*parts) > floor).nonzero(as_tuple=True)
    assert torch.equal(found.entries.row, row)
    assert torch.equal(found.entries.unit, unit)
    nothing = above(*parts, torch.full((40,), 1e9))
    assert len(nothing.pre) == 0
