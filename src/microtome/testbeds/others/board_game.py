"""Does a language model of moves hold the board? A small transformer that has read games of tic-tac-toe, and no board.

1. Every row is a game of random legal moves, written as the squares in the order in which they are marked. The network
   learns what comes next, nothing else. A tenth of the openings of five moves, by a fixed rule, is kept from it; the
   same board may have been seen after the same moves in another order.
2. The rules say what stands on each square after each move: nothing, a mark of the player whose turn it is (mine), or
   one of the other (yours). These are the labels.
3. The network has one layer, so that the board must stand where its attention has written and its MLP reads,
   `resid_mid.0`. The truth is the supervised dictionary there: the vectors for "mine" and "yours" on each square that,
   added up with one for the number of moves, come nearest to the stream in the sense of least squares.
4. The evidence: the network moves legally; a linear probe reads the board from it and not from an untrained one; and an
   intervention. A mark is moved to another square by exchanging the one's vector for the other's. The network must then
   hold for legal what is legal on the board so changed, square by square, and end the game where that makes a line.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.draws import generator
from microtome.core.edits import Add, Edit
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.data.pairs import Pairs
from microtome.models.load import load
from microtome.models.model import Model
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds.algorithmic.network import contrast
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth, Variable
from microtome.testbeds.others.network import Recipe, network, new_module
from microtome.testbeds.others.tic_tac_toe import (
    BEGIN,
    COLUMNS,
    EMPTY,
    END,
    MINE,
    SQUARES,
    YOURS,
    Boards,
    Rows,
    boards,
    games,
    lines,
)

card = TestbedCard(
    name="board_game",
    title="A language model of a board game",
    question="Does a dictionary learned without labels find the squares of a board that the network was never shown?",
    reference="Li et al. (2023), Emergent World Representations; Nanda et al. (2023), Emergent Linear Representations; "
    "Karvonen et al. (2024), Measuring Progress in Dictionary Learning with Board Games",
    kinds=("variables", "features", "labels"),
    misleads="The dictionary is the nearest sum of vectors for marks; what else the stream holds, such as the last "
    "move, has no name in it. A softmax shares itself out: the more marks a player has, the shorter each vector.",
)

SITE = Site("resid_mid", 0)
OPENING = 5  # the shortest game has so many moves
UNASKED = -100
STATES = ("empty", "mine", "yours")

Dictionary = Float[Tensor, "square state d_model"]


def cases() -> tuple[str, ...]:
    """`tic_tac_toe`."""
    return ("tic_tac_toe",)


def draw(count: int, seen: bool, source: torch.Generator) -> Rows:
    """Games whose openings are learned from, or are kept from it: a tenth of all openings of five moves."""
    rows = games(2 * count if seen else 14 * count, source)
    code = (rows[:, 1 : OPENING + 1] * torch.tensor([1, 11, 101, 1009, 10007])).sum(1)
    return rows[(code % 10 != 0) == seen][:count]


def recipe(case: str = "tic_tac_toe") -> Recipe:
    """How it is trained. Raises `InputError` for an unknown case."""
    if case not in cases():
        raise InputError(f"board_game has the case tic_tac_toe, not {case!r}")
    sizes = {
        "vocab_size": BEGIN + 1,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "head_dim": 16,
        "intermediate_size": 384,
        "max_position_embeddings": COLUMNS - 1,
        "hidden_act": "relu",
        "initializer_range": 0.1,
    }

    def loss(module: nn.Module, rows: Rows) -> Float[Tensor, ""]:
        asked = rows[:, 1:].masked_fill(rows[:, :-1] == END, UNASKED)
        logits = module(input_ids=rows[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1), asked.flatten(), ignore_index=UNASKED)

    return Recipe(
        testbed=card.name,
        case=case,
        make=lambda: Transformer(TransformerConfig(**sizes)),
        batch=lambda seed, step: draw(256, True, generator(seed, step)),
        loss=loss,
        evidence=_evidence,
        rate=3e-3,
        steps=1800,
        weight_decay=0.01,
        settings={"sizes": sizes},
    )


def dictionary(model: Model, seed: int) -> Dictionary:
    """What each state of each square adds to the stream at `SITE`, by least squares over games that were learned from.

    An empty square adds nothing. The number of moves says how many marks there are, so what all marks of a player have
    in common cannot be told from it; of the equally near solutions this is the smallest.
    """
    rows = draw(2000, True, generator(seed, -2))
    true = boards(rows[:, :-1])
    marks = torch.stack([true.squares == state for state in (MINE, YOURS)], -1).flatten(2)
    moves = torch.eye(COLUMNS - 1, dtype=torch.bool).expand(len(rows), -1, -1)
    stream = model.run(rows[:, :-1], read=[SITE])[SITE][true.going]
    holds = torch.cat([marks, moves], -1)[true.going]
    added = torch.linalg.lstsq(holds.double(), stream.double(), driver="gelsd").solution
    of_marks = added[: 2 * SQUARES].unflatten(0, (SQUARES, 2)).float()
    return torch.cat([torch.zeros_like(of_marks[:, :1]), of_marks], 1)


def probe(model: Model, seed: int) -> tuple[float, int]:
    """With what share of marks on boards of unseen games a linear probe tells mine from yours, and of how many.

    The probe is fitted by least squares, to all three states of all squares, on games that were learned from.
    """

    def part(seen: bool) -> tuple[Tensor, Tensor]:
        rows = draw(2000, seen, generator(seed, -3, int(seen)))
        true = boards(rows[:, :-1])
        late = true.going & (torch.arange(COLUMNS - 1) >= OPENING)
        stream = model.run(rows[:, :-1], read=[SITE])[SITE][late].double()
        return torch.cat([stream, torch.ones_like(stream[:, :1])], 1), true.squares[late]

    (stream, squares), (unseen, truth) = part(True), part(False)
    weights = torch.linalg.lstsq(stream, functional.one_hot(squares, 3).flatten(1).double()).solution
    said = (unseen @ weights).unflatten(-1, (SQUARES, 3))
    right = ((said[..., YOURS] > said[..., MINE]) == (truth == YOURS))[truth != EMPTY].float()
    return float(right.mean()), len(right)


@dataclass(frozen=True, eq=False)
class Changes:
    """Boards with one mark moved. rows: the games. column: after which of their moves.

    mark: whose it is (`MINE`, `YOURS`). source, target: the squares on which it stood and stands now. legal: what may
    be marked next. line: whether it makes three in a line of the other player's, so that the game is over.
    """

    rows: Rows
    column: Int[Tensor, " row"]
    mark: Int[Tensor, " row"]
    source: Int[Tensor, " row"]
    target: Int[Tensor, " row"]
    legal: Bool[Tensor, "row square"]
    line: Bool[Tensor, " row"]


def changes(seed: int, count: int = 3000) -> Changes:
    """Boards of unseen games that go on, with one mark moved to an empty square, drawn at random."""
    random = generator(seed, -4)
    rows = draw(count, False, random)[:, :-1]
    true = boards(rows)
    each = torch.arange(len(rows))
    column = torch.randint(OPENING, COLUMNS - 2, each.shape, generator=random)
    old = true.squares[each, column]
    source, target = (
        (torch.rand(old.shape, generator=random) * may).argmax(-1) for may in (old != EMPTY, old == EMPTY)
    )
    mark = old[each, source]
    new = old.clone()
    new[each, source], new[each, target] = EMPTY, mark
    line = lines(new == YOURS)
    # Whose turn it is has no line in any game.
    goes_on = true.legal[each, column, :SQUARES].any(-1) & ~lines(new == MINE)
    every = (rows, column, mark, source, target, (new == EMPTY) & ~line[:, None], line)
    return Changes(*(one[goes_on] for one in every))


def edit(change: Changes, vectors: Dictionary) -> Add:
    """The change, made in the stream: the vector of the mark on one square exchanged for that on the other."""
    vector = torch.zeros(*change.rows.shape, vectors.shape[-1])
    moved = vectors[change.target, change.mark] - vectors[change.source, change.mark]
    vector[torch.arange(len(moved)), change.column] = moved
    return Add(SITE, vector=vector)


def followed(model: Model, change: Changes, edits: tuple[Edit, ...]) -> Bool[Tensor, " row"]:
    """Whether the network goes on, after each change, as the rules say of the changed board.

    It holds for legal the squares to which it gives more than half of an even share. Where a line ends the game, it
    must prefer the end to every square.
    """
    logits = model.run(change.rows, edit=edits).logits
    assert logits is not None
    chance = logits[torch.arange(len(change.rows)), change.column].softmax(-1)
    even = 1 / change.legal.sum(-1, keepdim=True).clamp(min=1)
    moves = ((chance[:, :SQUARES] > even / 2) == change.legal).all(-1)
    return torch.where(change.line, chance.argmax(-1) == END, moves)


def _evidence(model: Model, seed: int) -> tuple[Evidence, ...]:
    rows = draw(1000, False, generator(seed, -1))[:, :-1]
    true = boards(rows)
    logits = model.run(rows).logits
    assert logits is not None
    late = true.going & (torch.arange(COLUMNS - 1) >= OPENING)
    chance, legal = logits.softmax(-1)[late], true.legal[late]
    first = legal.gather(-1, chance.argmax(-1, keepdim=True)).float()
    over = legal[:, END]
    read, marks = probe(model, seed)
    chance_read, _ = probe(load(new_module(recipe(), seed).eval()), seed)
    change = changes(seed)
    follows = followed(model, change, (edit(change, dictionary(model, seed)),))
    as_before = followed(model, change, ())
    return (
        Evidence(
            "share of unseen positions with a legal first choice", float(first.mean()), 0.99, n=len(first)
        ),
        Evidence(
            "probability of all legal moves", float((chance * legal).sum(-1).mean()), 0.99, n=len(first)
        ),
        Evidence(
            "probability of the end when it is due", float(chance[over, END].mean()), 0.99, n=int(over.sum())
        ),
        Evidence("share of marks a linear probe reads as mine or yours", read, least=0.95, n=marks),
        Evidence("share that it reads from an untrained network", chance_read, most=0.75, n=marks),
        Evidence(
            "share of boards, a mark moved in the stream, on which it goes on as the rules say",
            float(follows.float().mean()),
            least=0.95,
            n=len(follows),
        ),
        Evidence(
            "share of those on which it would go on so with nothing moved",
            float(as_before.float().mean()),
            most=0.05,
            n=len(follows),
        ),
    )


def labels(true: Boards) -> dict[str, Int[Tensor, "row column"]]:
    """The state of each square (0 empty, 1 mine, 2 yours), whether it may be marked, and who has won (0: none so far,
    1: who began, 2: the other) after each column; -1 beyond the game."""
    named = {f"square_{i}": true.squares[..., i] for i in range(SQUARES)}
    named |= {f"legal_{i}": true.legal[..., i].long() for i in range(SQUARES)}
    named["winner"] = true.winner
    return {name: label.masked_fill(~true.going, -1) for name, label in named.items()}


def pairs(seed: int, count: int = 64) -> Pairs:
    """Openings in which one square is marked in the place of another: each is legal where the other is marked."""
    source = generator(seed, -5)
    clean = draw(4 * count, False, source)[:, : OPENING + 1]
    each = torch.arange(len(clean))
    place = torch.randint(1, OPENING + 1, each.shape, generator=source)
    free = boards(clean).squares[:, -1] == EMPTY
    other = (torch.rand(free.shape, generator=source) * free).argmax(-1)
    corrupt = clean.clone()
    corrupt[each, place] = other
    goes_on = torch.nonzero((boards(clean).winner[:, -1] == 0) & (boards(corrupt).winner[:, -1] == 0))[
        :count, 0
    ]
    marked = clean[each, place]
    return contrast(
        clean[goes_on],
        corrupt[goes_on],
        other[goes_on],
        marked[goes_on],
        words=lambda token: "begin" if token == BEGIN else str(token),
        task=card.name,
        seed=seed,
    )


def build(case: str = "tic_tac_toe", seed: int = 0) -> Case:
    """The network, and unseen games for it."""
    asked = recipe(case)
    model = network(asked, seed)
    rows = draw(256, False, generator(seed, -6))[:, :-1]
    vectors = dictionary(model, seed)
    return Case(
        name=f"{card.name}/{case}",
        task="Which squares may be marked next in a game of tic-tac-toe, told move by move.",
        model=model,
        truth=Truth(
            variables=tuple(
                Variable(f"square_{i}", SITE, of_states - of_states.mean(0), STATES)
                for i, of_states in enumerate(vectors)
            ),
            features={str(SITE): vectors[:, 1:].flatten(0, 1)},
            labels=labels(boards(rows)),
        ),
        evidence=asked.evidence(model, seed),
        pairs=pairs(seed),
        tokens=rows,
        seed=seed,
    )
