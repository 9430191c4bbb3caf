"""In which directions of a site does a variable stand? They are searched by exchanging them, and tried on other rows.

1. The rows of the hypothesis are split: a subspace is learned on one part and measured on the other.
2. For each variable, directions at its site are turned until exchanging their span makes the network answer as the
   causal model does (`learned_subspace`: a rotation of given size, one whose size is learned, or a mask of units).
   Where in the site the variable's values have their means is the first start, at a tenth of the rate, and the second;
   random directions are the others. Kept is the one that is right most often on what it learned from.
3. On held-out rows the subspace is exchanged exactly: interchange-intervention accuracy.
4. The same search in a network of random weights says what a search alone can do; and what the subspace does that its
   part read by later weights does not do, went through a dormant pathway (`dormant_pathway`).

Directions that the hypothesis may have for its variables are not looked at, only their number where none is asked for.
Reference: Geiger et al. (2023), Finding Alignments Between Interpretable Causal Variables and Distributed Neural
Representations. Misleads: with enough directions, any network of enough width can be made to obey.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.causal.interchange import (
    Exchanges,
    agreement,
    bases,
    check_fit,
    draw,
    places,
    right,
    said_by_itself,
)
from microtome.causal.learned_subspace import Kind, Schedule, Subspace, learn, means_by_value, of_means
from microtome.causal.subspace_patching import dormant_share, effects, subspaces
from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, Directions
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Curve, Shape, Table
from microtome.core.site import as_site
from microtome.data.hypothesis import Hypothesis, Location
from microtome.models.model import Model
from microtome.models.random_twin import How, random_twin

card = Card(
    name="distributed_alignment_search",
    title="Distributed alignment search",
    question="Which directions of a site carry a variable of a causal model?",
    steps=(
        "Split the rows; learn on one part, measure on the other.",
        "Turn directions until exchanging their span makes the network answer as the causal model does.",
        "Exchange the found span exactly on held-out rows.",
        "Search a network of random weights likewise, and look for dormant pathways.",
    ),
    reference="Geiger, Wu, Potts, Icard and Goodman 2023; Wu et al. 2023 for boundless",
    misleads="A search over directions can make a network obey that does not compute the variable; see the twin.",
    needs="hypothesis",
    causal="intervention",
    locality="global",
    claims=("directions",),
)


class Config(base.Config):
    """What is searched, and for how long."""

    variables: tuple[str, ...] = Field((), description="Variables to search for; empty: all.")
    kind: Kind = Field(
        "rotation", description="rotation, boundless (its size is learned too), or mask of units."
    )
    directions: int = Field(
        0, ge=0, description="Directions of a rotation; 0: as many as the hypothesis says."
    )
    steps: int = Field(300, ge=1, description="Steps of gradient descent from each start.")
    starts: int = Field(
        3, ge=1, description="Starts, at most: two from means, slow and fast, the others random."
    )
    rate: float = Field(0.02, gt=0, description="Learning rate at the beginning; it falls to nothing.")
    batch: int = Field(64, ge=1, description="Exchanges in a step.")
    price: float = Field(0.01, ge=0, description="Nats that a direction costs where their number is learned.")
    pairs: int = Field(1024, ge=2, description="Exchanges to learn from; a quarter as many are measured.")
    held_out: float = Field(0.4, gt=0, lt=1, description="Share of the rows that nothing is learned from.")
    twin: How = Field("drawn", description="How the control's weights are made: drawn or shuffled.")
    seed: base.Seed = Field(0, description="Seed of the rows, the starts and the control.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """On held-out rows: `accuracy [variable]` of all, `accuracy_changed` of the `n_changed` whose answer the exchange
    changes; `identity_changed`, right with nothing exchanged; `twin_changed`, of the search in random weights.
    `learned_changed`: on the rows learned from. `dormant`, `unread_share`: see `dormant_pathway`.
    `directions [variable, direction, d]`: orthonormal, NaN beyond `size [variable]` and the site's width.
    `codes [variable, value, d]`: the mean in the subspace for each value, NaN beyond those there are.
    `loss [variable, step]`: of the start that was kept, in nats.
    """

    def directions(self, variable: str) -> Float[np.ndarray, "direction d"]:
        """The orthonormal directions found for a variable. Raises `InputError` for one not searched."""
        return self._rows("directions", variable)

    def _rows(self, name: str, variable: str) -> Float[np.ndarray, "row d"]:
        if variable not in self.data["variable"].values:
            raise InputError(
                f"{variable!r} was not searched; there are {self.data['variable'].values.tolist()}"
            )
        found = self.data[name].sel(variable=variable).values
        found = found[np.isfinite(found).any(1)]
        kept: Float[np.ndarray, "row d"] = found[:, np.isfinite(found).any(0)]
        return kept

    def answers(self) -> tuple[Answer, ...]:
        found = []
        for index, name in enumerate(self.data["variable"].values.tolist()):
            site = as_site(str(self.data["site"].values[index]))
            found.append(Directions(site, self.directions(name), name))
        return tuple(found)

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        columns = (
            "accuracy_changed",
            "accuracy",
            "identity_changed",
            "twin_changed",
            "learned_changed",
            "dormant",
        )
        rows = tuple(
            (
                name,
                str(data["site"].values[i]),
                int(data["size"].values[i]),
                *(float(data[column].values[i]) for column in columns),
                int(data["n_changed"].values[i]),
            )
            for i, name in enumerate(data["variable"].values.tolist())
        )
        table = Table(
            "variables in directions, on held-out rows",
            (
                "variable",
                "site",
                "directions",
                "changed",
                "all",
                "identity",
                "random weights",
                "on learned rows",
                "dormant share",
                "n changed",
            ),
            rows,
            caption="interchange-intervention accuracy; all but one column among rows whose answer changes",
        )
        curve = Curve(
            "what the search minimises",
            np.arange(data.sizes["step"], dtype=np.float64),
            data["loss"].values,
            tuple(data["variable"].values.tolist()),
            "step",
            "nats",
            caption=f"{data.attrs['learned_from']} rows to learn from, {data.attrs['held_out']} held out",
        )
        return (table, curve)


def run(model: Model, data: Hypothesis, config: Config | None = None) -> Result:
    """Search each variable's site. Raises `InputError` for unknown variables, a variable at several sites, more
    directions than the site is wide, and variables that change no answer."""
    config = config or Config()
    names = config.variables or data.model.inner
    if unknown := [name for name in names if name not in data.locations]:
        raise InputError(f"there is no variable {unknown[0]!r}; there are {', '.join(data.model.inner)}")
    learned, held_out = data.split(1 - config.held_out, config.seed)
    twin = random_twin(model, config.seed, config.twin)
    found = []
    with measure() as recorder:
        for name in names:
            found.append(_Search(name, learned, held_out, config).result(model, twin, recorder))
    arrays = {
        key: ("variable", np.array([one[key] for one in found]))
        for key in found[0]
        if key not in ("directions", "codes", "loss")
    }
    several = {
        "directions": (("variable", "direction", "d"), _padded([one["directions"] for one in found])),
        "codes": (("variable", "value", "d"), _padded([one["codes"] for one in found])),
        "loss": (("variable", "step"), np.array([one["loss"] for one in found])),
    }
    rows = {"learned_from": len(learned.tokens), "held_out": len(held_out.tokens)}
    return Result.of(
        card,
        xr.Dataset({**arrays, **several}, {"variable": list(names)}, {"hypothesis": data.told(), **rows}),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
    )


class _Search:
    """The search for one variable."""

    def __init__(self, name: str, learned: Hypothesis, held_out: Hypothesis, config: Config) -> None:
        location = learned.locations[name]
        if len(location.sites) != 1:
            raise InputError(f"{name} stands at {location}; a subspace is searched at one site")
        self.name, self.config, self.site = name, config, location.sites[0]
        # Where the other variables stand is nothing to this one.
        self.learned, self.held_out = (
            one.keeping([name]).at(**{name: Location(self.site)}) for one in (learned, held_out)
        )
        self.count = config.directions or (0 if location.directions is None else len(location.directions))
        if config.kind == "rotation" and not self.count:
            raise InputError(
                f"the hypothesis says no number of directions for {name}; ask for some: directions=1"
            )
        self.source = torch.Generator().manual_seed(config.seed)
        self.examples = self._drawn(self.learned, config.pairs)
        self.tests = self._drawn(self.held_out, max(2, config.pairs // 4))

    def _drawn(self, hypothesis: Hypothesis, count: int) -> Exchanges:
        return draw(hypothesis, [self.name], bases(hypothesis, count, self.source), self.source)

    def result(self, model: Model, twin: Model, recorder: Recorder) -> dict[str, object]:
        directions, losses, values = self._best(model, recorder)
        other, _, _ = self._best(twin, recorder)
        taken, unread = subspaces(model, self.site, directions, self.source)
        some = {what: one for what, one in taken.items() if what in ("subspace", "read", "unread")}
        found = effects(model, self.held_out, self.name, self.tests, some, recorder)
        hits = self._right(model, self.held_out, self.tests, directions, recorder)
        own = said_by_itself(model, self.held_out)[self.tests.base]
        changed = self.tests.changed
        idle = right(own, self.tests.due, places(self.held_out))
        learned = self._right(model, self.learned, self.examples, directions, recorder)
        elsewhere = self._right(twin, self.held_out, self.tests, other, recorder)
        return {
            "site": str(self.site),
            "size": len(directions),
            "accuracy": float(hits.double().mean()),
            "accuracy_changed": float(hits[changed].double().mean()),
            "identity_changed": float(idle[changed].double().mean()),
            "twin_changed": float(elsewhere[changed].double().mean()),
            "learned_changed": float(learned[self.examples.changed].double().mean()),
            "n_changed": int(changed.sum()),
            "dormant": dormant_share(found),
            "unread_share": unread,
            "directions": directions.numpy(),
            "codes": self._codes(values, directions).numpy(),
            "loss": losses,
        }

    def _best(self, model: Model, recorder: Recorder) -> tuple[Tensor, list[float], Tensor]:
        """The subspace of the start with the smallest loss on all that is learned from."""
        config, tried = self.config, []
        values = check_fit(model, self.learned)[self.site]
        width = values.shape[-1]
        for start in range(config.starts):
            # What starts near is not to be thrown off.
            rate = config.rate if start or config.kind != "rotation" else config.rate / 10
            schedule = Schedule(config.steps, config.batch, rate, config.price)
            first = of_means(self.learned, self.name, values, width) if start < 2 else None
            subspace = Subspace(config.kind, width, self.count, self.source, first)
            losses = learn(
                model,
                self.learned,
                self.site,
                values,
                self.examples,
                subspace,
                schedule,
                self.source,
                recorder,
            )
            directions = subspace.chosen()
            hits = self._right(model, self.learned, self.examples, directions, recorder)
            missed = 1 - float(hits.double().mean())
            tried.append((missed, config.price * len(directions), min(losses), directions, losses))
            if missed == 0 and config.kind == "rotation":
                break
        *_, directions, losses = min(tried, key=lambda one: one[:3])
        return directions, losses, values

    def _right(
        self, model: Model, hypothesis: Hypothesis, some: Exchanges, directions: Tensor, recorder: Recorder
    ) -> Tensor:
        moved = hypothesis.at(**{self.name: Location(self.site, directions)})
        return agreement(model, moved, [some], recorder)[0][0]

    def _codes(self, values: Tensor, directions: Tensor) -> Float[Tensor, "value d"]:
        """The mean of what stands in the subspace, for each value of the variable that occurs."""
        means = means_by_value(self.learned, self.name, values)
        return directions if means is None else means @ directions.T @ directions


def _padded(some: list[object]) -> Float[np.ndarray, "variable row d"]:
    arrays = [np.asarray(one) for one in some]
    shape = [max(one.shape[axis] for one in arrays) for axis in (0, 1)]
    found = np.full((len(arrays), *shape), np.nan, dtype=np.float32)
    for place, one in enumerate(arrays):
        found[place, : one.shape[0], : one.shape[1]] = one
    return found
