"""Rows are of the task, what is kept back is kept back, and the same seed gives the same rows and network."""

from dataclasses import replace

import pytest
import torch

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.testbeds.interchange.library import TASKS
from microtome.testbeds.interchange.task import Task, kept_back

each = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@each
def test_rows_are_rows_of_the_task(task: Task) -> None:
    rows = task.draw(300, True, generator(0, 0))
    assert rows.shape == (300, len(task.alphabets))
    assert bool(task.valid(rows).all())
    for column, letters in zip(rows.T, task.alphabets, strict=True):
        assert set(column.tolist()) == set(letters), "every letter of a place is drawn"


@each
def test_what_is_kept_back_is_not_learned_from(task: Task) -> None:
    seen = {tuple(row) for row in task.draw(400, True, generator(0, 0)).tolist()}
    unseen = [tuple(row) for row in task.held_out(100, generator(0, 1)).tolist()]
    assert len(unseen) >= 50
    assert len(set(unseen)) == len(unseen)
    assert seen.isdisjoint(unseen)


def test_a_fifth_is_kept_back() -> None:
    rows = torch.cartesian_prod(*[torch.arange(4)] * 6)
    # Three standard errors of a fifth of 4096 rows.
    assert float(kept_back(rows).float().mean()) == pytest.approx(0.2, abs=3 * (0.2 * 0.8 / 4096) ** 0.5)


def test_rows_and_networks_follow_from_the_seed(small: Task) -> None:
    assert torch.equal(small.draw(9, True, generator(1, 5)), small.draw(9, True, generator(1, 5)))
    assert not torch.equal(small.draw(9, True, generator(1, 5)), small.draw(9, True, generator(2, 5)))
    one, same, other = (small.new_module(seed).embed.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_task_of_too_few_rows_is_told(small: Task) -> None:
    none = replace(small, valid=lambda rows: torch.zeros(len(rows), dtype=torch.bool))
    with pytest.raises(InputError, match="too few rows that are learned from"):
        none.draw(4, True, generator(0, 0))
    with pytest.raises(InputError, match="too few rows that are not learned from"):
        none.held_out(4, generator(0, 0))
