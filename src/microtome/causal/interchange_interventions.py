"""Does the network compute what a causal model says, in the places said? Variables are exchanged between inputs.

1. For each variable, and each set of several, base rows get source rows: one for all variables, or one each.
2. What stands at the variables' locations in the sources' runs is put into the base's run, exactly.
3. The network's answer is compared with that of the causal model in which the variables have the sources' values.
   Interchange-intervention accuracy is the share that agree; each row that does not is a counterexample, told whole.
4. Beside it: how often the base's own answer would have been right (the identity), the same exchanges in a network of
   random weights, and in random places of the same kind.

Reference: Geiger et al. (2021), Causal Abstractions of Neural Networks. Misleads: accuracy over all rows flatters,
since many exchanges change nothing; read the share among those that change the answer. Agreement on outputs says
nothing of variables that were not exchanged, nor of inputs unlike these.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from microtome.causal.interchange import (
    Exchanges,
    agreement,
    bases,
    elsewhere,
    exchanges,
    places,
    right,
    said_by_itself,
)
from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Shape, Table
from microtome.data.causal_model import UNASKED
from microtome.data.hypothesis import Hypothesis
from microtome.models.model import Model
from microtome.models.random_twin import How, random_twin

card = Card(
    name="interchange_interventions",
    title="Interchange interventions",
    question="Does the network answer as a causal model does when variables are taken from other inputs?",
    steps=(
        "Draw base rows and source rows for each set of variables.",
        "Put what stands at the variables' locations in the sources' runs into the base's run.",
        "Compare the answers with the causal model's; list the counterexamples.",
        "Do the same with random weights and in random places, and ask how often no change would have been right.",
    ),
    reference="Geiger, Lu, Icard and Potts 2021, Causal Abstractions of Neural Networks",
    misleads="Exchanges that change no answer are right for nothing; read the share among those that change it.",
    needs="hypothesis",
    causal="intervention",
    locality="global",
    comprehensiveness="comprehensive",
)
_CONTROLS: Final = ("identity", "twin", "elsewhere")


class Config(base.Config):
    """How much is exchanged."""

    pairs: int = Field(64, ge=2, description="Base rows of each exchange.")
    largest: int = Field(2, ge=1, description="Most variables exchanged at once.")
    sets: int = Field(32, ge=0, description="Ways to exchange several variables that are tried, at most.")
    listed: int = Field(20, ge=0, description="Counterexamples listed, at most.")
    twin: How = Field("drawn", description="How the control's weights are made: drawn or shuffled.")
    seed: base.Seed = Field(0, description="Seed of the rows and of the controls.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`accuracy`, `accuracy_changed [exchange]`: shares of rows answered as due; the latter among rows where the
    exchange changes what is due, `n_changed` of `n`. `identity`, `twin`, `elsewhere` and the same with `_changed`: the
    controls. `base, source, expected, got [counterexample]`: texts. Attribute `by_itself`: share right unexchanged.
    """

    @property
    def counterexamples(self) -> Table:
        """Rows on which network and causal model differ."""
        names = ("exchanged", "base", "source", "expected", "got")
        columns = [self.data[name].values.tolist() for name in names]
        total = int(self.data.attrs["counterexamples"])
        return Table(
            "counterexamples",
            names,
            tuple(zip(*columns, strict=True)),
            caption=f"{len(columns[0])} of {total}",
        )

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        columns = (
            "accuracy",
            "accuracy_changed",
            *(f"{name}_changed" for name in _CONTROLS),
            "n",
            "n_changed",
        )
        rows = tuple(
            (str(name), *(data[column].values[i].item() for column in columns))
            for i, name in enumerate(data["exchange"].values)
        )
        table = Table(
            "interchange-intervention accuracy",
            ("exchanged", "all", "changed", "identity", "random weights", "random places", "n", "n changed"),
            rows,
            caption=f"{data.attrs['by_itself']:.3f} of {data.attrs['rows']} rows are answered right without exchange; "
            "controls are of rows whose answer changes",
        )
        return (table, self.counterexamples)


def run(model: Model, data: Hypothesis, config: Config | None = None) -> Result:
    """Exchange every variable, and sets of them. Raises `InputError` or `SiteError` where hypothesis and network do not
    fit, or where no exchange changes an answer."""
    config = config or Config()
    source = torch.Generator().manual_seed(config.seed)
    rows = bases(data, config.pairs, source)
    some, notes = exchanges(data, rows, config.largest, config.sets, source)
    other = elsewhere(model, data, source)
    with measure() as recorder:
        hits, said = agreement(model, data, some, recorder)
        own = said_by_itself(model, data)
        recorder.add(passes=1)
        columns = places(data)
        idle = torch.stack([right(own[one.base], one.due, columns) for one in some])
        twin, _ = agreement(random_twin(model, config.seed, config.twin), data, some, recorder)
        moved = torch.full(hits.shape, float("nan"))
        if other is None:
            notes += ("There is no other place of the same kind, so random places were not tried.",)
        else:
            moved = agreement(model, other, some, recorder)[0].double()
    changed = torch.stack([one.changed for one in some])
    arrays = {"n": ("exchange", changed.shape[1] * np.ones(len(some), int))}
    arrays["n_changed"] = ("exchange", changed.sum(-1).numpy())
    shares = {"accuracy": hits, "identity": idle, "twin": twin, "elsewhere": moved}
    for name, share in shares.items():
        arrays[name] = ("exchange", share.double().mean(-1).numpy())
        kept = share.double().where(changed, torch.tensor(0.0, dtype=torch.float64))
        arrays[f"{name}_changed"] = ("exchange", (kept.sum(-1) / changed.sum(-1)).numpy())
    missed = (~hits).nonzero().tolist()
    told = [_told(model, data, some[i], pair, said[i]) for i, pair in missed[: config.listed]]
    for column, name in enumerate(("exchanged", "base", "source", "expected", "got")):
        arrays[name] = ("counterexample", np.array([row[column] for row in told], dtype=str))
    attributes = {
        "by_itself": float(right(own, data.answers, columns).double().mean()),
        "rows": len(data.tokens),
        "counterexamples": len(missed),
        "hypothesis": data.told(),
    }
    return Result.of(
        card,
        xr.Dataset(arrays, {"exchange": [_name(one) for one in some]}, attributes),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
        notes,
    )


def _name(one: Exchanges) -> str:
    distinct = len(one.names) > 1 and not torch.equal(*list(one.sources.values())[:2])
    return " + ".join(one.names) + (", a source each" if distinct else "")


def _told(
    model: Model, hypothesis: Hypothesis, one: Exchanges, pair: int, said: Tensor
) -> tuple[str, str, str, str, str]:
    tokens, columns = hypothesis.tokens, list(places(hypothesis))
    due = one.due[pair, columns]
    asked = due != UNASKED
    sources = dict.fromkeys(int(rows[pair]) for rows in one.sources.values())
    return (
        _name(one),
        text(model, tokens[one.base[pair]]),
        " | ".join(text(model, tokens[row]) for row in sources),
        text(model, due[asked]),
        text(model, said[pair][asked]),
    )


def text(model: Model, ids: Tensor) -> str:
    """Ids as a person reads them: by the tokenizer, or as numbers where there is none."""
    if model.tokenizer is None:
        return " ".join(map(str, ids.tolist()))
    return str(model.tokenizer.decode(ids.tolist()))
