"""Is a variable in a subspace, and nowhere else at the site? The subspace is exchanged, then everything but it.

1. For each variable, rows get source rows of which the variable changes the answer due (`interchange`).
2. At the variable's site, five things are taken from the source in turn: the span of its directions, with the rest of
   the site left untouched; the rest, with the span left untouched; the whole site; as many random directions; and of
   the span the parts that the network reads and does not read (`dormant_pathway`).
3. The share of rows answered as due is told for each. A variable that is in its subspace moves with the subspace and
   does not move with the rest.

Reference: Geiger et al. (2023), for the exchange; Makelov, Lange and Nanda (2023), for its illusions. Misleads: that
the subspace is enough does not say that the network uses it otherwise; see `dormant`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.causal.dormant_pathway import parts, readers
from microtome.causal.interchange import (
    Exchanges,
    bases,
    check_fit,
    draw,
    exchanged,
    places,
    right,
    said_by_itself,
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

card = Card(
    name="subspace_patching",
    title="Subspace patching",
    question="Does a variable move with a subspace of its site, and stay with everything but the subspace?",
    steps=(
        "Draw rows and sources of which the variable changes the answer.",
        "Take from the source the subspace alone, the rest alone, the whole site, random directions.",
        "Take the parts of the subspace that later weights read and do not read.",
        "Tell for each how often the network answers as the causal model does.",
    ),
    reference="Geiger et al. 2023; Makelov, Lange and Nanda 2023",
    misleads="A subspace that is enough need not be what the network uses: look at the dormant share.",
    needs="hypothesis",
    causal="intervention",
    locality="global",
)
TAKEN: Final = ("subspace", "rest", "whole", "random", "read", "unread")


class Config(base.Config):
    """How much is exchanged."""

    pairs: int = Field(64, ge=2, description="Base rows of each exchange.")
    seed: base.Seed = Field(0, description="Seed of the rows and of the random directions.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`accuracy [variable, taken]`: share of rows answered as due, among `n_changed [variable]` rows whose answer the
    exchange changes; NaN where there is no such part. `dormant`, `unread_share [variable]`: see `dormant_pathway`;
    NaN where what reads the site is not known. `identity [variable]`: share right with nothing exchanged.
    """

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        rows = tuple(
            (
                name,
                str(data["site"].values[i]),
                *(float(x) for x in data["accuracy"].values[i]),
                float(data["identity"].values[i]),
                float(data["dormant"].values[i]),
                int(data["n_changed"].values[i]),
            )
            for i, name in enumerate(data["variable"].values.tolist())
        )
        columns = ("variable", "site", *TAKEN, "identity", "dormant share", "n")
        caption = "share of rows answered as the causal model does, among rows whose answer changes"
        return (Table("what moves with the variable", columns, rows, caption=caption),)


def run(model: Model, data: Hypothesis, config: Config | None = None) -> Result:
    """Exchange each variable's subspace and its parts. Raises `InputError` where no variable has directions."""
    config = config or Config()
    source = torch.Generator().manual_seed(config.seed)
    names = [name for name in data.model.inner if data.locations[name].directions is not None]
    if not names:
        raise InputError("no variable of the hypothesis has directions; find some, or exchange whole sites")
    rows = bases(data, config.pairs, source)
    accuracy, dormant, unread, idle, counts = [], [], [], [], []
    with measure() as recorder:
        check_fit(model, data)
        own = said_by_itself(model, data)
        for name in names:
            one = draw(data, [name], rows, source)
            directions = data.locations[name].directions
            assert directions is not None
            taken, share = subspaces(model, data.locations[name].sites[0], directions, source)
            found = effects(model, data, name, one, taken, recorder)
            accuracy.append([found.get(what, float("nan")) for what in TAKEN])
            dormant.append(dormant_share(found))
            unread.append(share)
            counts.append(int(one.changed.sum()))
            idle.append(float(right(own[rows], one.due, places(data))[one.changed].double().mean()))
    arrays = {
        "accuracy": (("variable", "taken"), np.array(accuracy)),
        "dormant": ("variable", np.array(dormant)),
        "unread_share": ("variable", np.array(unread)),
        "identity": ("variable", np.array(idle)),
        "n_changed": ("variable", np.array(counts)),
        "site": ("variable", np.array([str(data.locations[name].sites[0]) for name in names])),
    }
    return Result.of(
        card,
        xr.Dataset(arrays, {"variable": names, "taken": list(TAKEN)}, {"hypothesis": data.told()}),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
    )


def subspaces(
    model: Model, site: Site, directions: Float[Tensor, "direction d"], source: torch.Generator
) -> tuple[dict[str, Float[Tensor, "some d"]], float]:
    """What is taken in turn, by name, as orthonormal directions; and the share of the subspace that nothing reads."""
    width = directions.shape[1]
    whole = torch.linalg.qr(torch.cat([directions, torch.eye(width)]).T.double(), mode="complete").Q.T
    rest = whole[len(directions) :].to(directions.dtype)
    random = torch.linalg.qr(torch.randn(width, len(directions), generator=source)).Q.T
    found = {"subspace": directions, "rest": rest, "whole": torch.eye(width), "random": random}
    reading = readers(model, site)
    if reading is None:
        return {name: one for name, one in found.items() if len(one)}, float("nan")
    split = parts(directions, reading)
    found |= {"read": split.read, "unread": split.unread}
    return {name: one for name, one in found.items() if len(one)}, split.unread_share


def effects(
    model: Model,
    hypothesis: Hypothesis,
    name: str,
    one: Exchanges,
    taken: Mapping[str, Float[Tensor, "some d"]],
    recorder: Recorder,
) -> dict[str, float]:
    """The share of rows answered as due, among those whose answer changes, for each subspace of the variable's site."""
    site = hypothesis.locations[name].sites[0]
    found = {}
    for what, directions in taken.items():
        moved = hypothesis.keeping([name]).at(**{name: Location(site, directions)})
        logits = exchanged(model, moved, check_fit(model, moved), [one], recorder)[0]
        recorder.add(passes=1)
        hits = right(hypothesis.said(logits), one.due, places(hypothesis))
        found[what] = float(hits[one.changed].double().mean())
    return found


def dormant_share(found: Mapping[str, float]) -> float:
    """Of the subspace's effect, the share that what is read of it does not have; NaN where neither is known."""
    if not found.get("subspace") or not {"read", "unread"} & {*found}:
        return float("nan")
    if "unread" not in found:
        return 0.0
    return min(1.0, max(0.0, 1 - found.get("read", 0.0) / found["subspace"]))
