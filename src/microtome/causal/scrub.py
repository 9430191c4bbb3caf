"""What does a node compute when everything that a hypothesis calls irrelevant is drawn anew? The treeified pass.

The network is taken as the tree of all its paths, cut where the hypothesis says. For each reference row:

1. A variable read from the tokens alone is a leaf: its node's value comes from another row, drawn among those in which
   the variable has the same value.
2. Any other node is computed from its parents: for each parent a row is drawn in which the parent has the same value,
   and the parent's node is scrubbed for that row in turn. Everything else that the node could read, every other head,
   MLP and, unless the variable reads the tokens, the embedding, comes from one row drawn at random.
3. So a value reaches a node along the edges of the hypothesis only: all heads and MLPs before the node are held at the
   random row's values, but the parents. What stands behind a parent in the residual stream is not held, since it reads
   the parent.

Reference: Chan et al. (2022), Causal Scrubbing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.causal.interchange import check_fit, counting, places
from microtome.core.cost import Recorder
from microtome.core.edits import Edit, Set
from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection
from microtome.core.site import Site
from microtome.data.causal_model import TOKENS, Values
from microtome.data.hypothesis import Hypothesis
from microtome.models.model import Model

_STREAM = ("embed", "resid_pre", "resid_mid", "resid_post")
_WRITERS = ("z", "result", "attn_out", "mlp_post", "mlp_out")
Rows = Int[Tensor, " row"]


@dataclass(frozen=True, eq=False)
class Scrub:
    """A hypothesis about a network, ready to be scrubbed.

    features: the value of each variable in every row, by which rows are matched; the causal model's own, unless a
    control says others. Raises `InputError` for a variable at a site that is neither a stream nor what a head or an MLP
    makes, and where no variable stands between tokens and answer.
    """

    model: Model
    hypothesis: Hypothesis
    features: Mapping[str, Values]
    source: torch.Generator
    recorder: Recorder

    def __post_init__(self) -> None:
        for name, location in self.hypothesis.locations.items():
            for site in location.sites:
                if site.part not in (*_STREAM, *_WRITERS) or site.stack:
                    raise InputError(
                        f"{name} stands at {site}; scrubbing takes streams and what heads and MLPs make as nodes: "
                        f"{', '.join((*_STREAM, *_WRITERS))}"
                    )
        if not self._read(self.hypothesis.model.answer):
            raise InputError(
                "no variable stands between the tokens and the answer; there is nothing to scrub"
            )

    def logits(self, rows: Rows) -> Float[Tensor, "row place token"]:
        """Of the scrubbed network, for these reference rows, at the places where an answer is asked."""
        answer = self.hypothesis.model.answer
        tokens, edits = self._inputs(answer, rows, Site("logits"))
        self.recorder.add(passes=1)
        run = self.model.run(tokens, edit=edits, logits=LogitSelection(places(self.hypothesis)))
        assert run.logits is not None
        return run.logits

    def draw(self, name: str, rows: Rows) -> Rows:
        """For each row one in which the variable has the same value wherever it counts; it may be the row itself."""
        found = self._same[name][rows].double()
        return torch.multinomial(found, 1, generator=self.source)[:, 0]

    def alone(self, name: str) -> float:
        """The share of rows that no other row agrees with: they are drawn as themselves, and show nothing."""
        return float((self._same[name].sum(-1) == 1).double().mean())

    def _value(self, name: str, rows: Rows) -> dict[Site, Tensor]:
        """What stands at a variable's location, scrubbed, for these reference rows."""
        sites = self.hypothesis.locations[name].sites
        if not self._read(name):
            drawn = self.draw(name, rows)
            return {site: self._natural[site][drawn] for site in sites}
        found = {}
        for site in sites:
            tokens, edits = self._inputs(name, rows, site)
            self.recorder.add(passes=1)
            found[site] = self.model.run(tokens, [site], edits, logits=False)[site]
        return found

    def _inputs(self, name: str, rows: Rows, site: Site) -> tuple[Tensor, list[Edit]]:
        """Tokens and edits with which a pass computes one site of a variable from what the hypothesis says it reads."""
        hypothesis = self.hypothesis
        other = torch.randint(len(hypothesis.tokens), (len(rows),), generator=self.source)
        parents = self._read(name)
        edits: list[Edit] = []
        held = self._held(parents, site)
        for part in held:
            edits.append(Set(part, value=self._natural[part][other], origin="resample"))
        for parent in parents:
            edits += hypothesis.locations[parent].edits(self._value(parent, self.draw(parent, rows)))
        reads_tokens = TOKENS in hypothesis.model.parents(name)
        return hypothesis.tokens[rows if reads_tokens else other], edits

    def _held(self, parents: tuple[str, ...], site: Site) -> list[Site]:
        """Heads and MLPs that must not carry anything to the site but what the random row says."""
        inside = [part for name in parents for part in self.hypothesis.locations[name].sites]
        behind = [part.depth for part in inside if part.part in _STREAM or site.part in _STREAM]
        limit = min([site.depth, *behind])
        opened = {part.layer for part in inside if part.part == "mlp_post"}
        return [
            Site("mlp_post", part.layer) if part.part == "mlp_out" and part.layer in opened else part
            for part in self._components
            if part.depth < limit
        ]

    def _read(self, name: str) -> tuple[str, ...]:
        return tuple(parent for parent in self.hypothesis.model.parents(name) if parent != TOKENS)

    @cached_property
    def _components(self) -> list[Site]:
        """All heads of a layer together, and its MLP."""
        found = []
        for layer in range(self.model.n_layers):
            found += [site for part in ("z", "mlp_out") if self.model.has(site := Site(part, layer))]
        return found

    @cached_property
    def _natural(self) -> dict[Site, Tensor]:
        """What every row's own run makes at every node."""
        inner = {part.layer for part in self.hypothesis.sites if part.part == "mlp_post"}
        sites = [*self._components, *(Site("mlp_post", layer) for layer in inner)]
        self.recorder.add(passes=2)
        run = self.model.run(self.hypothesis.tokens, sites, logits=False)
        return {**run.values, **check_fit(self.model, self.hypothesis)}

    @cached_property
    def _same(self) -> dict[str, Tensor]:
        """For each variable `[row, row]`: whether two rows agree on it wherever it counts."""
        found = {}
        for name in self.hypothesis.model.inner:
            values = self.features[name][:, counting(self.hypothesis, name)]
            found[name] = (values[:, None] == values[None]).all(-1)
        return found
