"""Which heads carry a model's induction, and is it done by the algorithm that is known for it? Measured apart.

1. Rows of random words, said again and again with a period of their own, so that nothing but the row itself tells
   what comes next.
2. The behaviour: how often the next word of a repeat is the model's first choice.
3. The heads, by where they look: `induction` heads at the words that followed earlier sayings of the present one,
   `previous_token` heads, in layers below those, at the word before. A head has a role where it looks there at least
   half as much as the head that does so most, and that one `TIMES` as much as even attention would.
4. Needed: the behaviour with the heads of a role replaced by their mean output, and with all other heads of the same
   layers so.
5. The algorithm: previous-token heads tell a word which word came before it, and induction heads find it by that: the
   composition runs through *keys*. So the queries, keys or values of the induction heads are replaced, one sort at a
   time, by what they would be without the previous-token heads. If only the keys matter, the known algorithm is at
   work; the behaviour alone does not say so.

Elhage et al. (2021), A Mathematical Framework for Transformer Circuits; Olsson et al. (2022), In-context Learning and
Induction Heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core.draws import generator
from microtome.core.edits import Edit, Set
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.data.tasks.induction import ordinary_tokens
from microtome.models.model import Model
from microtome.testbeds.stories.corpus import CONTEXT
from microtome.testbeds.stories.grammar import BOS

TIMES = 3.0
SHORTEST, LONGEST = 12, 24
ROLES = ("previous_token", "induction")
Heads = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Account:
    """What was found. Behaviours are shares of first choices that are right, of `count` words.

    looks: each head's attention by role, `[layer, head]`. evenly: what even attention would give.
    roles: the heads by role, as (layer, head).
    behaviour: of the model as it is. without: of the model without the heads of a role. without_others: without all
    other heads of the layers that hold heads of the role, NaN where there are none.
    cut: with the queries (q), keys (k) or values (v) of induction heads as they would be without previous-token heads.
    """

    looks: Mapping[str, Float[Tensor, "layer head"]]
    evenly: Mapping[str, float]
    roles: Mapping[str, Heads]
    behaviour: float
    without: Mapping[str, float]
    without_others: Mapping[str, float]
    cut: Mapping[str, float]
    count: int

    @property
    def nodes(self) -> dict[str, tuple[str, ...]]:
        """The roles as a truth holds them: names of nodes."""
        return {role: tuple(f"z.{n}.h{h}" for n, h in heads) for role, heads in self.roles.items()}


def repeats(
    model: Model, rows: int, seed: int
) -> tuple[Int[Tensor, "row column"], Int[Tensor, "row column"]]:
    """Tokens, and at each column the one where the present word was first said (-1 while it is the first time)."""
    words = torch.tensor(ordinary_tokens(model.tokenizer))
    tokens = torch.full((rows, CONTEXT), BOS)
    first = torch.full((rows, CONTEXT), -1)
    for row in range(rows):
        drawn = generator(seed, row)
        period = int(torch.randint(SHORTEST, LONGEST + 1, (1,), generator=drawn))
        block = words[torch.randperm(len(words), generator=drawn)[:period]]
        place = torch.arange(CONTEXT - 1)
        tokens[row, 1:] = block[place % period]
        first[row, 1:] = torch.where(place >= period, place % period + 1, -1)
    return tokens, first


@torch.no_grad()
def account(model: Model, rows: int = 16, seed: int = 0) -> Account:
    """Locate, ablate, and cut. Raises `InputError` for a model without attention heads."""
    if not model.anatomies:
        raise InputError(f"{model.name} has no map of parts, so no heads; give a transformer")
    tokens, first = repeats(model, rows, seed)
    asked = first[:, 1:] > 1  # the word that begins a saying is left out: at first, nothing tells it
    looks, evenly = _looks(model, tokens, first)
    roles = _roles(looks, evenly)
    means = _means(model, tokens)

    def right(edits: Sequence[Edit]) -> float:
        logits = model.run(tokens, edit=edits, logits=True).logits
        assert logits is not None
        return float((logits[:, :-1].argmax(-1) == tokens[:, 1:])[asked].double().mean())

    without = {role: right(_ablated(heads, means)) for role, heads in roles.items()}
    others = {role: _others(heads, model.n_heads) for role, heads in roles.items()}
    return Account(
        looks,
        evenly,
        roles,
        right([]),
        without,
        {role: right(_ablated(heads, means)) if heads else float("nan") for role, heads in others.items()},
        {part: right(_cut(model, tokens, part, roles, means)) for part in "qkv"},
        int(asked.sum()),
    )


def _looks(
    model: Model, tokens: Int[Tensor, "row column"], first: Int[Tensor, "row column"]
) -> tuple[dict[str, Float[Tensor, "layer head"]], dict[str, float]]:
    """Mean attention to the word before, and to all words that followed earlier sayings of the present one; and what
    even attention would give."""
    place = torch.arange(tokens.shape[1])
    before = (place[:, None] - 1 == place).expand(len(tokens), -1, -1)
    followed = torch.zeros_like(before)
    followed[:, :, 1:] = tokens[:, :, None] == tokens[:, None, :-1]
    followed &= place[:, None] >= place
    where = {"previous_token": before, "induction": followed}
    asked = {"previous_token": (first >= 0) | (place > 1), "induction": first >= 0}
    seen = model.run(tokens, read=[Site("pattern", n) for n in range(model.n_layers)])
    patterns = torch.stack([seen[Site("pattern", n)] for n in range(model.n_layers)], dim=1)
    even = (place[:, None] >= place) / (place[:, None] + 1.0)
    return (
        {role: _mean_mass(patterns, where[role], asked[role]) for role in ROLES},
        {role: float(_mean_mass(even[None, None, None], where[role], asked[role])) for role in ROLES},
    )


def _mean_mass(
    patterns: Float[Tensor, "#row layer head query key"],
    where: Bool[Tensor, "row query key"],
    asked: Bool[Tensor, "row query"],
) -> Float[Tensor, "layer head"]:
    mass = (patterns * where[:, None, None]).sum(-1)
    return (mass * asked[:, None, None]).sum((0, 3)) / asked.sum()


def _roles(looks: Mapping[str, Float[Tensor, "layer head"]], evenly: Mapping[str, float]) -> dict[str, Heads]:
    induction = _foremost(looks["induction"], evenly["induction"])
    below = min((n for n, _ in induction), default=0)
    return {
        "previous_token": _foremost(looks["previous_token"][:below], evenly["previous_token"]),
        "induction": induction,
    }


def _foremost(looks: Float[Tensor, "layer head"], evenly: float) -> Heads:
    if not len(looks) or float(looks.max()) < TIMES * evenly:
        return ()
    return tuple((int(n), int(h)) for n, h in torch.nonzero(looks >= looks.max() / 2))


def _others(heads: Heads, n_heads: int) -> Heads:
    return tuple((n, h) for n in sorted({n for n, _ in heads}) for h in range(n_heads) if (n, h) not in heads)


def _means(
    model: Model, tokens: Int[Tensor, "row column"]
) -> dict[tuple[int, int], Float[Tensor, "1 1 1 d_head"]]:
    seen = model.run(tokens, read=[Site("z", n) for n in range(model.n_layers)])
    return {
        (n, h): seen[Site("z", n)][:, :, h].mean((0, 1))[None, None, None]
        for n in range(model.n_layers)
        for h in range(model.n_heads)
    }


def _ablated(heads: Heads, means: Mapping[tuple[int, int], Tensor]) -> list[Edit]:
    return [Set(Site("z", n, heads=(h,)), value=means[n, h], origin="mean") for n, h in heads]


def _cut(
    model: Model,
    tokens: Int[Tensor, "row column"],
    part: str,
    roles: Mapping[str, Heads],
    means: Mapping[tuple[int, int], Tensor],
) -> list[Edit]:
    sites = [Site(part, n, heads=(h,)) for n, h in roles["induction"]]
    if not sites:
        return []
    seen = model.run(tokens, read=sites, edit=_ablated(roles["previous_token"], means))
    return [Set(site, value=seen[site], origin="patch") for site in sites]
