"""Influence is the sum over paths, the fewest that are enough are the fewest, and what is kept hangs together."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from microtome.circuits.graph_influence import Contributions, enough, influence, prune, scores


def layered(
    seed: int, layers: int = 3, width: int = 4, errors: int = 2, embeddings: int = 3
) -> Contributions:
    """Random units in layers, each driven by what lies below it; two logits above all."""
    draw = torch.Generator().manual_seed(seed)
    units = layers * width
    rows = torch.randn(2 + units, units + errors + embeddings, generator=draw)
    for unit in range(units):
        rows[2 + unit, unit // width * width : units] = 0.0
    return Contributions(
        rows,
        torch.cat([torch.full((2,), -1), torch.arange(units)]),
        torch.cat([torch.tensor([0.7, 0.2]), torch.zeros(units)]),
        units,
        errors,
    )


@given(st.integers(0, 50))
def test_influence_is_that_of_the_inverse(seed: int) -> None:
    found = layered(seed)
    shares = found.shares.double()
    nodes = shares.shape[1]
    step = torch.zeros(nodes, nodes, dtype=torch.double)
    step[: found.n_units] = shares[2:]
    start = found.probability.double()[:2] @ shares[:2]
    expected = start @ torch.linalg.inv(torch.eye(nodes, dtype=torch.double) - step)
    torch.testing.assert_close(influence(found, found.shares).double(), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=200)
@given(
    st.lists(st.floats(0, 1e6, width=32), max_size=40),
    st.floats(0.01, 1.0),
)
def test_enough_is_the_fewest_that_hold_the_share(sizes: list[float], share: float) -> None:
    held = torch.tensor(sizes, dtype=torch.float32)
    kept = enough(held, share)
    total = float(held.double().sum())
    if total == 0.0:
        assert not kept.any()
        return
    assert float(held[kept].double().sum()) >= share * total * (1 - 1e-12)
    if share < 1.0:
        least = float(held[kept].min())
        assert float(held[kept].double().sum()) - least < share * total * (1 + 1e-12)
        assert least >= float(held[~kept].max()) if bool((~kept).any()) else True
    else:
        assert torch.equal(kept, held > 0)


def test_what_is_kept_hangs_together() -> None:
    found = layered(1)
    kept = prune(found, 0.6, 0.8)
    units = range(found.n_units)
    assert 0 < int(kept.nodes[: found.n_units].sum()) < found.n_units
    for unit in units:
        if kept.nodes[unit]:
            assert kept.edges[:, unit].any(), "a unit leads somewhere"
            assert kept.edges[2 + unit].any(), "a unit comes from somewhere"
        else:
            assert not kept.edges[:, unit].any()
            assert not kept.edges[2 + unit].any()
    everything = prune(found, 1.0, 1.0)
    assert everything.nodes.all()
    assert torch.equal(everything.edges, found.rows != 0)
    assert (everything.replacement, everything.completeness) == pytest.approx(scores(found))


def without(found: Contributions, columns: slice) -> Float[Tensor, "target node"]:
    rows = found.rows.clone()
    rows[:, columns] = 0.0
    return rows


def test_scores_are_one_without_errors_and_nought_without_units() -> None:
    found = layered(2)
    n, e = found.n_units, found.n_errors
    clean = Contributions(without(found, slice(n, n + e)), found.target, found.probability, n, e)
    assert scores(clean) == pytest.approx((1.0, 1.0))
    dark = Contributions(without(found, slice(n + e, None)), found.target, found.probability, n, e)
    assert scores(dark)[0] == 0.0
    nothing = Contributions(torch.zeros_like(found.rows), found.target, found.probability, n, e)
    assert np.isnan(scores(nothing)[0])
