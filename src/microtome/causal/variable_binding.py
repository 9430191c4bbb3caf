"""Where does a network keep which filler belongs to which role? What stands at two bindings is swapped within a prompt.

    Ann owns a dog . Bob owns a cat . What does Ann own ?     roles: Ann, Bob; fillers: dog, cat

Each prompt has bindings, a role and a filler at known positions, and ends with a role: the answer is its filler. At
each site, for the binding that is asked for and another one:

1. fillers: what stands at the two fillers is swapped. roles: at the two roles. both: at both. unrelated: at the fillers
   of two bindings that are not asked for. Told is how often the answer is the other binding's filler, or stays.
2. content: what stands at the filler is taken from a prompt with the same role and another filler there. Told is how
   often the answer is that prompt's filler.

A site that holds a filler's tag, but not the filler: swapping fillers swaps answers, and content does not move them.
One that holds the filler, but not its tag: both move the answer. One that holds both together: swapping moves nothing,
since fillers take their tags along, and content moves the answer. Reference: Feng and Steinhardt (2023), How Do
Language Models Bind Entities in Context?; Smolensky (1990), for roles and fillers. Misleads: a network that answers by
order alone passes for one that binds; mix the order of the bindings in the prompts.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.edits import Set
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Shape, Table
from microtome.core.site import Site
from microtome.data.observed import Observed, as_prompts
from microtome.models.model import Model
from microtome.models.random_twin import How, random_twin
from microtome.models.sweep import Variant, sweep

card = Card(
    name="variable_binding",
    title="Variable binding by swaps",
    question="At which sites does the network keep which filler belongs to which role?",
    steps=(
        "Swap what stands at the fillers, the roles, or both, of the binding asked for and another one.",
        "Put in what stands at the filler in a prompt with the same role and another filler.",
        "Tell how often the answer becomes the other filler, and how often it stays.",
        "Do the same in random weights.",
    ),
    reference="Feng and Steinhardt 2023, How Do Language Models Bind Entities in Context?",
    misleads="Answering by order looks like binding where the order of the bindings never changes.",
    needs="tokens",
    causal="intervention",
)
TESTS: Final = ("fillers", "roles", "both", "unrelated", "content")
_CLEAR: Final = 0.9


class Config(base.Config):
    """Where the bindings stand, and where to look."""

    roles: tuple[int, ...] = Field((), description="Position of each binding's role.")
    fillers: tuple[int, ...] = Field((), description="Position of each binding's filler.")
    sites: tuple[str, ...] = Field((), description="Sites to try; empty: every stream and head.")
    twin: How = Field("drawn", description="How the control's weights are made: drawn or shuffled.")
    seed: base.Seed = Field(0, description="Seed of the other bindings, the other prompts and the control.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`moved [site, test]`: share of the `n [test]` prompts that are answered with the other filler; `stays`: with
    their own. `twin_moved`: in random weights. NaN where no prompt serves for the test. Attribute `by_itself`: share
    answered right with nothing swapped.
    """

    def holds(self, site: str) -> str:
        """What a site holds of a binding: `tag`, `filler`, `both`, or nothing (empty)."""
        moved = self.data["moved"].sel(site=site)
        swap, content = (float(moved.sel(test=test)) for test in ("fillers", "content"))
        if swap >= _CLEAR:
            return "filler" if content >= _CLEAR else "tag" if content <= 1 - _CLEAR else ""
        return "both" if content >= _CLEAR and swap <= 1 - _CLEAR else ""

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        rows = tuple(
            (
                site,
                self.holds(site),
                *(float(x) for x in data["moved"].values[i]),
                float(data["stays"].values[i][2]),
            )
            for i, site in enumerate(data["site"].values.tolist())
        )
        caption = (
            f"share answered with the other filler; n = {data['n'].values.tolist()}; {data.attrs['by_itself']:.3f} "
            f"answered right with nothing swapped; at most {float(np.nanmax(data['twin_moved'].values)):.3f} moved in "
            "random weights"
        )
        return (
            Table(
                "what moves with a binding", ("site", "holds", *TESTS, "both: stays"), rows, caption=caption
            ),
        )


def run(model: Model, data: Observed, config: Config | None = None) -> Result:
    """Try every site. Raises `InputError` for fewer than two bindings, roles and fillers that do not pair, padded
    prompts, and a prompt that asks for no role or for one that stands twice."""
    config = config or Config()
    prompts = as_prompts(data, model.tokenizer)
    if prompts.mask is not None:
        raise InputError("the prompts differ in length; bindings stand at the same positions of every prompt")
    bindings = _Bindings(prompts.tokens, config)
    sites = [Site.parse(text) for text in config.sites] or _default(model)
    if chosen := [site for site in sites if site.positions is not None]:
        raise InputError(f"{chosen[0]} selects positions; the bindings say which, so leave them out")
    with measure() as recorder:
        moved, stays, right = _tried(model, bindings, sites, recorder)
        twin, _, _ = _tried(random_twin(model, config.seed, config.twin), bindings, sites, recorder)
    arrays = {
        "moved": (("site", "test"), moved.numpy()),
        "stays": (("site", "test"), stays.numpy()),
        "twin_moved": (("site", "test"), twin.numpy()),
        "n": ("test", np.array([int(test.serves.sum()) for test in bindings.tests])),
    }
    return Result.of(
        card,
        xr.Dataset(arrays, {"site": list(map(str, sites)), "test": list(TESTS)}, {"by_itself": right}),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), prompts.hash),
        recorder.cost(),
    )


@dataclass(frozen=True, eq=False)
class _Test:
    """Where every place takes its value from: another row and column. other: the filler answered if it moves."""

    row: Int[Tensor, "row column"]
    column: Int[Tensor, "row column"]
    other: Int[Tensor, " row"]
    serves: Bool[Tensor, " row"]


class _Bindings:
    """The bindings of every prompt, which is asked for, and the five tests."""

    def __init__(self, tokens: Int[Tensor, "row column"], config: Config) -> None:
        count, width = len(config.roles), tokens.shape[1]
        if count < 2 or len(config.fillers) != count:
            raise InputError(
                f"{count} roles and {len(config.fillers)} fillers; give the positions of two bindings or more, a "
                "role and a filler for each"
            )
        places = [*config.roles, *config.fillers]
        if len({*places}) != len(places) or not all(0 <= place < width - 1 for place in places):
            raise InputError(
                f"positions {places} must differ and lie before the last of {width}, which asks for a role"
            )
        self.tokens, self.config = tokens, config
        self.roles, self.fillers = torch.tensor(config.roles), torch.tensor(config.fillers)
        asked = tokens[:, self.roles] == tokens[:, -1:]
        if not (asked.sum(-1) == 1).all():
            row = int((asked.sum(-1) != 1).nonzero()[0, 0])
            raise InputError(
                f"prompt {row} ends with a token that stands at {int(asked[row].sum())} of its roles; it must ask "
                "for one"
            )
        self.asked = asked.int().argmax(-1)
        self.answer = tokens[torch.arange(len(tokens)), self.fillers[self.asked]]
        self.tests = self._tests(torch.Generator().manual_seed(config.seed))

    def _tests(self, source: torch.Generator) -> list[_Test]:
        rows, count = torch.arange(len(self.tokens)), len(self.roles)
        # The bindings of each row in random order, the one asked for first.
        order = torch.rand(len(rows), count, generator=source)
        order[rows, self.asked] = -1.0
        first, second, *rest = order.argsort(-1).unbind(-1)
        fillers, roles = (
            self._swapped((first, second, self.fillers)),
            self._swapped((first, second, self.roles)),
        )
        both = self._swapped((first, second, self.fillers), (first, second, self.roles))
        own, other = self._filler(first), self._filler(second)
        unlike = own != other
        found = [_Test(*one, other, unlike) for one in (fillers, roles, both)]
        if len(rest) >= 2:
            unrelated, moved = self._swapped((rest[0], rest[1], self.fillers)), self._filler(rest[0])
            found.append(_Test(*unrelated, moved, moved != own))
        else:
            found.append(_Test(*self._swapped(), other, torch.zeros_like(unlike)))
        return [*found, self._content(source)]

    def _swapped(self, *pairs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Places with two bindings' roles or fillers exchanged, in each row."""
        rows = torch.arange(len(self.tokens))
        column = torch.arange(self.tokens.shape[1]).repeat(len(rows), 1)
        for one, two, where in pairs:
            column[rows, where[one]], column[rows, where[two]] = where[two], where[one]
        return rows[:, None].expand_as(column), column

    def _content(self, source: torch.Generator) -> _Test:
        """The filler's place taken from another row, with the same role there and another filler."""
        rows = torch.arange(len(self.tokens))
        role, filler = self.roles[self.asked], self.fillers[self.asked]
        same_role = self.tokens[rows, role][:, None] == self.tokens[:, role].T
        there = self.tokens[:, filler].T
        fits = same_role & (there != self.answer[:, None])
        serves = fits.any(-1)
        drawn = torch.multinomial(fits.double() + (~serves[:, None]).double(), 1, generator=source)[:, 0]
        row, column = (one.clone() for one in self._swapped())
        row[rows, filler] = drawn
        return _Test(row, column, there[rows, drawn], serves)

    def _filler(self, binding: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        return self.tokens[torch.arange(len(self.tokens)), self.fillers[binding]]


def _tried(
    model: Model, bindings: _Bindings, sites: list[Site], recorder: Recorder
) -> tuple[Float[Tensor, "site test"], Float[Tensor, "site test"], float]:
    """Shares of prompts that move and that stay, at every site under every test; and answered right by themselves."""
    last = Site("logits", positions=(-1,))
    values = model.run(bindings.tokens, [*sites, last]).values
    variants = [
        Variant((Set(site, value=values[site][test.row, test.column], origin="patch"),))
        for site in sites
        for test in bindings.tests
    ]
    swept = sweep(model, bindings.tokens, variants, read=[last])
    recorder.include(swept.cost)
    recorder.add(passes=1)
    said = swept.values[last][:, :, 0].argmax(-1).unflatten(0, (len(sites), len(bindings.tests)))
    moved, stays = torch.full((2, len(sites), len(bindings.tests)), float("nan"))
    for place, test in enumerate(bindings.tests):
        if test.serves.any():
            answers = said[:, place, test.serves]
            moved[:, place] = (answers == test.other[test.serves]).float().mean(-1)
            stays[:, place] = (answers == bindings.answer[test.serves]).float().mean(-1)
    own = values[last][:, 0].argmax(-1)
    return moved, stays, float((own == bindings.answer).double().mean())


def _default(model: Model) -> list[Site]:
    """The stream before every block and behind the last, and every head."""
    streams = [Site("resid_pre", layer) for layer in range(model.n_layers)]
    heads = [
        Site("z", layer, heads=(head,)) for layer in range(model.n_layers) for head in range(model.n_heads)
    ]
    return sorted([*streams, Site("resid_post", model.n_layers - 1), *heads], key=lambda site: site.depth)
