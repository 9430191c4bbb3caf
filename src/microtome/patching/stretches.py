"""Which stretches of the prompts does a map have as its columns? Single tokens, slots, or the whole prompt.

1. `tokens`: one column for each position; every prompt must have the same number of tokens.
2. `slots`: one for each slot that all prompts fill, wherever it stands in each, then the last token and the rest, so
   that the columns cover each prompt exactly once.
3. `all`: one column, the whole prompt.
4. `auto`: `tokens` where all prompts are equally long, otherwise `slots`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from microtome.core.errors import InputError
from microtome.data.pairs import Pairs
from microtome.models.batch import Batch

By = Literal["auto", "tokens", "slots", "all"]


@dataclass(frozen=True)
class Stretch:
    """Positions of each row, counted over its real tokens; `positions` is `None` for whole rows.

    label: what stands there: a token that all prompts share, a slot, or `…`.
    """

    label: str
    positions: tuple[tuple[int, ...], ...] | None = None

    @property
    def groups(self) -> tuple[tuple[tuple[int, ...] | None, tuple[int, ...] | None], ...]:
        """(positions, rows) for rows that have the same positions; `None` = all of them."""
        if self.positions is None:
            return ((None, None),)
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, held in enumerate(self.positions):
            rows.setdefault(held, []).append(row)
        if len(rows) == 1:
            return ((self.positions[0], None),)
        return tuple((held, tuple(found)) for held, found in rows.items())

    def covers(self, batch: Batch) -> Bool[Tensor, "row column"]:
        """True at the columns of the stretch; padding is never part of it."""
        real = batch.real(torch.device("cpu"))
        if self.positions is None:
            return real
        covered = torch.zeros_like(real)
        for row, held in enumerate(self.positions):
            covered[row, batch.columns(held, [row])[0]] = True
        return covered


WHOLE = Stretch("all positions")


def stretches(pairs: Pairs, by: By = "auto") -> tuple[Stretch, ...]:
    """The columns of a map of these pairs. Raises `InputError` where the prompts do not allow them."""
    if by == "all":
        return (WHOLE,)
    equal = len(set(pairs.lengths)) == 1
    if by == "tokens" and not equal:
        raise InputError(
            f"columns by token need prompts of one length, these have {min(pairs.lengths)} to {max(pairs.lengths)} "
            "tokens; use positions=slots or positions=all, or pairs of one template"
        )
    return _tokens(pairs) if by == "tokens" or (by == "auto" and equal) else _slots(pairs)


def _tokens(pairs: Pairs) -> tuple[Stretch, ...]:
    texts = [pairs.tokens_as_text(row) for row in range(len(pairs))]
    texts += [pairs.tokens_as_text(row, corrupt=True) for row in range(len(pairs))]
    found = []
    for position in range(pairs.lengths[0]):
        words = {text[position] for text in texts}
        label = words.pop() if len(words) == 1 else _slot_at(pairs, position)
        found.append(Stretch(label, ((position,),) * len(pairs)))
    return tuple(found)


def _slot_at(pairs: Pairs, position: int) -> str:
    """The slot in which the position lies in every row, else `…`."""
    inside = [{name for name, (a, b) in spans.items() if a <= position < b} for spans in pairs.slots]
    shared = set.intersection(*inside)
    return f"{{{min(shared)}}}" if shared else "…"


def _slots(pairs: Pairs) -> tuple[Stretch, ...]:
    names = [name for name in pairs.slots[0] if all(name in spans for spans in pairs.slots)]
    if not names:
        raise InputError(
            "columns by slot need a slot that every prompt fills, these prompts share none; use positions=all, or "
            "pairs of one length"
        )
    found = [Stretch(f"{{{n}}}", tuple(tuple(range(*spans[n])) for spans in pairs.slots)) for n in names]
    covered = [{p for stretch in found for p in _held(stretch, row)} for row in range(len(pairs))]
    last = [length - 1 for length in pairs.lengths]
    if not any(end in held for end, held in zip(last, covered, strict=True)):
        found.append(Stretch("last token", tuple((end,) for end in last)))
        covered = [held | {end} for held, end in zip(covered, last, strict=True)]
    rest = tuple(
        tuple(p for p in range(length) if p not in held)
        for length, held in zip(pairs.lengths, covered, strict=True)
    )
    return (*found, Stretch("the rest", rest)) if all(rest) else tuple(found)


def _held(stretch: Stretch, row: int) -> Sequence[int]:
    assert stretch.positions is not None
    return stretch.positions[row]
