"""Which cells does a map of interventions have? Layer × position × head (or neuron) of one part of the network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from torch import Tensor

from microtome.core.edits import Set
from microtome.core.errors import InputError, SiteError
from microtome.core.site import PARTS, Site
from microtome.models import select
from microtome.models.batch import Batch
from microtome.models.model import Model
from microtome.patching.stretches import WHOLE, Stretch

Part = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "mlp_post"]
STANDARD: Final[tuple[Part, ...]] = ("resid_pre", "attn_out", "mlp_out", "z")


@dataclass(frozen=True)
class Cell:
    """A site and the stretch of each prompt at which it is taken. `site` selects no positions itself."""

    site: Site
    stretch: Stretch

    def patch(self, values: Mapping[Site, Tensor], batch: Batch) -> tuple[Set, ...]:
        """The edits that put another run's values here; `values` holds whole sites, `batch` is its geometry."""
        whole = values[self.site.whole]
        edits = []
        for positions, rows in self.stretch.groups:
            held = list(range(batch.rows)) if rows is None else list(rows)
            site = self.site if positions is None else self.site.at(*positions)
            value = select.read(site, whole[held], batch.select(held))
            edits.append(Set(site, rows=rows, value=value, origin="patch"))
        return tuple(edits)


@dataclass(frozen=True)
class Map:
    """The cells of one part, in the order of its dimensions.

    dims: `layer`, then `position` (a stretch), then `head` or `unit`, as the part and the settings have them.
    coords: for each dimension the numbers along it; of positions the index of the stretch.
    """

    part: Part
    dims: tuple[str, ...]
    coords: tuple[tuple[int, ...], ...]
    cells: tuple[Cell, ...]
    labels: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.coords))

    def name(self, index: int) -> str:
        """A cell as a reader would say it."""
        cell = self.cells[index]
        return f"{cell.site}" if cell.stretch is WHOLE else f"{cell.site} at {cell.stretch.label}"


@dataclass(frozen=True)
class Choice:
    """Which cells are wanted; `None` = all (of `parts`: the usual four).

    Heads and neurons are taken over the whole prompt, unless `by_position`. Neurons need `units`.
    """

    parts: Sequence[Part] | None = None
    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    units: Sequence[int] | None = None
    by_position: bool = False


def make_maps(model: Model, stretches: Sequence[Stretch], choice: Choice) -> tuple[Map, ...]:
    """A map for each part wanted.

    Raises `SiteError` for a part that the family lacks and for layers, heads or units out of range.
    """
    parts = choice.parts
    if parts is None:
        parts = [part for part in STANDARD if model.has(Site(part, 0))]
    return tuple(_make_map(model, part, stretches, choice) for part in parts)


def _make_map(model: Model, part: Part, stretches: Sequence[Stretch], choice: Choice) -> Map:
    layers, heads, units, by_position = choice.layers, choice.heads, choice.units, choice.by_position
    chosen = tuple(range(model.n_layers) if layers is None else layers)
    _in_range("layer", chosen, model.n_layers)
    for layer in chosen:
        need(model, Site(part, layer))
    axes: list[tuple[str, tuple[int, ...]]] = [("layer", chosen)]
    inner = part in ("z", "mlp_post")
    across = tuple(stretches) if by_position or not inner else (WHOLE,)
    if by_position or not inner:
        axes.append(("position", tuple(range(len(across)))))
    index: tuple[int | None, ...] = (None,)
    if part == "z":
        index = tuple(range(model.n_heads)) if heads is None else tuple(heads)
        _in_range("head", index, model.n_heads)
        axes.append(("head", tuple(h for h in index if h is not None)))
    elif part == "mlp_post":
        if not units:
            raise InputError("neurons are patched on request: give the units, for example units=[0, 5]")
        index = tuple(units)
        _in_range("unit", index, model.sizes["d_mlp"])
        axes.append(("unit", tuple(units)))
    cells = tuple(
        Cell(_chosen(Site(part, layer), i), stretch) for layer in chosen for stretch in across for i in index
    )
    dims, coords = zip(*axes, strict=True)
    return Map(part, dims, coords, cells, tuple(stretch.label for stretch in across))


def need(model: Model, site: Site) -> None:
    """Raise `SiteError` if the model lacks the site, naming the parts that it has."""
    if not model.has(site):
        have = sorted({found.part for found in model.sites()}, key=list(PARTS).index)
        raise SiteError(f"{model.name} has no {site}; its parts are {', '.join(have)}")


def _chosen(site: Site, index: int | None) -> Site:
    if index is None:
        return site
    return site.head(index) if site.part == "z" else site.unit(index)


def _in_range(what: str, chosen: Sequence[int | None], count: int) -> None:
    for index in chosen:
        if index is not None and not 0 <= index < count:
            raise SiteError(f"{what} {index} is out of range; there are {count} (0 … {count - 1})")
    if not chosen or len(set(chosen)) != len(chosen):
        raise SiteError(f"expected one or more different {what}s, got {list(chosen)}")
