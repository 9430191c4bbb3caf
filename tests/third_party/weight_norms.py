"""How large is each parameter? A method as a stranger would write it, used to test the doors it comes in by.

1. Take the Euclidean norm of every parameter.
"""

from typing import Any

import numpy as np
import xarray as xr
from pydantic import Field

from microtome.core import config, result
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Shape, Table

card = Card(
    name="weight_norms",
    title="Weight norms",
    question="How large is each parameter of the network?",
    steps=("Take the Euclidean norm of every parameter.",),
    reference="folklore",
    misleads="A large parameter may act on a direction that is never used, "
    "and a rescaled twin computes the same.",
    needs="weights",
    causal="observation",
    locality="global",
)


class Config(config.Config):
    """Settings."""

    power: float = Field(1.0, description="Raise each norm to this power.")
    seed: int = Field(0, description="Unused: nothing here is random.")


class Result(result.Result):
    """`norm` over `parameter`."""

    def shapes(self) -> tuple[Shape, ...]:
        names = self.data["parameter"].values.tolist()
        norms = self.data["norm"].values.tolist()
        return (Table("Norms", ("parameter", "norm"), tuple(zip(names, norms, strict=True))),)


def run(model: Any, data: None, config: Config) -> Result:
    """The norm of every parameter, `config.power` applied."""
    with measure() as recorder:
        parameters = dict(model.module.named_parameters())
        norms = np.array([p.detach().norm().item() for p in parameters.values()]) ** config.power
    norm = xr.Dataset({"norm": ("parameter", norms)}, {"parameter": list(parameters)})
    origin = Provenance(model.name, model_hash(model.module.state_dict()))
    return Result.of(card, norm, config, origin, recorder.cost())
