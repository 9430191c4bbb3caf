"""What methods of edges share: the sample is drawn once and cut exactly; errors are told; bad gradients are refused."""

import numpy as np
import pytest
import torch
from tests.circuits.planted import random_pairs
from tests.models import families

from microtome.circuits import edge_attribution_patching as method
from microtome.circuits.edge_estimates import Sample, errors
from microtome.circuits.edge_graph import EdgeGraph
from microtome.core.errors import NotFiniteError


def test_a_sample_is_of_different_edges_and_the_same_again() -> None:
    graph = EdgeGraph.of(families.model("llama"))
    one, two, other = (Sample.of(graph, 20, seed).places for seed in (0, 0, 1))
    assert one == two != other
    assert len(set(one)) == 20
    assert all(bool(graph.allowed[place]) for place in one)
    assert len(Sample.of(graph, 10**6, 0).places) == len(graph)


def test_errors_are_told_and_ranks_alone_where_a_score_is_no_effect() -> None:
    exact = np.array([1.0, -2.0, 0.5, 0.0])
    guess = 10 * exact**3
    (row,) = errors(guess, exact, 9).rows
    assert row[0] == "4 of 9"
    assert row[2] == pytest.approx(1)
    assert row[4] == pytest.approx(np.abs(guess - exact).max())
    (row,) = errors(guess, exact, 9, comparable=False).rows
    assert row[2] == pytest.approx(1)
    assert np.isnan(row[3])
    assert np.isnan(errors(np.zeros(0), np.zeros(0), 9).rows[0][1])


def test_numbers_do_not_depend_on_how_many_pairs_share_a_batch_or_are_given_twice() -> None:
    model, pairs = families.model("gpt2"), random_pairs(2)
    once, twice = (
        method.run(model, each, method.Config(checked=0)).data["effect"].values
        for each in (pairs, pairs.rows([0, 1, 0, 1]))
    )
    np.testing.assert_allclose(once, twice, atol=1e-6)


def test_a_gradient_that_is_no_number_is_refused() -> None:
    model, pairs = families.model("gpt2"), random_pairs(2)
    weight = model.weight("W_in.1")
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = float("nan")
    try:
        with pytest.raises(NotFiniteError):
            method.run(model, pairs, method.Config(checked=0))
    finally:
        with torch.no_grad():
            weight.copy_(kept)
