"""The rules, against a board played out by hand, and what is known of the game as a whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.core.draws import generator
from microtome.core.errors import InputError
from microtome.testbeds.others.tic_tac_toe import (
    BEGIN,
    COLUMNS,
    EMPTY,
    END,
    LINES,
    MINE,
    YOURS,
    boards,
    games,
)


def test_lines_are_the_eight() -> None:
    rows = {frozenset(range(3 * i, 3 * i + 3)) for i in range(3)}
    columns = {frozenset(range(i, 9, 3)) for i in range(3)}
    assert {frozenset(line) for line in LINES.tolist()} == rows | columns | {
        frozenset((0, 4, 8)),
        frozenset((2, 4, 6)),
    }


@settings(max_examples=25)
@given(st.permutations(range(9)))
def test_boards_are_those_of_a_game_played_by_hand(order: list[int]) -> None:
    row, said = [BEGIN], [("", "", 0)]
    first: list[int] = []
    second: list[int] = []
    for square in order:
        mover = first if len(first) == len(second) else second
        mover.append(square)
        row.append(square)
        won = any(set(line) <= set(mover) for line in LINES.tolist())
        said.append((str(sorted(first)), str(sorted(second)), (1 if mover is first else 2) if won else 0))
        if won:
            break
    moves = len(row) - 1
    row += [END] * (COLUMNS - len(row))
    found = boards(torch.tensor([row]))
    for column in range(moves + 1):
        mine, yours = (MINE, YOURS) if column % 2 == 0 else (YOURS, MINE)
        squares = found.squares[0, column]
        if column:
            for state, held in ((mine, said[column][0]), (yours, said[column][1])):
                assert str(torch.nonzero(squares == state)[:, 0].tolist()) == held
        assert found.winner[0, column] == said[column][2]
        free = torch.nonzero(squares == EMPTY)[:, 0].tolist() if not said[column][2] else []
        assert torch.nonzero(found.legal[0, column])[:, 0].tolist() == (free or [END])
    assert found.going[0].tolist() == [True] * (moves + 1) + [False] * (COLUMNS - moves - 1)
    assert not found.legal[0, moves + 1 :].any()


def test_random_games_end_as_random_games_do() -> None:
    """Of uniformly random games 737/1260 are won by the first player, 121/420 by the second, 8/63 by none."""
    count = 20000
    winner = boards(games(count, generator(0))).winner[:, -1]
    for who, share in ((1, 737 / 1260), (2, 121 / 420), (0, 8 / 63)):
        error = (share * (1 - share) / count) ** 0.5
        assert float((winner == who).float().mean()) == pytest.approx(share, abs=4 * error)


def test_the_same_source_gives_the_same_games() -> None:
    assert torch.equal(games(50, generator(1)), games(50, generator(1)))
    assert not torch.equal(games(50, generator(1)), games(50, generator(2)))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([0, 1, 2], "begins with the id 10"),
        ([BEGIN, *range(9), END, END], "at most 11 columns"),
        ([BEGIN, 4, 4], "row 0 breaks the rules at column 2"),
        ([BEGIN, 4, END], "row 0 breaks the rules at column 2"),
        ([BEGIN, 0, 3, 1, 4, 2, 5], "row 0 breaks the rules at column 6"),
        ([BEGIN, 0, 3, 1, 4, 2, END, 8], "row 0 breaks the rules at column 7"),
        ([BEGIN, BEGIN], "row 0 breaks the rules at column 1"),
        ([BEGIN, -1], "row 0 breaks the rules at column 1"),
        ([BEGIN, 11], "row 0 breaks the rules at column 1"),
    ],
)
def test_what_is_no_game_is_refused(row: list[int], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        boards(torch.tensor([row]))
