"""More functions than neurons: what the neurons hold is exactly the sum of shares, and the answers are right."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from microtome.core import plugins
from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.testbeds.toys import computation
from microtome.testbeds.toys.computation import (
    SITE,
    TwoLayers,
    ands,
    at_most_two,
    recipe,
    sampled_pairs,
    shares,
    some_on,
    universal_and,
)
from microtome.testbeds.toys.network import fit
from microtome.testbeds.training import seeded


@given(st.integers(2, 7), st.integers(1, 9), st.integers(0, 10**6))
def test_neurons_hold_the_shares_of_inputs_and_pairs_and_no_more(
    inputs: int, neurons: int, seed: int
) -> None:
    x, pairs = at_most_two(inputs)
    with seeded(seed):
        layer = TwoLayers(inputs, neurons, 1).neurons
    alone, together = shares(layer, inputs, pairs)
    with torch.no_grad():
        held = layer(x)
        nothing = layer(torch.zeros(1, inputs))
    rebuilt = nothing + x @ alone + ands(x, pairs).float() @ together
    torch.testing.assert_close(held, rebuilt, rtol=1e-5, atol=1e-5)


def test_every_input_with_at_most_two_on_is_there_once() -> None:
    x, pairs = at_most_two(6)
    assert len({tuple(row) for row in x.tolist()}) == len(x) == 1 + 6 + 15
    assert int(x.sum(-1).max()) == 2
    on = ands(x, pairs)
    assert on.sum().item() == len(pairs)
    for row, answers in zip(x.tolist(), on.tolist(), strict=True):
        assert answers == [row[i] == row[j] == 1 for i, j in pairs]


def test_the_random_construction_reads_off_any_pair() -> None:
    # The decisive test: 3 of 400 inputs on, 400 neurons.
    for seed in (0, 1):
        case = computation.build("universal_and", seed)
        area = case.evidence[0]
        assert area.value >= 0.99
        read = case.model.module(case.tokens["x"]) > 0
        wanted = torch.stack(list(case.truth.labels.values()), -1)
        assert wanted.any(-1).float().mean() >= 0.5
        # At one threshold for all, ½, not one pair in a hundred that is on is missed.
        assert float(read[wanted].float().mean()) > 0.99
        assert float(read[~wanted].float().mean()) < 0.02


def test_the_error_falls_as_one_over_the_root_of_the_neurons() -> None:
    source = generator(5)
    pairs = sampled_pairs(120, 150, source)
    x = some_on(120, 3, pairs, 400, source)

    def error(neurons: int) -> float:
        found = universal_and(120, neurons, pairs)(x) + 0.5 - ands(x, pairs).float()
        return float((found**2).mean().sqrt().detach())

    few, many = error(900), error(3600)
    # Four times the neurons, each reading an input half as often: half the error, and less where pairs of others meet.
    assert 1.7 < few / many < 2.6


@torch.no_grad()
def test_without_the_nonlinearity_there_is_no_and() -> None:
    module = universal_and(120, 400, [(0, 1), (2, 3)])
    x = torch.zeros(3, 120)
    x[1, 0] = x[2, 0] = x[2, 1] = 1.0
    assert (module(x)[:, 0] > 0).tolist() == [False, False, True]
    linear = module.neurons[0]
    zero, one, two = module.readout(linear(x))[:, 0].tolist()
    assert one - zero == pytest.approx(two - one, abs=1e-5), (
        "a linear layer says half as much for one input as for two"
    )
    _, together = shares(linear, 120, [(0, 1)])
    assert float(together.abs().max()) == 0


def test_neurons_that_read_both_hold_exactly_the_and() -> None:
    pairs = list(combinations(range(12), 2))
    module = universal_and(12, 100, pairs)
    _, together = shares(module.neurons, 12, pairs)
    reads = module.neurons[0].weight
    assert isinstance(reads, torch.Tensor)
    for (one, other), share in zip(pairs, together, strict=True):
        torch.testing.assert_close(share, reads.detach()[:, one] * reads.detach()[:, other])


@pytest.mark.parametrize("name", computation.cases())
def test_a_case_holds(name: str) -> None:
    case = computation.build(name, 1)
    assert set(case.truth.kinds) == set(computation.card.kinds)
    assert all(len(label) == len(case.tokens["x"]) for label in case.truth.labels.values())
    held = case.model.run(case.tokens, read=[SITE])[SITE]
    assert held.shape[1] == case.truth.features[SITE].shape[1] == case.truth.quantities["neurons"]
    if name != "universal_and":  # which computes far more than the pairs that are read
        assert len(case.truth.features[SITE]) > held.shape[1], "there is superposition"


@pytest.mark.parametrize("seed", [0, 1])
def test_removing_what_a_pair_writes_removes_its_and(seed: int) -> None:
    case = computation.build("pairwise_and", seed)
    module = case.model.module
    assert isinstance(module, TwoLayers)
    x, pairs = at_most_two(computation.INPUTS)
    rows = 1 + computation.INPUTS + torch.arange(len(pairs))
    with torch.no_grad():
        held = module.neurons(x)[rows]
        written = case.truth.features[SITE][computation.INPUTS :]
        before, after = module.readout(held).diagonal(), module.readout(held - written).diagonal()
    off = case.evidence[0].value
    assert off < 0.2
    # What is left is what the two say one by one: off by three times as much, at most (the module's docstring).
    assert float(before.min()) >= 1 - off - 1e-5
    assert float(after.max()) <= 3 * off + 1e-5


def test_no_linear_readout_of_the_inputs_is_within_a_quarter() -> None:
    # Least largest error, by linear programming: minimise e with |a + w·x − AND| ≤ e for every input.
    x, pairs = at_most_two(5)
    wanted = ands(x, pairs)[:, 0].double().numpy()
    design = np.column_stack([np.ones(len(x)), x.numpy()])
    error = -np.ones((len(x), 1))
    found = linprog(
        [0.0] * design.shape[1] + [1.0],
        A_ub=np.block([[design, error], [-design, error]]),
        b_ub=np.concatenate([wanted, -wanted]),
        bounds=(None, None),
    )
    assert found.fun == pytest.approx(1 / 4, abs=1e-9)


@torch.no_grad()
def test_absolute_values_of_either_sign_come_out() -> None:
    case = computation.build("absolute_value")
    halves = torch.cat([torch.eye(computation.NUMBERS), -torch.eye(computation.NUMBERS)])
    answers = case.model.module(0.7 * halves)
    computed = (answers * halves.abs()).sum(-1) > 0.35
    assert int(computed.sum()) == case.truth.quantities["halves computed"]
    held = case.model.run({"x": 0.7 * halves[computed]}, read=[SITE])[SITE]
    torch.testing.assert_close(held, 0.7 * case.truth.features[SITE])
    right = (answers * halves.abs()).sum(-1)[computed]
    assert right.tolist() == pytest.approx([0.7] * len(right), abs=0.2)


@pytest.mark.parametrize("name", ["absolute_value", "pairwise_and"])
@torch.no_grad()
def test_the_twin_computes_nothing(name: str) -> None:
    case = computation.build(name)
    module = case.control.module
    assert isinstance(module, TwoLayers)
    if name == "pairwise_and":
        x, pairs = at_most_two(computation.INPUTS)
        assert float((module(x) - ands(x, pairs).float()).abs().max()) > 0.5
    else:
        x = case.tokens["x"]
        assert float(((module(x) - x.abs()) ** 2).mean()) > 2 * float(
            ((case.model.module(x) - x.abs()) ** 2).mean()
        )


def test_training_replays() -> None:
    for name in computation.cases()[:2]:
        one, first = fit(recipe(name), 3, steps=10)
        two, second = fit(recipe(name), 3, steps=10)
        assert first.losses == second.losses
        assert all(torch.equal(two.state_dict()[key], value) for key, value in one.state_dict().items())


@pytest.mark.training
@pytest.mark.parametrize("name", ["absolute_value", "pairwise_and"])
def test_what_ships_is_what_training_gives(name: str) -> None:
    retrained, _ = fit(recipe(name), 0)
    shipped = computation.build(name).model.module
    for key, value in shipped.state_dict().items():
        torch.testing.assert_close(retrained.state_dict()[key], value, rtol=0.05, atol=0.05)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="no case 'or'"):
        computation.build("or")
    with pytest.raises(InputError, match="trained"):
        recipe("universal_and")
    with pytest.raises(InputError, match="too few"):
        universal_and(10, 9, [(0, 1)])
    with pytest.raises(InputError, match="read by no neuron"):
        universal_and(60, 400, list(combinations(range(60), 2)), read=1.0)
    assert math.comb(400, 2) > 400
    assert plugins.load("testbeds", "computation_in_superposition") is computation
