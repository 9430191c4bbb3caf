"""A program's causal model says what the program says, and its network obeys every exchange of every variable."""

import itertools

import pytest
import torch

from microtome.testbeds.programs.causal_model import NOTHING, causal_model, hypothesis
from microtome.testbeds.programs.library import program


@pytest.mark.parametrize("name", ["sort", "dyck_1", "fraction_of_previous", "sum", "none_alike"])
def test_it_answers_as_the_program_does(name: str) -> None:
    one = program(name)
    compiled = one.compile()
    inputs = list(itertools.product(one.vocabulary, repeat=one.length))[::7]
    found = causal_model(compiled, one.expression).run(compiled.encode(inputs))["answer"]
    expected = [[compiled.id(value) for value in one.interpret(given)] for given in inputs]
    assert found[:, 1:].tolist() == expected


def test_variables_are_the_named_sequences_with_their_parents() -> None:
    one = program("sort")
    model = causal_model(one.compile(), one.expression)
    assert model.inner == ("rank", "sort")
    assert model.parents("rank") == ("tokens",)
    assert model.parents("sort") == ("rank", "tokens")


def test_what_is_the_same_in_every_input_is_left_out() -> None:
    one = program("reverse")
    compiled = one.compile()
    tokens = compiled.encode(list(itertools.product(one.vocabulary, repeat=one.length))[:40])
    assert causal_model(compiled, one.expression).inner == ("length", "opposite", "reverse")
    found = hypothesis(compiled, one.expression, tokens)
    assert found is not None
    assert found.model.inner == ("reverse",)
    constant = program("length")
    network = constant.compile()
    assert hypothesis(network, constant.expression, network.encode([("a",) * 5, ("b",) * 5])) is None


def test_values_that_never_meet_have_no_answer() -> None:
    one = program("induction")
    compiled = one.compile()
    model = causal_model(compiled, one.expression)
    tokens = compiled.encode([("a", "b", "c", "a", "b"), ("a", "a", "a", "a", "a")])
    values = model.run(tokens)
    moved = model.run(tokens[:1], {"token before": torch.full_like(values["token before"][:1], NOTHING)})
    assert (moved["times seen"] == NOTHING).all()
