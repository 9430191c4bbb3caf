"""What is measured tells a network that works as its causal model says from one that merely answers right."""

from dataclasses import replace

import pytest
import torch

from microtome.data.causal_model import TOKENS, CausalModel, Variable
from microtome.testbeds.interchange.alignment import Place
from microtome.testbeds.interchange.measured import measure
from microtome.testbeds.interchange.network import fit, measured
from microtome.testbeds.interchange.task import Task, Weights

STEPS = 100  # as many as the full training takes


def holds(task: Task, seed: int = 0) -> dict[str, bool]:
    module, _ = fit(task, seed, steps=STEPS)
    return {one.what: one.holds for one in measured(task, module, seed).evidence()}


def test_trained_in_full_it_works_as_the_causal_model_says(small: Task) -> None:
    found = holds(small)
    assert len(found) == 7
    assert all(found.values())


@pytest.mark.parametrize("weights", [Weights(1, 0, 0), Weights(1, 1, 0)], ids=["behaviour", "not strict"])
def test_trained_without_the_other_terms_it_answers_right_in_another_way(
    small: Task, weights: Weights
) -> None:
    found = holds(replace(small, weights=weights))
    assert found["share of unseen rows answered right"]
    assert not found["share unchanged by all edges outside at once"]
    assert not found["least share unchanged by a node outside"]
    # The interchange term alone makes interchanges right; without it they are not.
    assert found["least share right after an interchange"] == (weights.interchange > 0)


def test_an_untrained_network_holds_nothing_that_is_of_the_task(small: Task) -> None:
    found = measured(small, small.new_module(0).eval(), 0)
    broken = {one.what for one in found.evidence() if not one.holds}
    assert "share of unseen rows answered right" in broken
    assert "least share right where an interchange changes the answer" in broken


def test_a_variable_that_changes_no_answer_shows_nothing(small: Task) -> None:
    idle = CausalModel(
        (
            Variable("first", (TOKENS,), lambda tokens: 0 * tokens),
            Variable("answer", ("first",), small.model.variables[-1].compute),
        )
    )
    module = small.new_module(0).eval()
    torch.nn.init.zeros_(module.unembed.weight)  # it says the first word, which is right
    found = measure(replace(small, model=idle), module, small.proposals(50, torch.Generator().manual_seed(0)))
    assert found.accuracy == 1
    broken = {one.what for one in found.evidence() if not one.holds}
    assert broken == {
        "least share right where an interchange changes the answer",
        "least share changed by an edge inside",
    }


def test_of_a_network_without_other_nodes_none_is_told(small: Task) -> None:
    sizes = {**small.sizes, "num_attention_heads": 1, "intermediate_size": 0}
    alone = replace(small, places={"first": Place(("z.0.h0",), {TOKENS: "v"})}, sizes=sizes)
    assert not alone.alignment.spared
    named = {one.what for one in measured(alone, alone.new_module(0).eval(), 0).evidence()}
    assert "least share unchanged by a node outside" not in named
    assert "least share unchanged by an edge outside" in named
