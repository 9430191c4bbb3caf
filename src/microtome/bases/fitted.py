"""What does a basis that was fitted to the values at a site say of them? What all methods that fit one share.

1. Read the values at the site, token by token, padding left out.
2. Put a share of the rows of the batch aside; fit the basis to the others.
3. On those put aside: how many units are on, how much of the variance is explained.
4. The control: the same on values whose dimensions are shuffled against each other, each keeping its own numbers.

Explained variance is 1 − Σ‖value − rebuilt‖² / Σ‖value − mean‖², with the mean of the rows fitted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from microtome.bases.basis import Basis, as_rows
from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, Directions, UnitValues
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, hash_tensors, model_hash
from microtome.core.shapes import Curve, Shape, Table
from microtome.core.site import Site
from microtome.data.observed import as_prompts
from microtome.models.model import Model

_SHOWN: Final = 20


class Config(base.Config):
    """What every fitted basis is asked: where, and on what."""

    site: str = Field(
        "", description="Site to take apart; empty: the residual stream in the middle of the model."
    )
    held_out: float = Field(0.2, ge=0, lt=1, description="Share of the rows put aside to measure on.")
    rows: int = Field(64, ge=1, description="Prompts in a pass; fewer need less memory.")
    control: bool = Field(True, description="Whether to fit shuffled values too.")
    codes: bool = Field(False, description="Whether to keep how strongly each unit is on, in every row.")
    seed: base.Seed = Field(0, description="Of the split, the shuffling, and whatever the fit draws.")


Fit = Callable[[Tensor, Site, Any], Basis]


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`direction [unit, dimension]`; `density [unit]`, share of rows in which a unit is on; `strength [unit]`, the mean
    square of what it writes over the variance. Attributes: `site`, `n_fitted`, `n_measured`, `l0` (units on in a row),
    `explained` and `explained_shuffled` (of the control; NaN without). With `codes`, `code [row, position, unit]` too,
    how strongly each unit is on; NaN where a row has ended."""

    def answers(self) -> tuple[Answer, ...]:
        """The directions, at the site; and how strongly each unit is on, where that was kept."""
        site, found = Site.parse(self.data.attrs["site"]), self.data["direction"].values
        said: list[Answer] = [Directions(site, found[np.linalg.norm(found, axis=1) > 0])]
        if "code" in self.data:
            said.append(UnitValues(site, self.data["code"].values))
        return tuple(said)

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        strength, density = data["strength"].values, data["density"].values
        order = np.argsort(-strength, kind="stable")
        caption = (
            f"{len(order)} units at {data.attrs['site']}, fitted to {data.attrs['n_fitted']} rows; on "
            f"{data.attrs['n_measured']} others {data.attrs['l0']:.1f} units are on in a row and explain "
            f"{data.attrs['explained']:.1%} of the variance; of shuffled values {data.attrs['explained_shuffled']:.1%}."
        )
        table = Table(
            "units that write most",
            ("unit", "strength", "density"),
            tuple((int(unit), float(strength[unit]), float(density[unit])) for unit in order[:_SHOWN]),
            caption,
            self.notes,
        )
        curve = Curve(
            "strength of units, strongest first",
            np.arange(1.0, len(order) + 1),
            strength[order][None],
            ("strength",),
            "unit",
            "share of the variance",
            caption=caption,
        )
        return (table, curve)


def run(card: Card, fit: Fit, model: Model, data: Any, config: Config) -> Result:
    """Read, fit, measure. Raises `InputError` where no site is named and the module has no map, and for too few rows;
    `SiteError` for a site that is not there."""
    site = Site.parse(config.site) if config.site else middle(model)
    with measure() as recorder, torch.no_grad():
        values, digest = values_at(model, data, site, config.rows, recorder)
        fitted, others, note = _parted(values, config)
        basis = fit(fitted, site, config)
        explained, codes = _explained(basis, fitted, others)
        every = {"code": (("row", "position", "unit"), _every(basis, values))} if config.codes else {}
        shuffled = float("nan")
        if config.control:
            draw = torch.Generator().manual_seed(config.seed)
            mixed = [_shuffled(part, draw) for part in (fitted, others)]
            shuffled = _explained(fit(mixed[0], site, config), *mixed)[0]
    directions = basis.directions().float()
    variance = (others - fitted.mean(0)).square().sum(-1).mean().clamp_min(1e-30)
    return Result.of(
        card,
        xr.Dataset(
            {
                "direction": (("unit", "dimension"), directions.numpy()),
                "density": ("unit", (codes != 0).float().mean(0).numpy()),
                "strength": (
                    "unit",
                    (codes.square().mean(0) * directions.square().sum(-1) / variance).float().numpy(),
                ),
                **every,
            },
            attrs={
                "site": str(site),
                "n_fitted": len(fitted),
                "n_measured": len(others),
                "l0": float((codes != 0).float().sum(-1).mean()),
                "explained": explained,
                "explained_shuffled": shuffled,
            },
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), digest),
        recorder.cost(),
        (*([note] if note else []), *basis.notes),
    )


def values_at(
    model: Model, data: Any, site: Site, rows: int, recorder: Recorder | None = None
) -> tuple[Float[Tensor, "batch position d"], str]:
    """Values at one site as rows of numbers, and the hash of the data.

    Rows that are shorter than the longest are padded with NaN. data: prompts, texts, ids, or the inputs by keyword of a
    module that takes none; there each row of the output stands alone. Raises `InputError` for a module's values with
    more axes than `[row, position, d]`.
    """
    if isinstance(data, Mapping):
        found = [model.run(dict(data), read=[site])[site]]
        mask, digest = None, hash_tensors({k: v for k, v in data.items() if isinstance(v, Tensor)})
    else:
        prompts = as_prompts(data, model.tokenizer)
        mask, digest = prompts.mask, prompts.hash
        found = []
        for start in range(0, len(prompts.tokens), rows):
            part = slice(start, start + rows)
            found.append(
                model.run(prompts.tokens[part], read=[site], mask=None if mask is None else mask[part])[site]
            )
    if recorder is not None:
        recorder.add(passes=len(found))
    value = torch.cat(found).float().cpu()
    if site.part == "path" and value.dim() > 3:
        raise InputError(
            f"{site} holds values of shape {list(value.shape)}, in which it is not known what is a row: of an image, "
            "channels stand before its points. Name a site of [row, d] or [row, position, d], such as behind a pooling"
        )
    inner = value.shape[2:] if value.dim() > 2 else value.shape[1:]
    values = as_rows(value, int(np.prod(inner)), site)
    values = values if values.dim() == 3 else values[:, None]
    if mask is not None and site.positions is None:
        values = values.masked_fill(~mask.bool().cpu()[..., None], float("nan"))
    return values, digest


def middle(model: Model) -> Site:
    """The residual stream in the middle of a model. Raises `InputError` for a module without a map."""
    if not model.anatomies:
        raise InputError(f"{model.name} has no map of parts; name a site, such as site='path:NAME'")
    return Site("resid_post", model.n_layers // 2)


def _parted(
    values: Float[Tensor, "batch position d"], config: Config
) -> tuple[Float[Tensor, "fitted d"], Float[Tensor, "measured d"], str]:
    """Rows to fit and rows to measure on, no prompt in both."""
    count = len(values)
    aside = round(config.held_out * count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(config.seed))
    parts = [part[~part.isnan().any(-1)] for part in (values[order[aside:]], values[order[:aside]])]
    if len(parts[0]) < 2:
        raise InputError(f"{len(parts[0])} rows are too few to fit a basis to; give more prompts")
    if not len(parts[1]):
        return parts[0], parts[0], "Measured on the rows that it was fitted to: none were put aside."
    return parts[0], parts[1], ""


def _shuffled(values: Float[Tensor, "row d"], draw: torch.Generator) -> Float[Tensor, "row d"]:
    return values.gather(0, torch.rand(values.shape, generator=draw).argsort(0))


def _explained(
    basis: Basis, fitted: Float[Tensor, "fitted d"], others: Float[Tensor, "measured d"]
) -> tuple[float, Float[Tensor, "measured unit"]]:
    codes = basis.encode(others)
    left = (others - basis.rebuilt(others, codes)).square().sum()
    total = (others - fitted.mean(0)).square().sum()
    return float(1 - left / total) if total > 0 else float("nan"), codes


def _every(
    basis: Basis, values: Float[Tensor, "batch position d"]
) -> Float[NDArray[np.float32], "batch position unit"]:
    """The codes of all rows, those that were fitted too."""
    there = ~values.isnan().any(-1)
    found = torch.full((*there.shape, basis.n_units), float("nan"))
    found[there] = basis.encode(values[there]).float()
    return found.numpy()
