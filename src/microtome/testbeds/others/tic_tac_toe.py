"""What stands on the board after every move? Games of tic-tac-toe as rows of ids, and all that the rules say of them.

Two players mark squares of a 3 × 3 board in turn, until one has three in a line, or the board is full. A row is a sign
for the beginning, the squares in the order in which they are marked, and a sign for the end, repeated to the row's
length.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core.errors import InputError

SQUARES = 9
END, BEGIN = SQUARES, SQUARES + 1
COLUMNS = SQUARES + 2
EMPTY, MINE, YOURS = 0, 1, 2
LINES = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]])

Rows = Int[Tensor, "row column"]


@dataclass(frozen=True, eq=False)
class Boards:
    """What is true after each column of a row.

    squares: of each square, whether it is empty, of the player whose turn it is (`MINE`) or of the other (`YOURS`).
    winner: 0 for none so far, 1 for the player who began, 2 for the other. legal: what may come next, the end included.
    going: whether the column lies before the sign for the end.
    """

    squares: Int[Tensor, "row column square"]
    winner: Rows
    legal: Bool[Tensor, "row column token"]
    going: Bool[Tensor, "row column"]


def lines(marked: Bool[Tensor, "*board square"]) -> Bool[Tensor, "*board"]:
    """Whether three marks stand in a line."""
    return marked[..., LINES].all(-1).any(-1)


def games(count: int, source: torch.Generator) -> Rows:
    """Games in which every legal move is as likely as any other."""
    marked = torch.zeros(count, 2, SQUARES, dtype=torch.bool)
    rows = torch.full((count, COLUMNS), END)
    rows[:, 0] = BEGIN
    over = torch.zeros(count, dtype=torch.bool)
    for ply in range(SQUARES):
        chance: Float[Tensor, "row square"] = torch.rand(count, SQUARES, generator=source)
        move = chance.masked_fill(marked.any(1), -1).argmax(-1)
        going = torch.nonzero(~over)[:, 0]
        rows[going, ply + 1] = move[going]
        marked[going, ply % 2, move[going]] = True
        over = over | lines(marked[:, ply % 2])
    return rows


def boards(rows: Rows) -> Boards:
    """What the rules say after each column. Raises `InputError` for a row that is no game or beginning of one."""
    if rows.shape[1] > COLUMNS or not bool((rows[:, 0] == BEGIN).all()):
        raise InputError(
            f"a game begins with the id {BEGIN} and has at most {COLUMNS} columns; got {list(rows.shape)} beginning "
            f"with {rows[:, 0].unique().tolist()}"
        )
    marked = torch.zeros(len(rows), 2, SQUARES, dtype=torch.bool)
    winner = torch.zeros(len(rows), dtype=torch.long)
    going = torch.ones(len(rows), dtype=torch.bool)
    may = torch.zeros(len(rows), BEGIN + 1, dtype=torch.bool)
    after: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for column, ids in enumerate(rows.T):
        if column:
            kept = (may.gather(1, ids[:, None].clamp(0, BEGIN))[:, 0] & (ids >= 0)) | (~going & (ids == END))
            if not bool(kept.all()):
                row = int(torch.nonzero(~kept)[0])
                raise InputError(f"row {row} breaks the rules at column {column}: {rows[row].tolist()}")
            moved = torch.nonzero(ids < SQUARES)[:, 0]
            player = (column - 1) % 2
            marked[moved, player, ids[moved]] = True
            winner = torch.where(lines(marked[:, player]) & (winner == 0), player + 1, winner)
            going = going & (ids != END)
        own, other = marked[:, column % 2], marked[:, 1 - column % 2]
        free = ~marked.any(1) & (winner == 0)[:, None]
        may = (
            torch.cat([free, ~free.any(-1, keepdim=True), torch.zeros_like(free[:, :1])], 1) & going[:, None]
        )
        after.append((own * MINE + other * YOURS, winner, may, going))
    return Boards(*(torch.stack(each, 1) for each in zip(*after, strict=True)))
