"""Which units of which dictionaries do the task, and how do they lead to one another? A circuit of features and errors.

1. Values at several sites are written in bases: dictionaries, or by default the neurons. What a basis leaves out is its
   error, a node of its own.
2. Each node's effect on the metric, clean to corrupt, is estimated by integrated gradients at its site.
3. The nodes of largest effect are kept, and the edges among them: what one gives another directly, times what that
   one does.
4. The circuit is held against the model: all other units take their corrupt codes (*faithfulness*), or these alone do
   (*leftover*), as shares of what all units and errors at these sites do together; once with all errors kept clean,
   once with those of the circuit only. Beside it circuits of as many units of each basis, drawn at random.

Marks et al. (2024), Sparse Feature Circuits: Discovering and Editing Interpretable Causal Graphs in Language Models.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from pydantic import Field
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.bases.neurons import Neurons
from microtome.bases.splice import splice
from microtome.bases.stored import stored_basis
from microtome.bases.unit_edits import patch
from microtome.circuits.feature_nodes import Effects, FeatureNodes, Incoming
from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.circuit import Circuit, Edge
from microtome.core.cost import measure
from microtome.core.edits import Edit
from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Arc, Graph, Node, Shape, Table
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model

card = Card(
    name="sparse_feature_circuits",
    title="Sparse feature circuits",
    question="Which features do the task, through which others, and how much of it runs past all features?",
    steps=(
        "Write values at several sites in bases, with their errors as nodes.",
        "Estimate each node's effect by integrated gradients; keep the largest.",
        "Take the edges among them: what one gives another directly, times what that does to the metric.",
        "Score the circuit by exact patching of all other units, beside random ones of its size.",
    ),
    reference="Marks et al. (2024), Sparse Feature Circuits",
    misleads=(
        "Effects are estimates, and sums over positions may cancel. Where errors are needed for faithfulness, what the "
        "circuit does is not what its features do."
    ),
    needs="pairs",
    causal="intervention",
)

LEAST_GAP = 1e-6


class Config(base.Config):
    """Settings of sparse feature circuits."""

    dictionaries: tuple[str, ...] = Field(
        (), description="Dictionaries on disk, PATH or FORMAT:PATH; by default the neurons of each MLP."
    )
    metric: str = Field(metrics.DEFAULT, description="Metric by name.")
    nodes: int = Field(40, ge=1, description="Units and errors to keep.")
    steps: int = Field(5, ge=1, description="Steps of the integrated gradients at each site.")
    random_circuits: int = Field(10, ge=1, description="Random circuits of as many units of each basis.")
    seed: base.Seed = Field(0, description="Of the random circuits.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """Nodes kept: `name`, `kind`, `effect` `[node]`, in units of the metric. `source`, `target` (numbers of nodes; the
    metric is the last), `weight` `[edge]`. `share` `[score]`, `random` `[draw]`: faithfulness of random circuits.
    attrs: `errors`, `units`: sums of effects of all errors and of all units."""

    def circuit(self) -> Circuit:
        """The kept nodes, weighted by effect, and their edges."""
        names = [*self.data["name"].values.tolist(), "logits"]
        weights = dict(zip(names, [*self.data["effect"].values.tolist(), 1.0], strict=True))
        ends = zip(*(self.data[one].values.tolist() for one in ("source", "target", "weight")), strict=True)
        return Circuit.of(weights, [Edge(names[s], names[t], "", w) for s, t, w in ends])

    def shapes(self) -> tuple[Shape, ...]:
        data, told = self.data, self.data.attrs
        names = [*data["name"].values.tolist(), "logits"]
        layers = [*data["depth"].values.tolist(), float(data["depth"].values.max()) + 1]
        kinds = [*data["kind"].values.tolist(), "logit"]
        effects = [*data["effect"].values.tolist(), 0.0]
        drawn = data["random"].values
        caption = (
            f"{len(names) - 1} of {told['nodes']} nodes; {told['n']} pairs. Effects of all units {told['units']:.3g}, "
            f"of all errors {told['errors']:.3g}; all of both together change the metric by {told['gap']:.3g}."
        )
        return (
            Graph(
                "Sparse feature circuit",
                tuple(
                    Node(name, name, float(layer), float(effect), kind)
                    for name, layer, effect, kind in zip(names, layers, effects, kinds, strict=True)
                ),
                tuple(
                    Arc(names[int(source)], names[int(target)], float(weight))
                    for source, target, weight in zip(
                        data["source"].values, data["target"].values, data["weight"].values, strict=True
                    )
                ),
                "effect on the metric",
                caption,
            ),
            Table(
                "Scores of the circuit",
                ("score", "share"),
                (
                    *((str(name), float(data["share"].sel(score=name))) for name in data["score"].values),
                    ("random circuits, errors kept: mean", float(drawn.mean())),
                    ("random circuits, errors kept: best", float(drawn.max())),
                ),
                "Shares of what all units and errors at these sites do. Faithfulness: all else takes corrupt values; "
                f"leftover: only the circuit does. {len(drawn)} random circuits.",
                self.notes,
            ),
            Table(
                "Nodes of largest effect",
                ("node", "kind", "effect"),
                tuple(zip(names[:-1], kinds[:-1], effects[:-1], strict=True)),
                caption,
            ),
        )


def run(model: Model, data: Pairs, config: Config | None = None, bases: Sequence[Basis] = ()) -> Result:
    """Find the circuit of features. bases: beside those of `config.dictionaries`; without any, neurons.

    Raises `InputError` for bases that write one site twice, and for pairs between which nothing differs at these sites.
    """
    config = config or Config()
    chosen = [*bases, *map(stored_basis, config.dictionaries)] or neurons(model)
    chosen = sorted(chosen, key=lambda basis: max(site.depth for site in basis.writes))
    with measure() as recorder:
        reference = None
        if config.metric == metrics.KL.name:
            reference = model.run(data.clean, logits=LogitSelection((-1,)), mask=data.mask).logits
        metric = metrics.build(config.metric, data, reference)
        nodes = FeatureNodes.of(model, chosen, data.clean, data.corrupt, metric, data.mask)
        effects = nodes.effects(config.steps)
        kept = _largest(chosen, effects, config.nodes)
        units = [(index, place) for index, place in kept if isinstance(place, int)]
        slopes = nodes.slopes()
        incoming = nodes.edges(units, slopes)
        shares, drawn, gap = _scores(nodes, kept, config)
        recorder.add(passes=4 + config.steps * len(chosen) + len(units) + 6 + config.random_circuits)
    if not abs(gap) > LEAST_GAP:
        raise InputError(
            f"putting every unit and error at these sites to its corrupt value changes the metric by {gap:.1e}; give "
            "pairs whose sides differ there, or bases at other sites"
        )
    arrays = _arrays(chosen, effects, kept, units, incoming)
    every = sum(len(one.units) + len(one.errors) for one in effects)
    return Result.of(
        card,
        xr.Dataset(
            {
                **arrays,
                "share": ("score", np.array(list(shares.values()))),
                "random": ("draw", np.array(drawn)),
            },
            {"score": list(shares)},
            {
                "n": len(data),
                "nodes": every,
                "gap": gap,
                "units": float(sum(one.units.sum() for one in effects)),
                "errors": float(sum(sum(one.errors.values()) for one in effects)),
            },
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
    )


def neurons(model: Model) -> list[Basis]:
    """The neurons of every MLP, each layer a basis. Raises `InputError` where there are none."""
    sites = [Site("mlp_post", layer) for layer in range(model.n_layers)]
    width = model.sizes["d_mlp"]
    found: list[Basis] = []
    for site in sites:
        if model.has(site):
            found.append(Neurons(site, width, str(site)))
    if not found:
        raise InputError(f"{model.name} shows no neurons; give dictionaries")
    return found


Place = int | Site
"""A unit by number, or an error by the site where it stands."""


def _largest(bases: Sequence[Basis], effects: Sequence[Effects], count: int) -> list[tuple[int, Place]]:
    """The nodes of largest effect, by basis and place; in the order of bases."""
    ranked: list[tuple[float, int, Place]] = []
    for index, one in enumerate(effects):
        top = one.units.abs().topk(min(count, len(one.units)))
        ranked += [
            (size, index, unit) for size, unit in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        ranked += [(abs(effect), index, site) for site, effect in one.errors.items()]
    ranked = [one for one in ranked if one[0] > 0]
    ranked.sort(key=lambda one: (-one[0], one[1], str(one[2])))
    return sorted(
        ((index, place) for _, index, place in ranked[:count]), key=lambda one: (one[0], str(one[1]))
    )


def _name(bases: Sequence[Basis], index: int, place: Place) -> str:
    return bases[index].unit(place) if isinstance(place, int) else f"error:{place}"


def _arrays(
    bases: Sequence[Basis],
    effects: Sequence[Effects],
    kept: Sequence[tuple[int, Place]],
    units: Sequence[tuple[int, int]],
    incoming: Sequence[Incoming],
) -> Mapping[str, tuple[str, np.ndarray]]:
    place_of = {node: number for number, node in enumerate(kept)}
    edges: list[tuple[int, int, float]] = []
    for target, gives in zip([*(place_of[unit] for unit in units), len(kept)], incoming, strict=True):
        for number, (index, place) in enumerate(kept):
            weight = (
                float(gives.units[index][place])
                if isinstance(place, int)
                else gives.errors[index].get(place, 0.0)
            )
            if weight and number != target:
                edges.append((number, target, weight))
    sites = [bases[index].writes[-1] if isinstance(place, int) else place for index, place in kept]
    ranks = {depth: rank for rank, depth in enumerate(sorted({site.depth for site in sites}))}
    told = [
        float(effects[index].units[place]) if isinstance(place, int) else effects[index].errors[place]
        for index, place in kept
    ]
    return {
        "name": ("node", np.array([_name(bases, *node) for node in kept])),
        "kind": ("node", np.array(["unit" if isinstance(place, int) else "error" for _, place in kept])),
        "effect": ("node", np.array(told)),
        "depth": ("node", np.array([float(ranks[site.depth]) for site in sites])),
        "source": ("edge", np.array([edge[0] for edge in edges], dtype=np.int64)),
        "target": ("edge", np.array([edge[1] for edge in edges], dtype=np.int64)),
        "weight": ("edge", np.array([edge[2] for edge in edges])),
    }


def _scores(
    nodes: FeatureNodes, kept: Sequence[tuple[int, Place]], config: Config
) -> tuple[dict[str, float], list[float], float]:
    """Shares of the gap between clean and all-corrupt; faithfulness of random circuits; that gap."""
    inside = set(kept)
    every: set[tuple[int, Place]] = set()
    for index, basis in enumerate(nodes.bases):
        every |= {(index, unit) for unit in range(basis.n_units)} | {(index, site) for site in basis.writes}
    errors = {node for node in every if not isinstance(node[1], int)}
    clean = _metric(nodes, every)
    empty = _metric(nodes, set())
    gap = clean - empty

    def share(some: set[tuple[int, Place]]) -> float:
        return (_metric(nodes, some) - empty) / gap if abs(gap) > LEAST_GAP else float("nan")

    shares = {
        "faithfulness, errors kept": share(inside | errors),
        "faithfulness, errors of the circuit": share(inside),
        "faithfulness, no errors": share(inside - errors),
        "leftover, errors kept": share((every - inside) | errors),
        "errors alone": share(errors),
    }
    generator = random.Random(config.seed)
    counts = [
        sum(1 for at, place in inside if at == index and isinstance(place, int))
        for index in range(len(nodes.bases))
    ]
    drawn = []
    for _ in range(config.random_circuits):
        some = {
            (index, unit)
            for index, (basis, count) in enumerate(zip(nodes.bases, counts, strict=True))
            for unit in generator.sample(range(basis.n_units), count)
        }
        drawn.append(share(some | errors))
    return shares, drawn, gap


@torch.no_grad()
def _metric(nodes: FeatureNodes, kept: set[tuple[int, Place]]) -> float:
    """The mean metric of the clean prompts with every node that is not kept at its corrupt value."""
    edits: list[Edit] = []
    for index, basis in enumerate(nodes.bases):
        clean, corrupt = nodes.clean[index], nodes.corrupt[index]
        outside = [unit for unit in range(basis.n_units) if (index, unit) not in kept]
        errors: list[Tensor] = [
            (clean if (index, site) in kept else corrupt).errors[site] for site in basis.writes
        ]
        if outside or any((index, site) not in kept for site in basis.writes):
            change = [patch(outside, corrupt.codes)] if outside else []
            edits += splice(basis, error=errors, change=change)
    run = nodes.model.run(nodes.tokens, edit=edits, metric=nodes.metric, mask=nodes.mask)
    assert run.metric is not None
    return float(run.metric.double().mean())
