"""What shows an induction head, and nothing else? Random tokens that come again.

A block of distinct random tokens is repeated until the row is full. Each row has its own period, drawn at random, so
that a head which looks a fixed distance back does not pass for one that looks for the same token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from microtome.core.errors import InputError
from microtome.data.tasks.induction import ordinary_tokens
from microtome.models.model import Model


@dataclass(frozen=True)
class RepeatedTokens:
    """Rows that repeat.

    start: how many columns at the start of each row are the tokenizer's own (a token that begins a text).
    periods: of each row.
    """

    ids: Int[Tensor, "row column"]
    start: int
    periods: tuple[int, ...]

    @property
    def of_other_rows(self) -> Int[Tensor, "row column"]:
        """For each row the tokens of the next row with another period: what stands where is then unrelated."""
        count = len(self.periods)
        chosen = [
            next((r + step) % count for step in range(1, count) if self.periods[(r + step) % count] != period)
            for r, period in enumerate(self.periods)
        ]
        return self.ids[chosen]


def repeated_tokens(
    model: Model, rows: int, length: int, periods: tuple[int, int], seed: int
) -> RepeatedTokens:
    """Rows of `length` random tokens after the tokenizer's own.

    periods: the shortest and the longest; every period is used before one comes again.
    Raises `InputError` where the vocabulary or the model's positions are too few.
    """
    start = start_tokens(model.tokenizer)
    pool = _pool(model)
    shortest, longest = periods
    limit = model.sizes["n_positions"]
    if limit and len(start) + length > limit:
        raise InputError(
            f"{len(start) + length} tokens are more than the {limit} positions of {model.name}; ask for a smaller "
            "length"
        )
    if not 2 <= shortest < longest < length or rows < 2:
        raise InputError(
            "expected at least two rows and 2 ≤ shortest period < longest < length, got "
            f"{rows} rows, {shortest}, {longest} and length {length}"
        )
    if len(pool) < longest:
        raise InputError(
            f"a block of {longest} distinct tokens needs as many in the vocabulary, {model.name} has {len(pool)}; ask "
            "for shorter periods"
        )
    generator = torch.Generator().manual_seed(seed)
    order = (shortest + torch.randperm(longest - shortest + 1, generator=generator)).tolist()
    drawn = tuple(order[row % len(order)] for row in range(rows))
    made = []
    for period in drawn:
        block = pool[torch.randperm(len(pool), generator=generator)[:period]]
        body = block.repeat(-(-length // period))[:length]
        made.append(torch.cat([torch.tensor(start, dtype=torch.long), body]))
    return RepeatedTokens(torch.stack(made), len(start), drawn)


def start_tokens(tokenizer: Any) -> list[int]:
    """What a tokenizer puts in front of every text."""
    if tokenizer is None:
        return []
    special = set(tokenizer.all_special_ids)
    found = []
    for token in tokenizer("a")["input_ids"]:
        if token not in special:
            break
        found.append(token)
    return found


def _pool(model: Model) -> Tensor:
    """Ordinary tokens of the tokenizer; without one, every id."""
    count = model.sizes["d_vocab"]
    if model.tokenizer is None:
        return torch.arange(count)
    return torch.tensor([token for token in ordinary_tokens(model.tokenizer) if token < count])
