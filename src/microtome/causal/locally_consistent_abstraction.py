"""Is every single step of a causal model a step of the network? Agreement one step from where it was intervened.

1. A variable is exchanged at its location, as in an interchange intervention.
2. Not the answer is looked at, but the variables computed from it directly: each one's value is read off the network at
   its own location, as the value at the row and place whose own run stands nearest. Where the child is the
   answer, the network's answer is read.
3. It is compared with what the causal model computes for that child. Beside it: how often the reading agrees when
   nothing is exchanged (the most that could be hoped for), and the same in random weights.

So each mechanism is tried by itself, wherever errors of others would hide or undo it. Reference: Beckers, Eberhardt and
Halpern (2019), Approximate Causal Abstraction, and Jenner et al. (2023), A Comparison of Causal Scrubbing, Causal
Abstractions, and Related Methods, for the local form. Misleads: steps that are right one by one need not add up, since
small errors are rounded away by the reading; and a value that no row has by itself cannot be read: rows that should
take one are left out.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from microtome.causal.interchange import (
    Exchanges,
    bases,
    check_fit,
    counting,
    draw,
    places,
    right,
    said_by_itself,
    variants,
)
from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Shape, Table
from microtome.core.site import Site
from microtome.data.hypothesis import Hypothesis, Location
from microtome.models.model import Model
from microtome.models.random_twin import How, random_twin
from microtome.models.sweep import sweep

card = Card(
    name="locally_consistent_abstraction",
    title="Locally consistent abstraction",
    question="When a variable is exchanged, do the variables computed from it directly take the values they should?",
    steps=(
        "Exchange a variable at its location.",
        "Read each of its children off the network, as the value of the row that stands nearest there.",
        "Compare with the causal model's value for that child.",
        "Do the same in random weights, and with nothing exchanged.",
    ),
    reference="Beckers, Eberhardt and Halpern 2019; Jenner, Garriga-Alonso and Zverev 2023",
    misleads="Steps that are right one by one need not add up: the reading rounds small errors away.",
    needs="hypothesis",
    causal="intervention",
    locality="global",
)


class Config(base.Config):
    """How much is exchanged."""

    pairs: int = Field(64, ge=2, description="Base rows of each exchange.")
    twin: How = Field("drawn", description="How the control's weights are made: drawn or shuffled.")
    seed: base.Seed = Field(0, description="Seed of the rows and of the control.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """For each `step`, of a `parent` that is exchanged to its `child`: `agreement` over `n` rows, `agreement_changed`
    over the `n_changed` rows whose child should change; `readable`: agreement of the reading with nothing exchanged;
    `twin_changed`: in random weights. NaN where no row's child changes.
    """

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        columns = ("agreement", "agreement_changed", "readable", "twin_changed")
        rows = tuple(
            (
                data["parent"].values[i].item(),
                data["child"].values[i].item(),
                *(float(data[column].values[i]) for column in columns),
                int(data["n_changed"].values[i]),
            )
            for i in range(data.sizes["step"])
        )
        titles = (
            "exchanged",
            "looked at",
            "all",
            "changed",
            "readable",
            "identity",
            "random weights",
            "n changed",
        )
        return (Table("agreement one step on", titles, rows, caption=data.attrs["hypothesis"]),)


def run(model: Model, data: Hypothesis, config: Config | None = None) -> Result:
    """Try each step. Raises `InputError` where the causal model has no variable but the answer."""
    config = config or Config()
    if not data.model.inner:
        raise InputError("the causal model has no variable but the answer; there is no step to try")
    with measure() as recorder:
        found, notes = steps(model, data, config.pairs, config.seed, recorder)
        other = random_twin(model, config.seed, config.twin)
        twin, _ = steps(other, data, config.pairs, config.seed, recorder)
    arrays = {
        "parent": ("step", np.array([one.parent for one in found], dtype=str)),
        "child": ("step", np.array([one.child for one in found], dtype=str)),
        "n": ("step", np.full(len(found), config.pairs)),
        "n_changed": ("step", np.array([one.n_changed for one in found])),
        "twin_changed": ("step", np.array([one.changed for one in twin])),
    }
    for name, field in (
        ("agreement", "all"),
        ("agreement_changed", "changed"),
        ("readable", "readable"),
    ):
        arrays[name] = ("step", np.array([getattr(one, field) for one in found]))
    return Result.of(
        card,
        xr.Dataset(arrays, attrs={"hypothesis": data.told()}),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
        notes,
    )


@dataclass(frozen=True)
class Step:
    """Shares of rows that agree, from an exchanged parent to its child."""

    parent: str
    child: str
    all: float
    changed: float
    readable: float
    n_changed: int


def steps(
    model: Model, hypothesis: Hypothesis, pairs: int, seed: int, recorder: Recorder
) -> tuple[list[Step], tuple[str, ...]]:
    """Every step of the causal model, tried; and which could not be, since their parent changes no answer.

    Raises `InputError` where none could be.
    """
    source = torch.Generator().manual_seed(seed)
    rows = bases(hypothesis, pairs, source)
    values = check_fit(model, hypothesis)
    said = said_by_itself(model, hypothesis)
    readable = float(right(said, hypothesis.answers, places(hypothesis)).double().mean())
    recorder.add(passes=2)
    found, notes = [], []
    for parent in hypothesis.model.inner:
        try:
            one = draw(hypothesis, [parent], rows, source)
        except InputError as error:
            notes.append(f"Not tried: {error}")
            continue
        given = {parent: hypothesis.values[parent][one.sources[parent]]}
        due = hypothesis.model.run(hypothesis.tokens[rows], given)
        after = _after(model, hypothesis, values, one, recorder)
        for child in _children(hypothesis, parent):
            if child == hypothesis.model.answer:
                hits = right(hypothesis.said(after[_logits(hypothesis)]), due[child], places(hypothesis))
                changed, share = one.changed, readable
            else:
                hits, changed, share = _read(hypothesis, child, values, after, due[child], one)
            found.append(
                Step(
                    parent,
                    child,
                    float(hits.double().mean()),
                    float(hits[changed].double().mean()),
                    share,
                    int(changed.sum()),
                )
            )
    if not found:
        raise InputError(notes[0].removeprefix("Not tried: "))
    return found, tuple(notes)


def _children(hypothesis: Hypothesis, parent: str) -> list[str]:
    return [one.name for one in hypothesis.model.variables if parent in one.parents]


def _logits(hypothesis: Hypothesis) -> Site:
    return Site("logits", positions=places(hypothesis))


def _after(
    model: Model,
    hypothesis: Hypothesis,
    values: dict[Site, Tensor],
    one: Exchanges,
    recorder: Recorder,
) -> dict[Site, Tensor]:
    """What stands at the children's locations, and the answer's logits, after an exchange."""
    children = [child for child in _children(hypothesis, one.names[0]) if child in hypothesis.locations]
    sites = [site for child in children for site in hypothesis.locations[child].sites]
    swept = sweep(
        model,
        hypothesis.tokens[one.base],
        variants(hypothesis, values, [one]),
        read=[*dict.fromkeys(sites), _logits(hypothesis)],
    )
    recorder.include(swept.cost)
    return {site: value[0] for site, value in swept.values.items()}


def _read(
    hypothesis: Hypothesis,
    child: str,
    values: dict[Site, Tensor],
    after: dict[Site, Tensor],
    due: Int[Tensor, "pair column"],
    one: Exchanges,
) -> tuple[Bool[Tensor, " pair"], Bool[Tensor, " pair"], float]:
    """Whether the child read after the exchange is as due, whether it should change, and how often it can be read."""
    location = hypothesis.locations[child]
    own = coordinates(location, values)
    moved = coordinates(location, after)
    known = hypothesis.values[child]
    columns = counting(hypothesis, child).nonzero()[:, 0].tolist()
    # From all places: a value may never occur by itself at the place where an exchange puts it.
    seen, values_seen = own[:, columns].flatten(0, 1), known[:, columns].flatten()
    apart = torch.cdist(seen, seen).fill_diagonal_(float("inf"))
    readable = (values_seen[apart.argmin(-1)] == values_seen).unflatten(0, (len(own), -1)).all(-1)
    nearest = torch.cdist(moved[:, columns].flatten(0, 1), seen).argmin(-1)
    hits = (values_seen[nearest].unflatten(0, (len(moved), -1)) == due[:, columns]).all(-1)
    changed = (known[one.base][:, columns] != due[:, columns]).any(-1)
    changed &= torch.isin(due[:, columns], values_seen).all(-1)  # what never stands anywhere cannot be read
    return hits, changed, float(readable.double().mean())


def coordinates(location: Location, values: dict[Site, Tensor]) -> Float[Tensor, "row column number"]:
    """What stands at a location, place by place, as rows of numbers.

    Raises `InputError` for a location at some positions only, which has no value at the others.
    """
    found = []
    for site in location.sites:
        if site.positions is not None:
            raise InputError(f"{site} selects positions; a child is read at every place, so leave them out")
        value = values[site].flatten(2)
        if location.directions is not None:
            value = value.unflatten(-1, (-1, location.directions.shape[1])) @ location.directions.T
            value = value.flatten(2)
        found.append(value)
    return torch.cat(found, -1)
