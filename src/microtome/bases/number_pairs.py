"""What does a network say of every pair of numbers? All p² prompts, made from a few, and its answers as one table.

A prompt has two columns in which numbers stand, and the rest, such as a sign, is the same in all. The answer is read
at the last position, among the numbers alone.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection
from microtome.core.site import Site
from microtome.models.model import Model


@dataclass(frozen=True, eq=False)
class NumberPairs:
    """Every pair of numbers as a prompt.

    numbers `[p]`: the id of each number. tokens `[p², column]`: by the first number, then by the second.
    given `[row]`: where the prompts that it was made from stand among them.
    """

    numbers: Int[Tensor, " p"]
    tokens: Int[Tensor, "pair column"]
    given: Int[Tensor, " row"]

    @property
    def p(self) -> int:
        """How many numbers there are."""
        return len(self.numbers)

    @property
    def is_given(self) -> Bool[Tensor, "a b"]:
        """Which pairs are among the prompts that it was made from."""
        given = torch.zeros(self.p**2, dtype=torch.bool)
        given[self.given] = True
        return given.view(self.p, self.p)


def number_pairs(
    tokens: Int[Tensor, "row column"], columns: tuple[int, int] = (0, 1), numbers: tuple[int, ...] = ()
) -> NumberPairs:
    """From prompts. numbers: the ids of 0, 1, …; by default the ids seen in the two columns, in their order.

    Raises `InputError` for columns that are not there or the same, for ids that are no numbers, and for prompts that
    differ elsewhere.
    """
    width = tokens.shape[1]
    first, second = columns
    if not (0 <= first < width and 0 <= second < width) or first == second:
        raise InputError(
            f"expected two different columns of {width}, numbered from 0; got {first} and {second}"
        )
    stand = tokens[:, [first, second]]
    ids = torch.tensor(numbers) if numbers else stand.unique()
    place = torch.full((int(max(ids.max(), stand.max())) + 1,), -1)
    place[ids] = torch.arange(len(ids))
    if len(ids.unique()) < len(ids):
        raise InputError("an id stands for two numbers; name each id once")
    if bool((place[stand] < 0).any()):
        lost = int(stand[place[stand] < 0][0])
        raise InputError(
            f"the id {lost} stands in a column of numbers and is none of the {len(ids)} numbers named"
        )
    rest = [column for column in range(width) if column not in columns]
    if rest and bool((tokens[:, rest] != tokens[0, rest]).any()):
        raise InputError(
            f"the prompts differ outside the columns {first} and {second}; give prompts of one pattern"
        )
    p = len(ids)
    every = tokens[:1].repeat(p * p, 1)
    every[:, first] = ids.repeat_interleave(p)
    every[:, second] = ids.repeat(p)
    return NumberPairs(ids, every, place[stand[:, 0]] * p + place[stand[:, 1]])


@torch.no_grad()
def table(
    model: Model, pairs: NumberPairs, read: tuple[Site, ...] = ()
) -> tuple[Float[Tensor, "a b c"], dict[Site, Float[Tensor, "a b unit"]]]:
    """Logits of each number for each pair, and the values at these sites at the last position."""
    p = pairs.p
    last = [Site(site.part, site.layer, positions=(-1,)) for site in read]
    wanted = LogitSelection((-1,), tuple(pairs.numbers.tolist()))
    run = model.run(pairs.tokens.to(model.device), last, logits=wanted)
    assert run.logits is not None
    logits = run.logits.reshape(p, p, p).cpu()
    return logits, {site: run[one].reshape(p, p, -1).cpu() for site, one in zip(read, last, strict=True)}
