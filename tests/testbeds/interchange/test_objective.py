"""A step is a function of seed and number; its interchanges and its sets of edges are what the loss says they are."""

import math
from dataclasses import replace

import torch

from microtome.core.draws import generator
from microtome.testbeds.algorithmic.network import UNASKED
from microtome.testbeds.interchange.library import balanced_brackets
from microtome.testbeds.interchange.objective import loss, outside, step
from microtome.testbeds.interchange.task import Task, Weights


def test_a_step_is_a_function_of_seed_and_number() -> None:
    one, same = (step(balanced_brackets, 1, 5) for _ in range(2))
    assert all(torch.equal(vars(one)[name], vars(same)[name]) for name in vars(one))
    for other in (step(balanced_brackets, 1, 6), step(balanced_brackets, 2, 5)):
        assert not torch.equal(one.rows, other.rows)
        assert not torch.equal(one.swapped, other.swapped)


def test_the_first_half_interchanges_variables_and_the_second_what_is_outside() -> None:
    task, half = balanced_brackets, balanced_brackets.batch // 2
    wiring = task.alignment.wiring
    sets = {
        tuple(names): wiring.out_of([node for name in names for node in task.places[name].nodes])
        for names in (["opened"], ["balanced"], ["below", "ever_below"])
    }
    met = set()
    for number in range(12):
        given = step(task, 0, number)
        for names, edges in sets.items():
            for row in torch.nonzero((given.swapped[:half] == edges).all((1, 2)))[:, 0].tolist():
                base, source = given.rows[row : row + 1], given.rows[row + 1 : row + 2]
                due = task.model.interchange(base, source, names)
                assert torch.equal(given.due_swapped[row : row + 1], due)
                met.add(names)
        assert not bool((given.swapped[half:] & ~task.alignment.outside).any())
        assert torch.equal(given.due_swapped[half:], given.due[half:])
    assert met == set(sets)


def test_sets_outside_reach_from_few_edges_to_all() -> None:
    alignment = balanced_brackets.alignment
    every = int(alignment.outside.sum())
    sizes = outside(alignment, 500, generator(0, 0)).sum((1, 2))
    # A fifth of the rows, within three standard errors.
    assert abs(float((sizes == every).float().mean()) - 0.2) < 3 * (0.2 * 0.8 / 500) ** 0.5
    assert int(sizes.min()) < 0.1 * every


def test_the_loss_of_a_network_that_says_nothing_is_the_entropy_of_the_words(small: Task) -> None:
    module = small.new_module(0)
    torch.nn.init.zeros_(module.unembed.weight)
    given = step(small, 0, 0)
    for weights in (Weights(), Weights(0.5, 0.0, 0.25), Weights(0.0, 2.0, 0.0)):
        value = float(loss(replace(small, weights=weights), module, given).detach())
        expected = sum(vars(weights).values()) * math.log(len(small.words))
        assert math.isclose(value, expected, rel_tol=1e-5)


def test_each_part_of_the_loss_reaches_the_weights(small: Task) -> None:
    for weights in (Weights(1, 0, 0), Weights(0, 1, 0), Weights(0, 0, 1)):
        module = small.new_module(0)
        loss(replace(small, weights=weights), module, step(small, 0, 0)).backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
        assert float(module.embed.weight.grad.abs().sum()) > 0


def test_places_that_are_not_asked_do_not_count(small: Task) -> None:
    module, given = small.new_module(0), step(small, 0, 0)
    assert bool((given.due[:, :-1] == UNASKED).all())
    plain = replace(small, weights=Weights(1.0, 0.0, 0.0))
    with torch.no_grad():
        last = module(given.rows).logits[:, -1]
        expected = torch.nn.functional.cross_entropy(last, given.rows[:, 0])
        assert torch.allclose(loss(plain, module, given), expected, atol=1e-5)
