"""Where do the variables of an algorithm stand, and which of them are needed? The simplest hypothesis that survives.

1. The inputs are split. On the first part every variable is exchanged at every head and MLP alone; of nodes that do
   not carry it alone, some are taken together while the share of right answers grows.
2. For every set of the variables (the rest computed on the way), alignments are tried from the shortest on, until one
   survives: all exchanges of one and of two variables, and scrubbing.
3. Length is in bits: which nodes, of all there are, and which edges, of all there could be.
4. What survived is tried again on the second part, by the same tests. The same search in a network of random weights
   says how often something survives by chance.

The best is, of those confirmed, the one with most variables, and of these the shortest. Where a hypothesis says its
variables stand is not looked at. Reference: Geiger et al. (2021) and Chan et al. (2022), for the tests. Misleads: what
is not among the causal model's variables is not found, and of two nodes that carry the same only the shorter set is
told.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field

from microtome.causal.causal_scrubbing import recovered_accuracy
from microtome.causal.interchange import agreement, bases, draw, exchanges, places, right
from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, NodeScores
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Grid, Shape, Table
from microtome.core.site import Site
from microtome.data.causal_model import TOKENS, CausalModel
from microtome.data.hypothesis import Hypothesis, Location
from microtome.models.components import components
from microtome.models.model import Model
from microtome.models.random_twin import How, random_twin
from microtome.models.sweep import Variant, sweep

card = Card(
    name="hypothesis_search",
    title="Search for the simplest surviving hypothesis",
    question="In which heads and MLPs do the variables of an algorithm stand, and which variables are needed?",
    steps=(
        "Exchange every variable at every head and MLP; add nodes where one is not enough.",
        "For every set of variables try alignments from the shortest on, until one survives exchanges and scrubbing.",
        "Confirm what survived on other inputs.",
        "Search a network of random weights likewise.",
    ),
    reference="Geiger et al. 2021; Chan et al. 2022",
    misleads="Variables that the causal model does not have are not found; of equals only the shorter set is told.",
    needs="hypothesis",
    causal="intervention",
    locality="global",
    comprehensiveness="comprehensive",
    claims=("nodes",),
)
_OPTIONS: Final = 3  # alignments of one variable that are carried on


class Config(base.Config):
    """How wide the search is, and what survives."""

    least: float = Field(
        0.95, gt=0, le=1, description="Share that must agree in the worst case, in every test."
    )
    nodes: int = Field(2, ge=1, description="Most nodes of one variable.")
    tries: int = Field(8, ge=1, description="Alignments tried for each set of variables.")
    sets: int = Field(64, ge=1, description="Sets of variables tried, at most: all of them, then small ones.")
    pairs: int = Field(64, ge=2, description="Base rows of each exchange.")
    held_out: float = Field(
        0.5, gt=0, lt=1, description="Share of the rows on which survivors are confirmed."
    )
    twin: How = Field("drawn", description="How the control's weights are made: drawn or shuffled.")
    seed: base.Seed = Field(0, description="Seed of the rows and of the control.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`alone [variable, node]`: share of rows answered as due when the variable is exchanged at that node alone, among
    rows whose answer changes.

    By `hypothesis`: its `variables` and `nodes` as texts, `count` of variables, `bits`; `exchanged`,
    `scrubbed`: the worst share on the rows searched, the latter NaN where the former is too small;
    `held_out_exchanged`, `held_out_scrubbed`: on the others. `survives`,
    `confirmed`. Attributes: `best`, in words (empty: none); `twin_survivors` of `twin_tried` in random weights.
    """

    @property
    def best(self) -> str:
        """The simplest hypothesis with most variables that was confirmed; empty where none was."""
        return str(self.data.attrs["best"])

    def answers(self) -> tuple[Answer, ...]:
        scores = self.data["alone"].values.max(0)
        return (NodeScores(dict(zip(self.data["node"].values.tolist(), scores.tolist(), strict=True))),)

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        columns = (
            "variables",
            "nodes",
            "bits",
            "exchanged",
            "scrubbed",
            "held_out_exchanged",
            "held_out_scrubbed",
            "confirmed",
        )
        order = np.lexsort((data["bits"].values, -data["count"].values, ~data["confirmed"].values))
        rows = tuple(tuple(data[column].values[i].item() for column in columns) for i in order)
        caption = (
            f"best: {self.best or 'none'}; {data.attrs['twin_survivors']} of {data.attrs['twin_tried']} sets of "
            "variables found a place in random weights"
        )
        titles = (
            "variables",
            "at",
            "bits",
            "exchanged",
            "scrubbed",
            "held out",
            "held out, scrubbed",
            "confirmed",
        )
        grid = Grid(
            "each variable exchanged at each node alone",
            data["alone"].values,
            "variable",
            tuple(data["variable"].values.tolist()),
            "node",
            tuple(data["node"].values.tolist()),
            unit="share right",
            diverging=False,
            caption=f"{self.config['pairs']} rows",
        )
        return (Table("hypotheses", titles, rows, caption=caption), grid)


def run(model: Model, data: Hypothesis, config: Config | None = None) -> Result:
    """Search for places of the hypothesis' variables; where it says they stand is not looked at. Raises `InputError`
    for a causal model without variables and a network without a map."""
    config = config or Config()
    return search(model, data.model, data.tokens, data.choices, config)


def search(
    model: Model,
    algorithm: CausalModel,
    tokens: torch.Tensor,
    choices: tuple[int, ...] = (),
    config: Config | None = None,
) -> Result:
    """Search for places of an algorithm's variables, `tokens [row, column]` being its inputs."""
    config = config or Config()
    if not algorithm.inner:
        raise InputError("the causal model has no variable but the answer; there is nothing to place")
    nowhere = Hypothesis(algorithm.keeping([]), {}, tokens, choices)
    first, second = nowhere.split(1 - config.held_out, config.seed)
    with measure() as recorder:
        one = _Search(model, algorithm, first, second, config, recorder)
        found = one.survivors()
        twin = random_twin(model, config.seed, config.twin)
        other = _Search(twin, algorithm, first, second, config, recorder).survivors()
    confirmed = [tried for tried in found if tried.confirmed]
    best = min(confirmed, key=lambda tried: (-len(tried.hypothesis.model.inner), tried.bits), default=None)
    arrays = {
        "alone": (("variable", "node"), one.alone),
        "variables": ("hypothesis", _texts([", ".join(tried.hypothesis.model.inner) for tried in found])),
        "nodes": ("hypothesis", _texts([tried.nodes for tried in found])),
        "count": (
            "hypothesis",
            np.array([len(tried.hypothesis.model.inner) for tried in found], dtype=np.int64),
        ),
        "survives": ("hypothesis", np.array([tried.survives for tried in found], dtype=bool)),
        "confirmed": ("hypothesis", np.array([tried.confirmed for tried in found], dtype=bool)),
    }
    for name in ("bits", "exchanged", "scrubbed", "held_out_exchanged", "held_out_scrubbed"):
        arrays[name] = ("hypothesis", np.array([getattr(tried, name) for tried in found], dtype=np.float64))
    attributes = {
        "best": "" if best is None else best.hypothesis.told(),
        "twin_survivors": sum(tried.confirmed for tried in other),
        "twin_tried": len(other),
    }
    coords = {"variable": list(algorithm.inner), "node": [str(site) for site in one.nodes]}
    return Result.of(
        card,
        xr.Dataset(arrays, coords, attributes),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), nowhere.hash),
        recorder.cost(),
    )


@dataclass(frozen=True)
class Tried:
    """A hypothesis with what its tests gave: worst shares on the rows searched, and on those held out."""

    hypothesis: Hypothesis
    bits: float
    exchanged: float
    scrubbed: float
    held_out_exchanged: float = float("nan")
    held_out_scrubbed: float = float("nan")
    survives: bool = False
    confirmed: bool = False

    @property
    def nodes(self) -> str:
        """Where its variables stand."""
        return ", ".join(str(self.hypothesis.locations[name]) for name in self.hypothesis.model.inner)


class _Search:
    """The search in one network."""

    def __init__(
        self,
        model: Model,
        algorithm: CausalModel,
        first: Hypothesis,
        second: Hypothesis,
        config: Config,
        recorder: Recorder,
    ) -> None:
        self.model, self.algorithm, self.config, self.recorder = model, algorithm, config, recorder
        self.first, self.second = first, second
        self.nodes = components(model)
        self.values = model.run(first.tokens, self.nodes, logits=False).values
        self.options: dict[str, list[Location]] = {}
        alone = [self._placed(name) for name in algorithm.inner]
        self.alone: Float[NDArray[np.float64], "variable node"] = np.array(alone)

    def survivors(self) -> list[Tried]:
        """For every set of variables the first alignment that survives, or the last that did not."""
        found = []
        inner = self.algorithm.inner
        smaller = (names for size in range(1, len(inner)) for names in itertools.combinations(inner, size))
        for names in itertools.islice(itertools.chain([inner], smaller), self.config.sets):
            tried = None
            for candidate in itertools.islice(self._alignments(names), self.config.tries):
                tried = self._tested(candidate)
                if tried.survives:
                    break
            if tried is not None:
                found.append(tried)
        return found

    def _placed(self, name: str) -> list[float]:
        """The share of each node alone; the best places of the variable are kept as options."""
        nowhere = replace(
            self.first, model=self.algorithm.keeping([name]), locations={name: Location(self.nodes[0])}
        )
        source = torch.Generator().manual_seed(self.config.seed)
        one = draw(nowhere, [name], bases(nowhere, self.config.pairs, source), source)
        columns = places(nowhere)
        site = Site("logits", positions=columns)

        def shares(some: Sequence[tuple[Site, ...]]) -> list[float]:
            moved = [{node: self.values[node][one.sources[name]] for node in nodes} for nodes in some]
            variants = [
                Variant(tuple(Location(nodes).edits(values)))
                for nodes, values in zip(some, moved, strict=True)
            ]
            swept = sweep(self.model, nowhere.tokens[one.base], variants, read=[site])
            self.recorder.include(swept.cost)
            hits = [right(nowhere.said(logits), one.due, columns) for logits in swept.values[site]]
            return [float(hit[one.changed].double().mean()) for hit in hits]

        alone = shares([(node,) for node in self.nodes])
        tried: dict[tuple[Site, ...], float] = {
            (node,): share for node, share in zip(self.nodes, alone, strict=True)
        }
        few = [node for node in self.nodes if tried[node,] < self.config.least]
        best: tuple[Site, ...] = max(((node,) for node in few), key=lambda nodes: tried[nodes], default=())
        while len(best) < min(self.config.nodes, len(few)) and tried[best] < self.config.least:
            grown: list[tuple[Site, ...]] = [(*best, node) for node in few if node not in best]
            tried |= dict(zip(grown, shares(grown), strict=True))
            larger = max(grown, key=lambda nodes: tried[nodes])
            if tried[larger] <= tried[best]:
                break
            best = larger
        order = sorted(tried, key=lambda nodes: (tried[nodes] < self.config.least, len(nodes), -tried[nodes]))
        self.options[name] = [Location(nodes) for nodes in order[:_OPTIONS]]
        return alone

    def _alignments(self, names: tuple[str, ...]) -> Iterator[Hypothesis]:
        """Hypotheses with these variables in their best places, the shortest first."""
        coarse = self.algorithm.keeping(names)
        ordered = sorted(
            itertools.product(*(range(len(self.options[name])) for name in names)),
            key=lambda choice: (
                sum(len(self.options[name][i].sites) for name, i in zip(names, choice, strict=True)),
                sum(choice),
            ),
        )
        for choice in ordered:
            locations = {name: self.options[name][i] for name, i in zip(names, choice, strict=True)}
            taken = [site for location in locations.values() for site in location.sites]
            if len({*taken}) == len(taken):
                yield replace(self.first, model=coarse, locations=locations)

    def _tested(self, hypothesis: Hypothesis) -> Tried:
        bits = self._bits(hypothesis)
        least = self.config.least
        moved, scrubbed = self._shares(hypothesis)
        if not (moved >= least and scrubbed >= least):
            return Tried(hypothesis, bits, moved, scrubbed)
        again = self._shares(replace(hypothesis, tokens=self.second.tokens))
        confirmed = all(share >= least for share in again)
        return Tried(hypothesis, bits, moved, scrubbed, *again, survives=True, confirmed=confirmed)

    def _shares(self, hypothesis: Hypothesis) -> tuple[float, float]:
        """The worst share of all exchanges, and what scrubbing leaves of the accuracy; NaN where exchanges fail."""
        source = torch.Generator().manual_seed(self.config.seed)
        some, _ = exchanges(hypothesis, bases(hypothesis, self.config.pairs, source), 2, 16, source)
        hits, _ = agreement(self.model, hypothesis, some, self.recorder)
        moved = min(float(hit[one.changed].double().mean()) for hit, one in zip(hits, some, strict=True))
        if moved < self.config.least:
            return moved, float("nan")
        return moved, recovered_accuracy(self.model, hypothesis, 2, self.config.seed, self.recorder)

    def _bits(self, hypothesis: Hypothesis) -> float:
        """A bit and a choice for each node, a bit to end each variable's list, and the choice of each edge's source."""
        places = [len(location.sites) for location in hypothesis.locations.values()]
        nodes = sum(count * (1 + math.log2(len(self.nodes))) for count in places) + len(places)
        names = {TOKENS, *hypothesis.model.inner}
        edges = sum(len(variable.parents) for variable in hypothesis.model.variables)
        return nodes + edges * math.log2(len(names))


def _texts(words: Sequence[str]) -> NDArray[Any]:
    return np.array(words, dtype=str)
