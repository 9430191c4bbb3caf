"""Where does an explanation break? Inputs on which the network does not do as it says, sought with its own help.

1. Counterexamples: trials of what the hypothesis predicts, tried in the order of `adversarial_search`, and as many in
   the order in which they were drawn, as control. Told are how many fail, and after how many the first does.
2. Flips: for a base row and a variable, the nearest row in which the variable is as it was and the answer is another.
   The explanation is right where the network's answer flips as said, and where the variable's place, taken from the
   flipped input, leaves the base's answer alone. Beside it the same with rows of another answer, drawn at random: what
   a variable's place does where the variable is not as it was.

Inputs are the hypothesis' own rows and, on request, new ones with each token from another row's column. An explanation
that is true yields no counterexample. Reference: Geiger et al. (2021) for exchanges, Chan et al. (2022) for what is
drawn anew. Misleads: finding none is no proof, and on trials that commit the hypothesis to nothing none can be found.
"""

from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from microtome.causal.adversarial_search import SCRUBBED, Search, Trials, Tried, told
from microtome.causal.interchange import places, said_by_itself
from microtome.causal.interchange_interventions import text
from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Curve, Shape, Table
from microtome.data.causal_model import UNASKED
from microtome.data.hypothesis import Hypothesis
from microtome.models.model import Model

card = Card(
    name="adversarial_examples",
    title="Adversarial examples from an explanation",
    question="On which inputs does the network not do what the hypothesis says?",
    steps=(
        "Draw trials: nothing changed, variables taken from other rows, all that is irrelevant drawn anew.",
        "Try first what the hypothesis tells apart and commits itself on, then what came near to failing.",
        "Beside them as many at random: how many fail, and after how many the first does.",
        "Build inputs that should flip the answer and leave a variable as it was; see whether they do.",
    ),
    reference="Geiger, Lu, Icard and Potts 2021; Chan et al. 2022",
    misleads="Finding no counterexample is no proof; it depends on the inputs at hand and on how many are tried.",
    needs="hypothesis",
    causal="intervention",
    locality="global",
    comprehensiveness="comprehensive",
)
_POOL = 16
_NEAR = 256


class Config(base.Config):
    """How much is tried, and on which inputs."""

    tries: int = Field(256, ge=1, description="Trials of each search.")
    rounds: int = Field(8, ge=1, description="Rounds of the guided search; it learns between them.")
    largest: int = Field(1, ge=1, description="Most variables exchanged at once.")
    scrub: bool = Field(True, description="Also draw anew all that the hypothesis calls irrelevant.")
    recombined: int = Field(
        0,
        ge=0,
        description="New inputs, each token from another row's column; the causal model must know them all.",
    )
    listed: int = Field(20, ge=0, description="Counterexamples listed, at most.")
    seed: base.Seed = Field(0, description="Seed of all that is drawn.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`hit [search, try]`: whether each trial was a counterexample, in order; `tried, found [search, kind]` by kind.

    `changed, base, source, expected, got [counterexample]`: texts. `flipped`, `held`, `held_random`, `tokens`,
    `tokens_random`, `n [variable]`: of inputs built to leave the variable as it was. Attributes: `first_guided` and
    `first_random`, the number of the first counterexample (NaN for none), and `hypothesis`.
    """

    @property
    def counterexamples(self) -> Table:
        """Inputs on which network and hypothesis differ."""
        names = ("changed", "base", "source", "expected", "got")
        found = int(self.data["hit"].sel(search="guided").sum())
        return Table(
            "counterexamples",
            names,
            tuple(zip(*(self.data[name].values.tolist() for name in names), strict=True)),
            caption=f"the first {self.data.sizes['counterexample']} of {found}",
        )

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        kinds, searches = data["kind"].values.tolist(), data["search"].values.tolist()
        rows = tuple(
            (
                kind,
                *(int(data[name].sel(search=s).values[i]) for s in searches for name in ("found", "tried")),
            )
            for i, kind in enumerate(kinds)
        )
        firsts = ", ".join(
            f"{search} {'none' if np.isnan(first) else f'after {first:.0f}'}"
            for search in searches
            for first in [data.attrs[f"first_{search}"]]
        )
        columns = tuple(f"{name} {search}" for search in searches for name in ("found", "of"))
        summary = Table(
            "where the explanation breaks",
            ("changed", *columns),
            rows,
            caption=f"counterexamples among trials; the first: {firsts}. {data.attrs['hypothesis']}",
        )
        curve = Curve(
            "counterexamples found",
            np.arange(1.0, data.sizes["try"] + 1),
            data["hit"].values.astype(float).cumsum(axis=1),
            tuple(searches),
            "trials",
            "found",
        )
        names = ("n", "flipped", "held", "held_random", "tokens", "tokens_random")
        flips = Table(
            "answers flipped with a variable left as it was",
            ("variable", "n", "flipped as said", "left alone", "at random", "tokens changed", "at random "),
            tuple(
                (name, *(float(data[column].values[i]) for column in names))
                for i, name in enumerate(data["variable"].values.tolist())
            ),
            caption="left alone: the variable's place, taken from the flipped input, leaves the answer; at random: "
            "from rows of another answer in which the variable may differ",
        )
        return (summary, curve, self.counterexamples, flips)


def run(model: Model, data: Hypothesis, config: Config | None = None) -> Result:
    """Look for counterexamples, and build flips. Raises `InputError` or `SiteError` where hypothesis and network do not
    fit, and for new inputs that the causal model does not know."""
    config = config or Config()
    source = torch.Generator().manual_seed(config.seed)
    data = _recombined(data, config.recombined, source)
    inner = data.model.inner
    kinds = [some for size in range(1, config.largest + 1) for some in combinations(inner, size)]
    notes: list[str] = []
    with measure() as recorder:
        if config.scrub and (why := Search(model, data, (), source, recorder).cannot_scrub()):
            notes.append(f"Nothing was drawn anew: {why}")
        elif config.scrub:
            kinds.append(SCRUBBED)
        search = Search(model, data, (*kinds, ()), source, recorder)
        trials = search.drawn(_POOL * config.tries)
        searches = {
            "guided": search.guided(trials, config.tries, config.rounds),
            "random": search.in_order(trials, config.tries),
        }
        said = said_by_itself(model, data).cpu()
        recorder.add(passes=1)
        flips = np.array([_flips(search, name, said, config.tries) for name in inner]).reshape(-1, 6)
    tried, found = (
        np.stack([_by_kind(trials, one, len(search.kinds), hits) for one in searches.values()])
        for hits in (False, True)
    )
    arrays: dict[str, tuple[str | tuple[str, ...], NDArray[Any]]] = {
        "hit": (("search", "try"), np.stack([one.hit for one in searches.values()])),
        "tried": (("search", "kind"), tried),
        "found": (("search", "kind"), found),
    }
    told_rows = _told(model, data, search, trials, searches["guided"], config.listed)
    for column, name in enumerate(("changed", "base", "source", "expected", "got")):
        arrays[name] = ("counterexample", np.array([row[column] for row in told_rows], dtype=str))
    for column, name in enumerate(("n", "flipped", "held", "held_random", "tokens", "tokens_random")):
        arrays[name] = ("variable", flips[:, column])
    attributes = {f"first_{name}": one.first for name, one in searches.items()}
    return Result.of(
        card,
        xr.Dataset(
            arrays,
            {
                "search": list(searches),
                "kind": [told(kind) for kind in search.kinds],
                "variable": list(inner),
            },
            {**attributes, "hypothesis": data.told()},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
        notes,
    )


def _recombined(data: Hypothesis, count: int, source: torch.Generator) -> Hypothesis:
    """The hypothesis about so many more rows, each token from the same column of another row."""
    if not count:
        return data
    rows = torch.randint(len(data.tokens), (count, data.tokens.shape[1]), generator=source)
    new = data.tokens.gather(0, rows)
    try:
        return replace(data, tokens=torch.cat([data.tokens, new]))
    except InputError as error:
        raise InputError(f"recombined rows are not what the hypothesis speaks of: {error}") from error


def _by_kind(trials: Trials, tried: Tried, kinds: int, hits: bool) -> Int[NDArray[np.integer], " kind"]:
    """How many trials of each kind were made, or failed."""
    order = tried.order[tried.hit] if hits else tried.order
    return np.bincount(trials.kind.numpy()[order], minlength=kinds)


def _told(
    model: Model, data: Hypothesis, search: Search, trials: Trials, tried: Tried, most: int
) -> list[tuple[str, ...]]:
    columns = list(places(data))
    found: list[tuple[str, ...]] = []
    for place in tried.hit.nonzero()[0][:most]:
        trial = int(tried.order[place])
        kind = search.kinds[int(trials.kind[trial])]
        due = trials.due[trial, columns]
        asked = due != UNASKED
        rows = [data.tokens[int(one[trial])] for one in (trials.base, trials.source)]
        found.append(
            (
                told(kind),
                text(model, rows[0]),
                text(model, rows[1]) if kind and kind != SCRUBBED else "",
                text(model, due[asked]),
                text(model, tried.said[int(place)][asked]),
            )
        )
    return found


def _flips(
    search: Search, name: str, said: Int[Tensor, "row place"], count: int
) -> tuple[float, float, float, float, float, float]:
    """Of inputs built for a variable: how many, the shares that flip and that are left alone, the share left alone of
    random ones, and how many tokens differ in each. NaN where there is none."""
    data, source = search.hypothesis, search.source
    total, columns = len(data.tokens), list(places(data))
    base = torch.randperm(total, generator=source)[:count]
    others = torch.randperm(total, generator=source)[:_NEAR]
    values = data.values[name][:, search.counting[name]]
    due, asked = data.answers[:, columns], data.asked[:, columns]
    another = (due[base][:, None] != due[others][None]).any(-1)
    another &= (asked[base][:, None] == asked[others][None]).all(-1)
    same = another & (values[base][:, None] == values[others][None]).all(-1)
    distance = (data.tokens[base][:, None] != data.tokens[others][None]).sum(-1)
    able = same.any(-1)
    if not able.any():
        nan = float("nan")
        return 0.0, nan, nan, nan, nan, nan
    base, distance, same, another = base[able], distance[able], same[able], another[able]
    nearest = distance.masked_fill(~same, data.tokens.shape[1] + 1).argmin(-1)
    drawn = torch.multinomial(another.double(), 1, generator=source)[:, 0]

    def left_alone(chosen: Tensor) -> float:
        logits = search.logits((name,), base, others[chosen])
        still = (data.said(logits).cpu() == said[base]) | ~asked[base]
        return float(still.all(-1).double().mean())

    flipped = others[nearest]
    right = ((said == due) | ~asked).all(-1)
    return (
        float(len(base)),
        float((right[base] & right[flipped]).double().mean()),
        left_alone(nearest),
        left_alone(drawn),
        float(distance.gather(1, nearest[:, None]).double().mean()),
        float(distance.gather(1, drawn[:, None]).double().mean()),
    )
