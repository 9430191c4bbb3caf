"""Every program on every input: interpreted, compiled to both shapes, and said in plain Python, all the same."""

import itertools

import pytest
import torch

import microtome
from microtome.core.errors import InputError
from microtome.testbeds.programs.library import PROGRAMS, Program, program
from microtome.testbeds.programs.testbed import decoys, mismatches

NAMES = [one.name for one in PROGRAMS]


@pytest.mark.parametrize("one", PROGRAMS, ids=NAMES)
def test_network_program_and_plain_python_agree_on_every_input(one: Program) -> None:
    compiled, crowded = one.compile(), one.compile(decoys())
    modules = [(compiled, compiled.transformer()), (crowded, crowded.transformer())]
    if one.causal:
        modules.append((compiled, compiled.gpt2()))
    for length in range(1, one.length + 1):
        inputs = list(itertools.product(one.vocabulary, repeat=length))
        for given in inputs:
            assert one.interpret(given) == one.reference(list(given))
        for network, module in modules:
            with torch.no_grad():
                logits = module(network.encode(inputs)).logits
            assert mismatches(one, network, logits, inputs) == 0


def test_there_are_twenty_and_their_names_differ() -> None:
    assert len(set(NAMES)) == len(NAMES) >= 20
    with pytest.raises(InputError, match="no program is called 'sortt'"):
        program("sortt")


@pytest.mark.parametrize("one", PROGRAMS, ids=NAMES)
def test_both_shapes_are_loaded_and_checked_like_any_model(one: Program) -> None:
    compiled = one.compile()
    ours = microtome.load(compiled.transformer())
    assert ours.n_layers == compiled.sizes["layers"]
    if one.causal:
        assert microtome.load(compiled.gpt2()).n_layers == compiled.sizes["layers"]
    else:
        with pytest.raises(InputError, match="sees no later position"):
            compiled.gpt2()
