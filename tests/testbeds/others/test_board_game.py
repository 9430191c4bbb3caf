"""What is changed in the stream is changed on the board: in its moves, square by square, and nowhere else."""

import pytest
import torch

from microtome.core.draws import generator
from microtome.data.metrics import build as metric
from microtome.testbeds.case import Case
from microtome.testbeds.others import board_game
from microtome.testbeds.others.board_game import OPENING, SITE, dictionary
from microtome.testbeds.others.tic_tac_toe import BEGIN, EMPTY, END, MINE, SQUARES, YOURS, boards, lines


@pytest.fixture(scope="module")
def built() -> Case:
    return board_game.build()


@pytest.fixture(scope="module")
def vectors(built: Case) -> torch.Tensor:
    return dictionary(built.model, 0)


@pytest.fixture(scope="module")
def change() -> board_game.Changes:
    return board_game.changes(1)


def test_no_opening_of_an_unseen_game_is_learned_from() -> None:
    openings = [
        {tuple(row) for row in board_game.draw(800, seen, generator(0, step))[:, 1 : OPENING + 1].tolist()}
        for step, seen in enumerate((True, True, False))
    ]
    assert openings[0] & openings[1]
    assert openings[2].isdisjoint(openings[0] | openings[1])


def test_labels_are_those_of_the_rules(built: Case) -> None:
    true = boards(built.tokens)
    assert int((~true.going).sum()) > 0
    for square in range(SQUARES):
        state = built.truth.labels[f"square_{square}"]
        assert torch.equal(state[true.going], true.squares[..., square][true.going])
        may = (state == EMPTY) & (built.truth.labels["winner"] == 0)
        assert torch.equal(built.truth.labels[f"legal_{square}"] == 1, may)
        assert bool((state[~true.going] == -1).all())


def test_the_dictionary_is_the_nearest_sum(built: Case, vectors: torch.Tensor) -> None:
    """What least squares leaves is at right angles to every mark, so that no other vectors come nearer."""
    rows = board_game.draw(2000, True, generator(0, -2))[:, :-1]
    true = boards(rows)
    stream = built.model.run(rows, read=[SITE])[SITE]
    states = torch.nn.functional.one_hot(true.squares, 3).float()
    left = stream - torch.einsum("rcsk,skd->rcd", states, vectors)
    for column in range(left.shape[1]):  # the part of each number of moves is free
        going = true.going[:, column]
        left[going, column] -= left[going, column].mean(0)
    holds = states[..., 1:].flatten(2)[true.going].double()
    residue = left[true.going].double()
    assert float((holds.T @ residue).abs().max()) < 1e-4 * float(
        (holds.T @ stream[true.going].double()).abs().max()
    )
    explained = 1 - residue.square().sum() / (stream[true.going] - stream[true.going].mean(0)).square().sum()
    assert explained > 0.5


def test_variables_and_features_say_the_same(built: Case, vectors: torch.Tensor) -> None:
    features = built.truth.features[str(SITE)]
    assert features.shape == (2 * SQUARES, built.model.sizes["d_model"])
    for square, variable in enumerate(built.truth.variables):
        empty, mine, yours = variable.directions
        assert variable.values == ("empty", "mine", "yours")
        assert torch.allclose(mine - empty, features[2 * square], atol=1e-5)
        assert torch.allclose(yours - empty, features[2 * square + 1], atol=1e-5)


def test_changed_boards_follow_the_rules(change: board_game.Changes) -> None:
    each = torch.arange(len(change.rows))
    squares = boards(change.rows).squares[each, change.column]
    assert torch.equal(squares[each, change.source], change.mark)
    assert not squares[each, change.target].any()
    before = squares == EMPTY
    squares[each, change.source], squares[each, change.target] = EMPTY, change.mark
    assert torch.equal(change.line, lines(squares == YOURS))
    assert not lines(squares == MINE).any()
    assert torch.equal(change.legal, (squares == EMPTY) & ~change.line[:, None])
    # What is legal changes on every board, and there are lines among them.
    assert bool((before != change.legal).any(-1).all())
    assert 0.05 < change.line.float().mean() < 0.3
    assert set(change.mark.tolist()) == {MINE, YOURS}


@pytest.mark.parametrize("kind", ["mine", "yours", "line"])
def test_every_kind_of_change_is_followed(
    built: Case, vectors: torch.Tensor, change: board_game.Changes, kind: str
) -> None:
    follows = board_game.followed(built.model, change, (board_game.edit(change, vectors),))
    chosen = {
        "mine": (change.mark == MINE) & ~change.line,
        "yours": (change.mark == YOURS) & ~change.line,
        "line": change.line,
    }[kind]
    assert int(chosen.sum()) > 100
    assert follows[chosen].float().mean() >= 0.9


def test_the_other_players_marks_make_no_line(
    built: Case, vectors: torch.Tensor, change: board_game.Changes
) -> None:
    others = vectors[:, [EMPTY, YOURS, MINE]]
    follows = board_game.followed(built.model, change, (board_game.edit(change, others),)).float()
    assert follows[change.line].mean() < 0.1


@pytest.mark.parametrize("control", ["shuffled units", "wrong squares"])
def test_other_vectors_of_the_same_length_change_other_things(
    built: Case, vectors: torch.Tensor, change: board_game.Changes, control: str
) -> None:
    others = {
        "shuffled units": vectors[..., torch.randperm(vectors.shape[-1], generator=generator(0))],
        "wrong squares": vectors.roll(1, 0),
    }[control]
    follows = board_game.followed(built.model, change, (board_game.edit(change, others),)).float()
    assert follows.mean() < 0.5


def test_pairs_tell_what_is_legal_from_what_is_marked(built: Case) -> None:
    pairs = built.pairs
    assert pairs is not None
    assert len(pairs) == 64
    for tokens, may, may_not in (
        (pairs.clean, pairs.answers, pairs.wrong),
        (pairs.corrupt, pairs.wrong, pairs.answers),
    ):
        legal = boards(tokens).legal[:, -1]
        for row in range(len(pairs)):
            assert bool(legal[row, may[row][0]])
            assert not bool(legal[row, may_not[row][0]])
    difference = metric("logit-difference", pairs)
    for tokens, sign in ((pairs.clean, 1), (pairs.corrupt, -1)):
        found = built.model.run(tokens, metric=difference).metric
        assert found is not None
        assert bool((found * sign > 0).all())


def test_left_to_itself_it_plays_legal_games(built: Case) -> None:
    openings = torch.tensor(
        [[BEGIN, first, second] for first in range(9) for second in range(9) if first != second]
    )
    said = built.model.generate(openings, 7)
    over = (said == END).int().cumsum(-1) > 0
    true = boards(said.masked_fill(over, END))
    assert len(true.winner) == 72
    assert {1, 2} <= set(true.winner[:, -1].tolist())
