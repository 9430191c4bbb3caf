"""How is a method run that asks only what the values at one site are like? Read them, look, say where they came from.

1. Read the values at the site, token by token, padding left out.
2. Look at them: whatever the method does, of values alone.
3. Make its result, with the model, the data and the cost.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.bases import fitted
from microtome.core import config, result
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.site import Site
from microtome.models.model import Model

FEWEST = 64
"""Values without which nothing is said."""


class Config(config.Config):
    """Where, and how many values."""

    site: str = Field(
        "", description="Site to look at; empty: the residual stream in the middle of the model."
    )
    rows: int = Field(64, ge=1, description="Prompts in a pass.")
    sample: int = Field(4096, ge=FEWEST, description="Values looked at, at most, drawn at random.")
    seed: config.Seed = Field(0, description="Of everything drawn.")


ResultT = TypeVar("ResultT", bound=result.Result)
ConfigT = TypeVar("ConfigT", bound=Config)


@torch.no_grad()
def examined(
    card: Card,
    kind: type[ResultT],
    examine: Callable[[Float[Tensor, "row d"], ConfigT], xr.Dataset],
    model: Model,
    data: Any,
    config: ConfigT,
) -> ResultT:
    """The result, of this kind, of a look at the values of a model; its attribute `site` says where.

    Raises `InputError` for fewer than 64 values, and where no site is named and the module has no map.
    """
    site = Site.parse(config.site) if config.site else fitted.middle(model)
    with measure() as recorder:
        values, digest = fitted.values_at(model, data, site, config.rows, recorder)
        flat = values.flatten(0, 1)
        dataset = examine(flat[~flat.isnan().any(-1)], config)
    dataset.attrs["site"] = str(site)
    return kind.of(
        card,
        dataset,
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), digest),
        recorder.cost(),
    )


def sampled(
    values: Float[Tensor, "row d"], config: Config, draw: torch.Generator
) -> Float[Tensor, "sample d"]:
    """As many of the values as are looked at, in random order. Raises `InputError` for fewer than 64."""
    if len(values) < FEWEST:
        raise InputError(
            f"{len(values)} values are too few to tell what they are made of; give at least {FEWEST}"
        )
    return values[torch.randperm(len(values), generator=draw)[: config.sample]]
