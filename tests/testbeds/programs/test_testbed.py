"""Programs as cases: built the same by the same seed, with pairs that the network tells apart."""

import pytest
import torch

from microtome.core import plugins
from microtome.core.errors import InputError
from microtome.data import metrics
from microtome.testbeds.programs import testbed
from microtome.testbeds.programs.library import PROGRAMS


def test_every_program_has_a_circuit_whose_variables_have_names_of_their_own() -> None:
    for one in PROGRAMS:
        truth = one.compile(testbed.decoys()).truth()
        assert truth.circuit is not None
        assert {"embed", "logits"} <= set(truth.circuit.nodes) or one.name == "sum"
        names = [variable.name for variable in truth.variables]
        assert len(set(names)) == len(names)


def test_a_program_without_pairs_is_a_case_without_pairs() -> None:
    case = testbed.build("length")
    assert case.pairs is None
    assert case.truth.unshown == frozenset()


@pytest.mark.parametrize("name", ["reverse", "majority", "fraction_of_previous", "lookup"])
def test_the_network_prefers_the_answer_in_every_pair(name: str) -> None:
    case = testbed.build(name)
    assert case.pairs is not None
    metric = metrics.build("logit-difference", case.pairs)
    clean = case.model.run(case.pairs.clean, metric=metric).metric
    corrupt = case.model.run(case.pairs.corrupt, metric=metric).metric
    assert clean is not None
    assert corrupt is not None
    assert bool((clean > 1).all())
    assert bool((corrupt < -1).all())
    assert bool(((case.pairs.clean != case.pairs.corrupt).sum(dim=1) == 1).all())
    output = case.truth.labels["output"]
    assert output.shape == case.tokens.shape


def test_the_seed_draws_the_pairs() -> None:
    one, same, other = (
        testbed.build("sort", 0).pairs,
        testbed.build("sort", 0).pairs,
        testbed.build("sort", 1).pairs,
    )
    assert one is not None
    assert same is not None
    assert other is not None
    assert one.hash == same.hash != other.hash


def test_it_is_registered_and_refuses_other_names() -> None:
    module = plugins.load("testbeds", "programs")
    assert module.card.name == "programs"
    assert len(module.cases()) >= 20
    with pytest.raises(InputError, match="no program is called"):
        module.build("quicksort")


def test_the_control_does_not_do_the_task() -> None:
    case = testbed.build("reverse")
    said = case.control.module(case.tokens).logits[:, 1:].argmax(dim=-1)
    assert (said == case.truth.labels["output"][:, 1:]).all(dim=1).float().mean() < 0.1
    assert not torch.equal(case.control.module.embed.weight, case.model.module.embed.weight)


def test_a_variable_has_no_values_that_it_never_takes() -> None:
    """A token is counted with itself, so that no count is 0; and no direction is told that nothing ever stands on."""
    case = testbed.build("histogram")
    variables = {one.name: one for one in case.truth.variables}
    assert variables["count"].values == (1, 2, 3, 4, 5)
    assert variables["tokens"].values == ("a", "b", "c")
    for one in variables.values():
        there = case.model.run(case.tokens, [one.site])[one.site].flatten(0, 1) @ one.directions.T
        assert bool((there.amax(0) - there.amin(0) > 0.1).all())
