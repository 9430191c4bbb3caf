"""Which queries, keys, values, heads and MLPs matter, by gradients that saturated attention does not fool?

1. Run both sides of each pair, and one pass back on the base. To first order, what putting the other side's value at
   one part and position does is (other - base) · gradient: right for values, heads and MLPs while the rest is near
   linear, and wrong for queries and keys where the softmax is saturated.
2. Queries: the softmax of the row is taken anew with the other query; the effect is (A' - A) · ∂metric/∂A.
3. Keys: a key changes one score in each row. With A the pattern and g = ∂metric/∂A, its row then gives it A', and
   takes the difference from the others in proportion: (A'_t - A_t) · (g_t - mean of g over the others by their A), for
   all keys at once, which is what taking each softmax anew gives. Two passes compute the scores of all layers, with
   every pattern put back.
4. Dropped gradients: effects through later parts may cancel, so that nothing is left of a part that matters. For each
   layer one more pass back leaves out the gradient through what that layer adds; the sizes are averaged over layers,
   divided by one less, since a part gets nothing where its own layer is left out. The larger of this and the plain size
   is taken: in a network of few layers leaving one out may leave nothing.
5. A random sample of cells (part and position) is really patched, one at a time, and the error told.

Reference: Kramár, Lieberum, Shah, Nanda (2024), AtP*: An efficient and scalable method for localizing LLM behaviour to
components. Misleads where effects bend elsewhere than in a softmax, and a size averaged over dropped layers has no sign
and need not be an effect: read the plain estimate beside it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, NodeScores
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.edits import Edit, Function, Set
from microtome.core.errors import InputError
from microtome.core.shapes import Grid, Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models import select
from microtome.models.model import Model
from microtome.models.sweep import Variant, sweep
from microtome.patching.contrast import Contrast, Direction

HEADED: Final = ("q", "k", "v", "z")
LEAST_GAP: Final = 1e-6
_ROUNDING: Final = 1e-5  # of a row of a pattern: what it lacks to one beyond this went to a sink

card = Card(
    name="attribution_patching_star",
    title="AtP*",
    question="Which queries, keys, values, heads and MLPs matter, by gradients that saturated attention does not fool?",
    steps=(
        "Run both sides; take the gradient of the metric at every part and position of the base.",
        "For queries and keys take the softmax anew instead of its slope.",
        "Average sizes over passes back that leave out one layer each, so that cancelling effects show.",
        "Really patch a random sample of parts and positions and tell the error.",
    ),
    reference="Kramár, Lieberum, Shah and Nanda 2024, AtP*",
    misleads="First order everywhere but in the softmax; an average over dropped layers has no sign.",
    needs="pairs",
    causal="intervention",
    claims=("nodes",),
)


class Config(base.Config):
    """Which way values go, and which corrections are made."""

    metric: str = Field(metrics.DEFAULT, description="Metric by name; it must have a gradient.")
    direction: Direction = Field("noise", description="noise: corrupt into clean; denoise: the reverse.")
    queries: bool = Field(True, description="Take the softmax anew for queries.")
    keys: bool = Field(True, description="Take the softmax anew for keys.")
    drop: bool = Field(True, description="Average over passes back that leave out a layer each.")
    checked: int = Field(32, ge=0, description="How many cells are really patched; 0: none.")
    seed: base.Seed = Field(0, description="Seed of the sample of cells.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`size [node, column]`: mean size of the effect of patching a part at one column, or its average over dropped
    layers where that is larger. `effect [node, column]`: the mean signed estimate, nothing dropped.

    Nodes are `q.L.hH`, `k.L.hH`, `v.L.hH` (keys and values by the heads that they have), `z.L.hH` and `mlp_out.L`;
    columns those of the batch, 0 where a prompt is padded. `sample_estimated`, `sample_exact [sample]`: mean signed
    effects of the cells really patched, named by `sample_cell`. Attribute: `n`.
    """

    def answers(self) -> tuple[Answer, ...]:
        """Heads by the largest of their query, key, value and result; MLPs by their own. Keys and values that several
        heads share count for all of them."""
        total = {
            str(name): float(size)
            for name, size in zip(self.data["node"].values, self.data["size"].values.sum(axis=1), strict=True)
        }
        heads = sum(name.startswith("z.0.") for name in total)
        each = heads // max(1, sum(name.startswith("k.0.") for name in total))
        found: dict[str, float] = {}
        for name, size in total.items():
            site = Site.parse(name)
            if site.part == "mlp_out":
                found[name] = size
                continue
            assert site.heads is not None
            (head,) = site.heads
            own = range(head * each, (head + 1) * each) if site.part in ("k", "v") else (head,)
            for one in own:
                key = str(Site("z", site.layer, heads=(one,)))
                found[key] = max(found.get(key, 0.0), size)
        return (NodeScores(found),)

    def shapes(self) -> tuple[Shape, ...]:
        sites = [Site.parse(name) for name in self.data["node"].values.tolist()]
        total = self.data["size"].values.sum(axis=1)
        layers = sorted({site.layer for site in sites if site.layer is not None})
        heads = sorted({site.heads[0] for site in sites if site.heads})
        values = np.full((len(HEADED), len(layers), len(heads)), np.nan)
        for site, size in zip(sites, total, strict=True):
            if site.heads and site.layer is not None:
                values[HEADED.index(site.part), site.layer, site.heads[0]] = size
        grid = Grid(
            "AtP* by head",
            values,
            "layer",
            tuple(map(str, layers)),
            "head",
            tuple(map(str, heads)),
            "size of the effect",
            HEADED,
            diverging=False,
            caption=f"sum over columns of mean sizes over {self.data.attrs['n']} pairs; {self.config['metric']}, "
            f"{self.config['direction']}",
        )
        return (grid, self.errors())

    def errors(self) -> Table:
        """How far the signed estimates of the sampled cells are from patching them."""
        guess, exact = self.data["sample_estimated"].values, self.data["sample_exact"].values
        error = np.abs(guess - exact)
        varied = len(exact) > 2 and guess.std() > 0 and exact.std() > 0
        nan = float("nan")
        return Table(
            "error against exact patching",
            ("cells", "correlation", "mean error", "largest error", "largest exact effect"),
            (
                (
                    f"{len(exact)} of {self.data['size'].size}",
                    float(np.corrcoef(guess, exact)[0, 1]) if varied else nan,
                    float(error.mean()) if len(exact) else nan,
                    float(error.max()) if len(exact) else nan,
                    float(np.abs(exact).max()) if len(exact) else nan,
                ),
            ),
            caption="random parts at random positions, each patched alone",
        )


def run(model: Model, data: Pairs, config: Config | None = None) -> Result:
    """Estimate every cell, patch some. Raises `InputError` where both sides do the same or the metric has no gradient,
    `SiteError` for a model without heads."""
    config = config or Config()
    if config.metric == metrics.Rank.name:
        raise InputError("rank is a count and has no gradient; use logit-difference or log-probability")
    with measure() as recorder:
        star = _Star(model, data, config, recorder)
        effect = star.effects()
        sizes = effect.abs()
        if config.drop and model.n_layers > 1:
            dropped = (star.effects(layer).abs() for layer in range(model.n_layers))
            sizes = torch.maximum(sizes, sum(dropped, torch.zeros_like(effect)) / (model.n_layers - 1))
        guess, exact, names = star.sample(effect)
    arrays = xr.Dataset(
        {
            "size": (("node", "column"), sizes.double().mean(dim=1).cpu().numpy()),
            "effect": (("node", "column"), effect.double().mean(dim=1).cpu().numpy()),
            "sample_estimated": ("sample", guess),
            "sample_exact": ("sample", exact),
        },
        {
            "node": [str(site) for site in star.nodes],
            "column": np.arange(data.clean.shape[1]),
            "sample_cell": ("sample", np.array(names, dtype=str)),
        },
        {"n": len(data)},
    )
    return Result.of(card, arrays, config, star.contrast.provenance, recorder.cost())


class _Star:
    """Both sides, with what queries and keys of the other side make of the base's scores."""

    def __init__(self, model: Model, data: Pairs, config: Config, recorder: Recorder) -> None:
        self._model, self._config, self._recorder = model, config, recorder
        layers = range(model.n_layers)
        self._wholes = [Site(part, layer) for layer in layers for part in HEADED]
        self._wholes += [site for layer in layers if model.has(site := Site("mlp_out", layer))]
        self._patterns = [Site("pattern", layer) for layer in layers]
        self._scores = [Site("scores", layer) for layer in layers]
        reads = [*self._wholes, *self._patterns, *self._scores]
        self.contrast = Contrast.of(model, data, config.metric, reads, config.seed)
        gap = self.contrast.gap(config.direction)
        if not abs(gap) > LEAST_GAP:
            raise InputError(
                f"putting one side into the other changes the metric by {gap:.1e}: {model.name} does the same on both, "
                "so there is nothing to attribute; look at the task, the metric or the model"
            )
        self._base = self.contrast.base(config.direction)
        self._other = self.contrast.other(config.direction).values
        recorder.add(passes=2)
        self._moved = {part: self._rescored(part) for part, fix in self._fixes.items() if fix}
        self.nodes = [
            whole.head(head) if whole.part != "mlp_out" else whole
            for whole in self._wholes
            for head in (range(self._base.values[whole].shape[2]) if whole.part != "mlp_out" else (0,))
        ]

    @property
    def _fixes(self) -> dict[str, bool]:
        return {"q": self._config.queries, "k": self._config.keys}

    def _rescored(self, part: str) -> Mapping[Site, Tensor]:
        """The scores of every layer with the other side's queries, or keys, while patterns stay as they were."""
        edits: list[Edit] = []
        for layer, pattern in enumerate(self._patterns):
            edits.append(Set(Site(part, layer), value=self._other[Site(part, layer)], origin="patch"))
            edits.append(Set(pattern, value=self._base.values[pattern]))
        self._recorder.add(passes=1)
        return self._model.run(self._base.tokens, self._scores, edits, mask=self.contrast.pairs.mask).values

    def effects(self, dropped: int | None = None) -> Float[Tensor, "node row column"]:
        """The estimate of every cell in every row; with nothing coming back through what one layer adds."""
        added = [] if dropped is None else [Site("attn_out", dropped), Site("mlp_out", dropped)]
        edits = [Function(site, function=torch.detach) for site in added if self._model.has(site)]
        fixed = any(self._fixes.values())
        reads = [site.grad for site in (*self._wholes, *(self._patterns if fixed else ()))]
        metric, mask = self.contrast.metric, self.contrast.pairs.mask
        run = self._model.run(self._base.tokens, reads, edits, metric=metric, mask=mask)
        self._recorder.add(passes=2)
        real = self.contrast.batch.real(self._model.device)
        found = torch.cat([each for whole in self._wholes for each in self._of(whole, run.values)])
        kept = torch.tensor([site.layer != dropped for site in self.nodes], device=found.device)
        return found * real * kept[:, None, None]

    def _of(
        self, whole: Site, gradients: Mapping[Site, Tensor]
    ) -> Iterator[Float[Tensor, "head row column"]]:
        layer = whole.layer
        assert layer is not None
        here = self._base.values[whole]
        if self._fixes.get(whole.part):
            pattern, scores = self._patterns[layer], self._scores[layer]
            change = by_query if whole.part == "q" else by_key
            moved = change(
                self._base.values[pattern].float(),
                self._base.values[scores].float(),
                self._moved[whole.part][scores].float(),
                gradients[pattern.grad].float(),
            )
            groups = moved.shape[1] // here.shape[2]
            yield moved.unflatten(1, (here.shape[2], groups)).sum(dim=2).transpose(0, 1)
            return
        product = ((self._other[whole] - here).float() * gradients[whole.grad].float()).sum(dim=-1)
        yield product[None] if whole.part == "mlp_out" else product.permute(2, 0, 1)

    def sample(self, effect: Float[Tensor, "node row column"]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Estimates and exact effects of random cells, and their names."""
        shortest = min(self.contrast.pairs.lengths)
        drawn = torch.Generator().manual_seed(self._config.seed)
        order = torch.randperm(len(self.nodes) * shortest, generator=drawn)[: self._config.checked].tolist()
        cells = [(self.nodes[number // shortest], number % shortest, number // shortest) for number in order]
        if not cells:
            return np.zeros(0), np.zeros(0), []
        batch, columns = self.contrast.batch, torch.arange(effect.shape[2])
        sites = [site.at(position) for site, position, _ in cells]
        variants = [
            Variant((Set(site, value=select.read(site, self._other[site.whole], batch), origin="patch"),))
            for site in sites
        ]
        swept = sweep(
            self._model, self._base.tokens, variants, self.contrast.metric, mask=self.contrast.pairs.mask
        )
        self._recorder.include(swept.cost)
        first = batch.real(torch.device("cpu")).int().argmax(dim=1)
        guess = [
            (effect[node].cpu() * (columns == (first + position)[:, None])).sum(dim=1).double().mean()
            for _, position, node in cells
        ]
        exact = (swept.metric - swept.base).double().mean(dim=1).cpu().numpy()
        return np.array(guess), exact, [str(site) for site in sites]


Rows = Float[Tensor, "row head query key"]


def by_query(pattern: Rows, scores: Rows, moved: Rows, gradient: Rows) -> Float[Tensor, "row head query"]:
    """What other queries do through their rows of the pattern. moved: the scores that they make."""
    shifted = moved - _normaliser(pattern, scores)
    whole = torch.cat([shifted, _sink(pattern)], dim=-1)
    nowhere = torch.isneginf(whole).all(dim=-1, keepdim=True)
    total = torch.logsumexp(whole.masked_fill(nowhere, 0.0), dim=-1, keepdim=True)
    anew = (shifted - total).exp().masked_fill(nowhere, 0.0)
    return ((anew - pattern) * gradient).sum(dim=-1)


def by_key(pattern: Rows, scores: Rows, moved: Rows, gradient: Rows) -> Float[Tensor, "row head key"]:
    """What each other key alone does through its column. moved: the scores, each key's column as that key makes it."""
    normaliser = _normaliser(pattern, scores)
    shifted, known = moved - normaliser, scores - normaliser
    rest, worth = (pattern * gradient).sum(dim=-1, keepdim=True) - pattern * gradient, 1 - pattern
    others, mean = worth.log(), rest / torch.where(worth > 0, worth, 1.0)
    # Of the key that holds most of a row the rest is lost in rounding: it is added up without that key.
    top = pattern.argmax(dim=-1, keepdim=True)
    left = torch.cat([known.scatter(-1, top, float("-inf")), _sink(pattern)], dim=-1)
    alone = torch.isneginf(left).all(dim=-1, keepdim=True)
    total = torch.logsumexp(left.masked_fill(alone, 0.0), dim=-1, keepdim=True)
    shares = (left[..., :-1] - total).exp().masked_fill(alone, 0.0)
    others = others.scatter(-1, top, total.masked_fill(alone, float("-inf")))
    mean = mean.scatter(-1, top, (shares * gradient).sum(dim=-1, keepdim=True))
    anew = torch.sigmoid(shifted - others).masked_fill(torch.isneginf(scores), 0.0)
    return ((anew - pattern) * (gradient - mean)).sum(dim=-2)


def _sink(pattern: Rows) -> Float[Tensor, "row head query 1"]:
    """The log of what a row of a pattern lacks to one."""
    lacking = 1 - pattern.sum(dim=-1, keepdim=True)
    return torch.where(lacking > _ROUNDING, lacking, 0.0).log()


def _normaliser(pattern: Rows, scores: Rows) -> Float[Tensor, "row head query 1"]:
    """log Z of each row, a sink's part included; 0 where a row looks nowhere."""
    total = pattern.sum(dim=-1, keepdim=True)
    nowhere = torch.isneginf(scores).all(dim=-1, keepdim=True)
    kept = torch.logsumexp(scores.masked_fill(nowhere, 0.0), dim=-1, keepdim=True)
    return torch.where(nowhere, 0.0, kept - torch.where(nowhere, 1.0, total).log())
