"""How finely is the space of values cut up, and how much is there to describe? Polytopes on paths and around samples.

1. Neurons are on where what drives them is positive. A row's code is that of all its neurons, all positions together.
2. Between pairs of samples, move the values at a site in a straight line through the running network; wherever a code
   changes, halve the stretch until each change is found. Boundaries per unit of length.
3. Around each sample, the same along random directions of a small length: the density of boundaries there.
4. Bits to name the polytope of a row, from the list of those seen and neuron by neuron; the numbers it takes to write
   down one affine map for each polytope, beside one direction for each neuron.
5. The control: 2 between the same samples with their dimensions shuffled among the samples.

Black et al. (2022), Interpreting Neural Networks through the Polytope Lens. Misleads: neurons that are not piecewise
linear have no boundaries, only signs; a neuron that switches twice in the shortest stretch goes unseen.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from microtome.bases.polytopes import bits_to_name
from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.edits import Set
from microtome.core.errors import InputError
from microtome.core.provenance import Provenance, hash_tensors, model_hash
from microtome.core.shapes import Shape, Table
from microtome.core.site import Site, as_site
from microtome.models.model import Model

card = Card(
    name="polytope_lens",
    title="Polytope lens",
    question="How finely is the space of values cut into linear pieces, between samples and around them?",
    steps=(
        "Take the code of a row: which of its neurons are on.",
        "Count where codes change on straight lines between samples, and around samples.",
        "Count bits and numbers that it takes to describe the polytopes seen, beside directions.",
        "Do the same between samples whose dimensions are shuffled.",
    ),
    reference="Black et al. (2022), Interpreting Neural Networks through the Polytope Lens",
    misleads=(
        "Smooth neurons (GELU, SiLU) have no boundaries: there a code only says on which side of zero they are driven. "
        "Of few samples nearly every one has a polytope of its own, and bits are then too few."
    ),
    needs="tokens",
    causal="intervention",
    locality="both",
    comprehensiveness="partial",
)


class Config(base.Config):
    """Settings of the polytope lens."""

    site: str = Field("", description="Where values are moved; empty: where the first block is entered.")
    neurons: tuple[str, ...] = Field(
        (), description="Sites that drive neurons; empty: mlp_pre of every layer."
    )
    pairs: int = Field(32, ge=1, description="Pairs of samples to go between.")
    samples: int = Field(32, ge=1, description="Samples to look around.")
    radius: float = Field(0.1, gt=0, description="How far around, as a share of the mean distance of a pair.")
    points: int = Field(17, ge=2, description="Points on a line to begin with.")
    halvings: int = Field(6, ge=0, description="How often a stretch with a change is halved.")
    seed: base.Seed = Field(0, description="Of pairs and directions.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`between`, `shuffled [pair]`, `around [sample]`: boundaries per unit of length. Attributes: bits and counts of
    `bits_to_name`, `neurons`, and `numbers_polytopes`, `numbers_directions`."""

    def shapes(self) -> tuple[Shape, ...]:
        told = self.data.attrs
        rows = [
            (name, float(self.data[key].mean()), float(self.data[key].std()), int(self.data[key].size))
            for key, name in (
                ("between", "between samples"),
                ("shuffled", "between shuffled samples (control)"),
                ("around", "around samples"),
            )
        ]
        return (
            Table(
                "boundaries per unit of length",
                ("where", "mean", "standard deviation", "lines"),
                tuple(rows),
                caption=f"values at {told['site']}; {told['neurons']} neurons a row; lengths in the values' own units",
                notes=self.notes,
            ),
            Table(
                "what it takes to describe",
                ("what", "polytopes", "neuron by neuron"),
                (
                    ("bits to name a row's polytope", told["bits_polytope"], told["bits_neurons"]),
                    (
                        "numbers of all maps or directions",
                        told["numbers_polytopes"],
                        told["numbers_directions"],
                    ),
                ),
                caption=f"{told['seen']} polytopes seen in {told['rows']} rows",
            ),
        )


@dataclass(frozen=True, eq=False)
class Lens:
    """Where values are moved, and which neurons are watched. inputs: one row, whose values at the site are replaced."""

    model: Model
    site: Site
    neurons: tuple[Site, ...]
    inputs: Any

    def codes(self, values: Float[Tensor, "point *value"]) -> Bool[Tensor, "point neuron"]:
        """Which neurons are on when these are the values at the site."""
        run = self.model.run(
            _repeated(self.inputs, len(values)), read=self.neurons, edit=[Set(self.site, value=values)]
        )
        return torch.cat([(run[site] > 0).flatten(1) for site in self.neurons], -1).cpu()

    def boundaries(
        self,
        start: Float[Tensor, "*value"],
        end: Float[Tensor, "*value"],
        points: int = 17,
        halvings: int = 6,
    ) -> Float[Tensor, " boundary"]:
        """Where on the line, from 0 at its start to 1 at its end, a neuron switches; one entry for each that does."""
        at = torch.linspace(0, 1, points)
        codes = self.codes(torch.stack([torch.lerp(start, end, float(t)) for t in at]))
        for _ in range(halvings):
            changes = (codes[1:] != codes[:-1]).any(-1).nonzero().flatten()
            if not len(changes):
                break
            middle = (at[changes] + at[changes + 1]) / 2
            between = self.codes(torch.stack([torch.lerp(start, end, float(t)) for t in middle]))
            at, order = torch.cat([at, middle]).sort()
            codes = torch.cat([codes, between])[order]
        switched = (codes[1:] != codes[:-1]).sum(-1)
        return ((at[1:] + at[:-1]) / 2).repeat_interleave(switched)

    def density(
        self,
        start: Float[Tensor, "*value"],
        end: Float[Tensor, "*value"],
        points: int = 17,
        halvings: int = 6,
    ) -> float:
        """Boundaries per unit of length between two values."""
        return len(self.boundaries(start, end, points, halvings)) / max(float((end - start).norm()), 1e-30)


def region_map(
    lens: Lens, value: Float[Tensor, "*value"], output: Site | str
) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]:
    """The affine map from the values at the lens's site to those at `output`, in the polytope of a value: matrix and
    offset, both sides flattened. Exact wherever all between is piecewise affine."""
    output = as_site(output)
    leaf = value[None].clone().requires_grad_()
    made = lens.model.run(lens.inputs, read=[output], edit=[Set(lens.site, value=leaf)])[output].flatten()
    rows = [torch.autograd.grad(one, leaf, retain_graph=True)[0].flatten() for one in made]
    matrix = torch.stack(rows)
    return matrix, (made - matrix @ leaf.flatten()).detach()


@torch.no_grad()
def run(model: Model, data: Any, config: Config | None = None) -> Result:
    """data: token ids `[row, column]` of equal length, or the inputs by keyword of a module that takes none.

    Raises `InputError` for fewer than two rows, and where no sites are named and the module has no map.
    """
    config = config or Config()
    if not model.anatomies and not (config.site and config.neurons):
        raise InputError(f"{model.name} has no map of parts; name site and neurons, such as path:NAME")
    if not isinstance(data, (Tensor, dict)):
        raise InputError("give token ids [row, column], all of one length, or inputs by keyword")
    site = as_site(config.site or "resid_pre.0")
    neurons = tuple(map(as_site, config.neurons)) or tuple(
        Site("mlp_pre", layer) for layer in range(model.n_layers) if model.has(Site("mlp_pre", layer))
    )
    with measure() as recorder:
        seen = model.run(data, read=[site, *neurons])
        values = seen[site]
        if len(values) < 2:
            raise InputError("paths go between samples; give at least two rows")
        on = torch.cat([(seen[one] > 0).flatten(1) for one in neurons], -1).cpu()
        lens = Lens(model, site, neurons, _first(data))
        measured = _lines(lens, values, config, recorder)
    told = bits_to_name(on)
    width = int(values[0].numel())
    return Result.of(
        card,
        xr.Dataset(
            {
                "between": ("pair", measured["between"]),
                "shuffled": ("pair", measured["shuffled"]),
                "around": ("sample", measured["around"]),
            },
            attrs={
                "site": str(site),
                "neurons": on.shape[1],
                "bits_polytope": told["polytope"],
                "bits_neurons": told["neurons"],
                "seen": int(told["seen"]),
                "rows": int(told["rows"]),
                "numbers_polytopes": int(told["seen"]) * on.shape[1] * (width + 1),
                "numbers_directions": on.shape[1] * (width + 1),
            },
        ),
        config,
        Provenance(
            model.name,
            model_hash(model.module.state_dict()),
            hash_tensors({"tokens": data} if isinstance(data, Tensor) else data),
        ),
        recorder.cost(),
    )


def _lines(
    lens: Lens, values: Float[Tensor, "row *value"], config: Config, recorder: Recorder
) -> dict[str, np.ndarray]:
    draw = torch.Generator().manual_seed(config.seed)
    rows = len(values)
    first = torch.randint(rows, (config.pairs,), generator=draw)
    second = (first + 1 + torch.randint(rows - 1, (config.pairs,), generator=draw)) % rows
    flat = values.flatten(1)
    mixed = flat.gather(0, torch.rand(flat.shape, generator=draw).argsort(0).to(flat.device)).view_as(values)
    lengths = (values[first] - values[second]).flatten(1).norm(dim=-1)
    radius = config.radius * float(lengths.mean())
    found: dict[str, list[float]] = {"between": [], "shuffled": [], "around": []}
    for one, two in zip(first.tolist(), second.tolist(), strict=True):
        for name, among in (("between", values), ("shuffled", mixed)):
            found[name].append(lens.density(among[one], among[two], config.points, config.halvings))
    for row in torch.randint(rows, (config.samples,), generator=draw).tolist():
        step = torch.randn(values.shape[1:], generator=draw).to(values)
        end = values[row] + radius * step / step.norm()
        found["around"].append(lens.density(values[row], end, config.points, config.halvings))
    recorder.add(passes=(config.halvings + 1) * (2 * config.pairs + config.samples))
    return {name: np.array(densities) for name, densities in found.items()}


def _first(data: Any) -> Any:
    """The first row of inputs."""
    if isinstance(data, Tensor):
        return data[:1]
    return {
        name: value[:1] if isinstance(value, Tensor) and value.dim() else value
        for name, value in data.items()
    }


def _repeated(data: Any, count: int) -> Any:
    if isinstance(data, Tensor):
        return data.expand(count, *data.shape[1:])
    return {
        name: value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) and value.dim() else value
        for name, value in data.items()
    }
