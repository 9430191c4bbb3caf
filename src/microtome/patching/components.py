"""Which component of a network comes before which, and how is one held still?

A component reads the stream and adds to it. Held still (frozen) means that what it adds, `attn_out` or `mlp_out`, is
set to its value in the base run, whatever it reads. Norms on the way belong to their readers and are computed anew.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from microtome.core.edits import Set
from microtome.core.errors import FamilyError, SiteError
from microtome.core.shapes import Grid
from microtome.core.site import Site
from microtome.models import select
from microtome.models.batch import Batch
from microtome.models.model import Model
from microtome.patching.cells import need

Order = tuple[int, int]
END: Final[Order] = (1 << 30, 0)
_ATTENTION: Final = ("q", "k", "v", "z", "attn_out")
_MLP: Final = ("mlp_in", "mlp_out")


def order(model: Model, site: Site) -> Order:
    """When a component reads and writes; of two with the same order neither sees the other."""
    assert site.layer is not None
    parallel = model.anatomy.family.residual == "parallel"
    return (site.layer, 0 if parallel or site.part in _ATTENTION else 1)


def between(model: Model, after: Order, before: Order) -> tuple[Site, ...]:
    """What attention layers and MLPs write, of those that come after the one and before the other.

    Raises `FamilyError` where something else adds to the stream (cross-attention).
    """
    if model.anatomy.family.cross:
        raise FamilyError(
            f"{model.name} adds cross-attention to its stream, which cannot be held still; use a decoder-only model"
        )
    sites = [Site(part, layer) for layer in range(model.n_layers) for part in ("attn_out", "mlp_out")]
    return tuple(site for site in sites if model.has(site) and after < order(model, site) < before)


def freeze(
    sites: Sequence[Site],
    values: Mapping[Site, Tensor],
    batch: Batch,
    positions: tuple[int, ...] | None = None,
) -> tuple[Set, ...]:
    """Edits that hold what these sites write at the values of a run, at all positions or at some."""
    if positions is None:
        return tuple(Set(site, value=values[site], origin="patch") for site in sites)
    chosen = [site.at(*positions) for site in sites]
    return tuple(Set(s, value=select.read(s, values[s.whole], batch), origin="patch") for s in chosen)


def check_parts(model: Model, sites: Sequence[Site]) -> None:
    """Raise `SiteError` for a site that the model lacks or a head out of range, before anything runs."""
    for site in sites:
        need(model, site)
        count = model.sizes["n_kv_heads" if site.part in ("k", "v") else "n_heads"]
        if any(not 0 <= head < count for head in site.heads or ()):
            raise SiteError(f"{site} is out of range; {site.part} has {count} heads (0 … {count - 1})")


def grid(
    title: str,
    names: Sequence[str],
    values: Float[np.ndarray, "panel component"],
    panels: Sequence[str],
    unit: str,
    caption: str,
    *,
    diverging: bool = True,
) -> Grid:
    """Layers as rows, heads and the MLP as columns, one panel for each row of `values`."""
    sites = [Site.parse(name) for name in names]
    layers = sorted({site.layer for site in sites if site.layer is not None})
    heads = sorted({site.heads[0] for site in sites if site.heads})
    columns = [*(f"head {head}" for head in heads), "MLP"]
    drawn = np.full((len(panels), len(layers), len(columns)), np.nan)
    for index, site in enumerate(sites):
        assert site.layer is not None
        column = heads.index(site.heads[0]) if site.heads else len(heads)
        drawn[:, layers.index(site.layer), column] = values[:, index]
    return Grid(
        title,
        drawn,
        "layer",
        tuple(map(str, layers)),
        "component",
        tuple(columns),
        unit=unit,
        panels=tuple(panels),
        diverging=diverging,
        caption=caption,
    )


def off_distribution(
    title: str,
    names: Sequence[str],
    percentile: xr.DataArray,
    panels: Sequence[str],
    place: str = "component",
) -> Grid:
    """How far from natural the values are that an intervention at a place leads to.

    percentile `[where, panel, component]`.
    """
    return grid(
        f"{title}, off-distribution",
        names,
        percentile.max("where").values,
        panels,
        "percentile",
        f"the larger of two percentiles among held-out natural values: at the {place}, and of the final stream",
        diverging=False,
    )
