"""Each task's causal model says what the task says, written a second time, row by row, in plain Python."""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.testbeds.algorithmic.network import UNASKED
from microtome.testbeds.interchange.library import TASKS, task
from microtome.testbeds.interchange.task import Task

each = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def said_last(answer: Callable[[list[str]], str]) -> Callable[[list[str]], list[str]]:
    return lambda row: ["?"] * (len(row) - 1) + [answer(row)]


def said_at_each(answer: Callable[[list[str], int], str]) -> Callable[[list[str]], list[str]]:
    return lambda row: ["?" if row[place] == "^" else answer(row, place) for place in range(len(row))]


def yes(truth: bool) -> str:
    return "yes" if truth else "no"


def balanced(brackets: list[str]) -> bool:
    text = "".join(brackets)
    while "()" in text:
        text = text.replace("()", "")
    return not text


def more(row: list[str]) -> str:
    counts = Counter(row)
    return "equal" if counts["x"] == counts["y"] else f"more {'x' if counts['x'] > counts['y'] else 'y'}"


def pairs_of(row: list[str]) -> dict[str, str]:
    return dict(zip(row[0:8:2], row[1:8:2], strict=True))


REFERENCES: dict[str, Callable[[list[str]], list[str]]] = {
    "balanced_brackets": said_at_each(lambda row, place: yes(balanced(row[: place + 1]))),
    "first_is_last": said_last(lambda row: yes(row[0] == row[-1])),
    "fraction_of_previous": said_at_each(
        lambda row, place: str(Fraction(row[: place + 1].count("x"), place + 1))
    ),
    "histogram": said_at_each(lambda row, place: str(row.count(row[place]))),
    "indirect_object": said_last(lambda row: row[0] if row[2] == row[4] else row[2]),
    "look_up": said_last(lambda row: pairs_of(row)[row[8]]),
    "majority": said_last(more),
    "modular_sum": said_last(lambda row: str((int(row[1]) + int(row[3])) % 7)),
    "two_hops": said_last(lambda row: pairs_of(row)[pairs_of(row)[row[8]]]),
}


@each
def test_the_causal_model_says_what_the_task_says(task: Task) -> None:
    rows = task.draw(200, True, generator(0, 0))
    said = [
        ["?" if word == UNASKED else task.words[word] for word in row] for row in task.answers(rows).tolist()
    ]
    read = [[task.words[word] for word in row] for row in rows.tolist()]
    assert said == [REFERENCES[task.name](row) for row in read]


@each
def test_answers_are_words_also_after_any_interchange(task: Task) -> None:
    rows = task.draw(200, True, generator(0, 1))
    for name in task.model.inner:
        answers = task.model.interchange(rows, rows.roll(1, 0), [name])
        asked = answers[answers != UNASKED]
        assert bool(((asked >= 0) & (asked < len(task.words))).all())
        assert torch.equal(answers == UNASKED, task.answers(rows) == UNASKED)


@each
def test_every_variable_changes_answers_and_no_place_is_taken_twice(task: Task) -> None:
    rows = task.draw(200, True, generator(0, 2))
    for name in task.model.inner:
        answers = task.model.interchange(rows, rows.roll(1, 0), [name])
        assert (answers != task.answers(rows)).any(-1).float().mean() > 0.1
    assert set(task.model.inner) == set(task.places)
    assert task.alignment.spared, "a key that names every part tells nothing"


def test_names_are_told_apart() -> None:
    assert len({one.name for one in TASKS}) == len(TASKS) == len(REFERENCES)
    assert task("look_up").name == "look_up"
    with pytest.raises(InputError, match="no interchange task 'looking'; there are balanced_brackets"):
        task("looking")
