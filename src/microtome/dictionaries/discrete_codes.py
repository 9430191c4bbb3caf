"""Which heads change their words when a prompt is corrupted, if each may only say a few words, not how loudly?

1. Read what each head makes (z) on clean and on corrupt prompts, at the last positions.
2. Give each head a codebook of directions (K-SVD), and write each value as the few of them that make it best: a set of
   numbers, a discrete code.
3. Position by position, measure how far the sets of clean and corrupt prompt lie apart: 1 − shared / all of both, on
   average over pairs. Beside it stands the same between different clean prompts: how much words change anyhow.

No gradient, no intervention: two passes, and codes that can be counted and read as sequences.

Reference: O'Neill and Bui (2024), Sparse autoencoders enable scalable and reliable circuit identification; Tamkin,
Taufeeque and Goodman (2023), Codebook features. Misleads: a head that only carries the changed token onwards changes
its words too, whether or not the answer depends on it; and what is small beside a head's other variation has no word.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, NodeScores
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Grid, Shape
from microtome.core.site import Site
from microtome.data.pairs import Pairs
from microtome.dictionaries.coders import k_svd
from microtome.models.model import Model

card = Card(
    name="discrete_codes",
    title="Discrete codes of heads",
    question="Which heads change their words when a prompt is corrupted, if each may only say a few?",
    steps=(
        "Read what each head makes on clean and corrupt prompts, at the last positions.",
        "Write each value as the few directions of the head's codebook that make it best.",
        "Measure how far the sets of clean and corrupt prompt lie apart; the best position counts.",
    ),
    reference="O'Neill and Bui (2024), Sparse autoencoders enable scalable and reliable circuit identification",
    misleads=(
        "A head that only carries the changed token onwards changes its words too, whether or not the answer depends "
        "on it; what is small beside a head's other variation has no word of its own."
    ),
    needs="pairs",
    causal="observation",
    claims=("nodes",),
)


class Config(base.Config):
    """How many words a head has and may say, and where it is heard."""

    vocabulary: int = Field(
        64, ge=2, description="Directions in a head's codebook, at most one for four values."
    )
    words: int = Field(4, ge=1, description="How many of them a value may say.")
    positions: int = Field(
        1, ge=0, description="How many of the last positions; 0: all of the shortest prompt."
    )
    rounds: int = Field(8, ge=1, description="Rounds in which codebooks are learnt.")
    seed: base.Seed = Field(0, description="Of the codebooks' first words.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`changed layer head place`: distance of clean and corrupt, 0 … 1; `anyhow layer head place`: of neighbours in the
    clean batch; `code layer head prompt place word`: words, -1 for none, clean prompts first. Places: from the end."""

    def answers(self) -> tuple[Answer, ...]:
        """Every head by how far its words change, at its best position."""
        best = self.data["changed"].max("place")
        layers = best["layer"].values.tolist()
        scores = {
            f"z.{layer}.h{head}": float(best.sel(layer=layer)[head])
            for layer in layers
            for head in self._heads
        }
        return (NodeScores(scores),)

    @property
    def _heads(self) -> range:
        return range(self.data.sizes["head"])

    def shapes(self) -> tuple[Shape, ...]:
        best, anyhow = self.data["changed"].max("place"), float(self.data["anyhow"].mean())
        grid = Grid(
            "how far a head's words change",
            best.values,
            "layer",
            tuple(map(str, best["layer"].values.tolist())),
            "head",
            tuple(map(str, self._heads)),
            unit="of 1",
            diverging=False,
            caption=f"{self.data.attrs['n']} pairs, {self.data.sizes['place']} positions, the best counts; between "
            f"clean prompts it is {anyhow:.2f} on average.",
        )
        return (grid,)


@torch.no_grad()
def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Codes of all heads. Raises what `Model.run` raises."""
    config = config or Config()
    lengths = torch.full((len(data),), data.clean.shape[1]) if data.mask is None else data.mask.sum(-1)
    shortest = int(lengths.min())
    places = tuple(range(-min(config.positions or shortest, shortest), 0))
    layers = [layer for layer in range(model.n_layers) if model.has(Site("z", layer))]
    sites = [Site("z", layer, positions=places) for layer in layers]
    with measure() as recorder:
        runs = [model.run(tokens, sites, mask=data.mask) for tokens in (data.clean, data.corrupt)]
        recorder.add(passes=2)
        codes = torch.stack(
            [
                torch.stack(
                    [codes_of(head, config) for head in torch.cat([run[site] for run in runs]).unbind(2)]
                )
                for site in sites
            ]
        )
    clean, corrupt = codes.chunk(2, 2)
    dims = ("layer", "head", "place")
    return Result.of(
        card,
        xr.Dataset(
            {
                "changed": (dims, apart(clean, corrupt).mean(2).numpy()),
                "anyhow": (dims, apart(clean, clean.roll(1, 2)).mean(2).numpy()),
                "code": (("layer", "head", "prompt", "place", "word"), codes.numpy()),
            },
            coords={"layer": layers, "place": np.array(places)},
            attrs={"n": len(data)},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
    )


def codes_of(values: Float[Tensor, "prompt place d"], config: Config) -> Int[Tensor, "prompt place word"]:
    """Numbers of each value's words, rising, -1 for those it needs not. None anywhere where nothing varies."""
    rows = values.float().cpu().flatten(0, 1)
    away = (rows - rows.mean(0)).norm(dim=-1)
    # Beside a mean this much longer, what is left is rounding.
    usable = int((away > 1e-5 * rows.norm(dim=-1).amax()).sum())
    found = torch.full((len(rows), config.words), -1)
    if usable >= 8:
        settings = k_svd.Config(
            width=min(config.vocabulary, usable // 4), k=config.words, rounds=config.rounds, seed=config.seed
        )
        codes = k_svd.fit(rows, Site("z", 0), settings).encode_sparsely(rows)
        place = torch.arange(len(codes.row)) - torch.searchsorted(codes.row, codes.row)
        found[codes.row, place] = codes.unit
    return found.view(*values.shape[:2], -1)


def apart(one: Int[Tensor, "*rest word"], other: Int[Tensor, "*rest word"]) -> Float[Tensor, "*rest"]:
    """How far sets of words lie apart: 1 − shared / all of both (Jaccard); 0 for two that are empty."""
    shared = ((one[..., :, None] == other[..., None, :]) & (one >= 0)[..., :, None]).sum((-2, -1)).double()
    total = (one >= 0).sum(-1) + (other >= 0).sum(-1) - shared
    return torch.where(total > 0, 1 - shared / total.clamp(min=1), 0.0)
