"""How did this prompt lead to this answer, unit by unit? The attribution graph of one prompt.

1. Every MLP is replaced by the units of a transcoder that are on (or by its neurons that write most), plus its error,
   so that the account stays exact. Attention patterns and the divisors of norms are frozen.
2. The likeliest next tokens are the targets, each logit relative to the mean over the vocabulary. In the frozen network
   the contribution of every unit, error and embedding to a logit, or to what drives a unit, is exact and linear. A
   contribution is an edge.
3. Units become targets themselves in the order of their influence on the logits, a batch at a time, until all are or
   enough are.
4. Nodes and edges that hold most of the influence are kept. Two scores say how much of the account is units: the share
   of influence that starts in the prompt rather than in errors (replacement), and the share of what goes into nodes
   that is no error (completeness).
5. The strongest units are ablated, one at a time, in the model itself, nothing frozen; the change of the first logit
   stands beside what the graph says.

Ameisen et al. (2025), Circuit Tracing; Dunefsky et al. (2024), Transcoders find interpretable LLM feature circuits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.bases.splice import splice
from microtome.bases.stored import stored_basis
from microtome.bases.unit_edits import zero
from microtome.circuits.frozen_stream import FrozenStream
from microtome.circuits.graph_influence import influence, prune, scores
from microtome.circuits.graph_tracing import Traced, likeliest, trace
from microtome.circuits.replaced_mlps import ReplacedMlps, replaced_mlps
from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.circuit import Circuit, Edge
from microtome.core.cost import measure
from microtome.core.edits import Edit, Zero
from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Arc, Graph, Node, Shape, Table
from microtome.core.site import Site
from microtome.data.observed import Observed, as_prompts
from microtome.data.tokens import token_text
from microtome.models.model import Model

card = Card(
    name="attribution_graph",
    title="Attribution graph",
    question="Through which units did this prompt lead to this answer, and how much of the way is accounted for?",
    steps=(
        "Replace every MLP by its active units and its error; freeze attention patterns and norms.",
        "Take the likeliest next tokens; find what each unit, error and embedding contributes, exactly.",
        "Go on from the units of most influence to what drives them.",
        "Keep the nodes and edges that hold most of the influence; score how much of it is units.",
        "Ablate the strongest units in the model itself, and compare.",
    ),
    reference="Ameisen et al. (2025), Circuit Tracing: Revealing Computational Graphs in Language Models",
    misleads=(
        "Attention patterns are given, not explained: why a head looked where it did is not in the graph. What runs "
        "through error nodes is unexplained. It is of one prompt: what led to the answer, not what else would have."
    ),
    needs="tokens",
    causal="intervention",
)


class Config(base.Config):
    """Settings of an attribution graph."""

    dictionaries: tuple[str, ...] = Field(
        (), description="Transcoders on disk, PATH or FORMAT:PATH; an MLP that none writes shows its neurons."
    )
    row: int = Field(0, ge=0, description="Which of the prompts given.")
    logits: int = Field(10, ge=1, description="Likeliest next tokens to follow back, at most.")
    probability: float = Field(0.95, gt=0, le=1, description="Probability that they hold together, at least.")
    neurons: int = Field(
        32, ge=1, description="Neurons of a position that stand for an MLP without a transcoder."
    )
    units: int = Field(7500, ge=1, description="Units to follow back, at most; those of most influence.")
    batch: int = Field(512, ge=1, description="Units followed back at a time, between rankings.")
    node_share: float = Field(0.8, gt=0, le=1, description="Share of the influence that kept nodes hold.")
    edge_share: float = Field(0.98, gt=0, le=1, description="Share of the influence that kept edges hold.")
    checked: int = Field(10, ge=0, description="Units to ablate in the model itself.")


DRAWN = 32  # nodes in the picture; all that are kept are in the data


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """Nodes kept: `name`, `kind`, `layer`, `position`, `value`, `influence` `[node]`. Edges kept: `source`, `target`
    (nodes by number) and `weight` (logits, or what drives a unit) `[edge]`. `predicted`, `measured` `[ablation]`: fall
    of the first logit. attrs: `replacement`, `completeness` of all, `…_kept` of what is kept; how many there were."""

    def circuit(self) -> Circuit:
        """The kept nodes, weighted by influence, and edges."""
        names = self.data["name"].values.tolist()
        weights = dict(zip(names, self.data["influence"].values.tolist(), strict=True))
        ends = zip(*(self.data[one].values.tolist() for one in ("source", "target", "weight")), strict=True)
        return Circuit.of(weights, [Edge(names[s], names[t], "", w) for s, t, w in ends])

    def shapes(self) -> tuple[Shape, ...]:
        data, told = self.data, self.data.attrs
        columns = ("name", "label", "kind", "layer", "value", "influence", "position")
        rows = list(zip(*(data[one].values.tolist() for one in columns), strict=True))
        names = data["name"].values.tolist()
        drawn = sorted(sorted(rows, key=lambda row: -row[5])[:DRAWN], key=lambda row: (row[3], row[6]))
        shown = {row[0] for row in drawn}
        nodes = tuple(
            Node(name, _short(name, label, kind), float(layer), share, kind, f"{name}, value {value:.3g}")
            for name, label, kind, layer, value, share, _ in drawn
        )
        ends = zip(*(data[one].values for one in ("source", "target", "weight")), strict=True)
        arcs = tuple(
            Arc(names[source], names[target], float(weight))
            for source, target, weight in ends
            if {names[source], names[target]} <= shown
        )
        counted = (
            f"{len(rows)} of {told['nodes']} nodes and {data.sizes['edge']} of {told['edges']} edges are kept. "
            f"Replacement {told['replacement']:.2f}, completeness {told['completeness']:.2f}; of what is kept "
            f"{told['replacement_kept']:.2f}, {told['completeness_kept']:.2f}."
        )
        strongest = sorted(rows, key=lambda row: -row[5])
        ablations = tuple(
            (str(name), float(predicted), float(measured))
            for name, predicted, measured in zip(
                data["ablated"].values, data["predicted"].values, data["measured"].values, strict=True
            )
        )
        return (
            Graph(
                "Attribution graph",
                nodes,
                arcs,
                "contribution",
                f"Drawn are the {len(nodes)} nodes of most influence, places from left to right. {counted}",
            ),
            Table(
                "Nodes of most influence",
                ("node", "reads", "kind", "influence", "value"),
                tuple(
                    (name, label, kind, share, value)
                    for name, label, kind, _, value, share, _ in strongest[:20]
                ),
                f"Share of all paths to the answer. {counted}",
                self.notes,
            ),
            Table(
                "Units ablated in the model itself",
                ("unit", "fall of the logit by the graph", "measured"),
                ablations,
                f"Logit of {told['answer']!r} relative to the mean over the vocabulary; in the graph along all paths, "
                "patterns and norms frozen; measured with nothing frozen.",
            ),
        )


def run(model: Model, data: Observed, config: Config | None = None, bases: Sequence[Basis] = ()) -> Result:
    """Trace one prompt. data: prompts, texts, or rows of ids; `config.row` says which.

    bases: transcoders, from `mlp_in` to `mlp_out`, of some or all layers, beside those of `config.dictionaries`; an MLP
    that none writes is taken apart into neurons. Raises `InputError` for a row that is not there and for bases that do
    not fit, `FamilyError` where the stream is not additive or the contributions do not sum to what they should.
    """
    config = config or Config()
    prompts = as_prompts(data, model.tokenizer)
    if config.row >= len(prompts):
        raise InputError(f"there are {len(prompts)} prompts; row {config.row} is not among them")
    ids = prompts.tokens[config.row]
    if prompts.mask is not None:
        ids = ids[prompts.mask[config.row].bool()]
    with measure() as recorder, torch.no_grad():
        stream = FrozenStream(model, ids[None])
        chosen = [*bases, *map(stored_basis, config.dictionaries)]
        parts = replaced_mlps(stream, chosen, config.neurons)
        answers, probability = likeliest(stream, config.probability, config.logits)
        traced = trace(parts, answers, probability, config.units, config.batch)
        found = traced.found
        replacement, completeness = scores(found)
        kept = prune(found, config.node_share, config.edge_share)
        total = influence(found, found.shares)
        ablated = _strongest(parts, traced, kept.nodes, config.checked)
        measured = _ablate(parts, ids, answers[0], ablated)
        recorder.add(passes=1 + len(ablated))
    arrays = _arrays(parts, traced, kept.nodes, kept.edges, total, answers, probability, model, ids)
    predicted = [traced.along_all_paths()[column] for column in ablated]
    names = _names(parts)
    return Result.of(
        card,
        xr.Dataset(
            {
                **arrays,
                "ablated": ("ablation", np.array([names[column] for column in ablated], dtype=str)),
                "predicted": ("ablation", np.array([float(one) for one in predicted])),
                "measured": ("ablation", np.array(measured)),
            },
            attrs={
                "replacement": replacement,
                "completeness": completeness,
                "replacement_kept": kept.replacement,
                "completeness_kept": kept.completeness,
                "nodes": found.rows.shape[1] + len(answers),
                "edges": int((found.rows != 0).sum()),
                "units": parts.n_units,
                "followed": int((found.target >= 0).sum()),
                "answer": _text(model, int(answers[0])),
                "error": traced.error,
            },
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), prompts.hash),
        recorder.cost(),
        _notes(parts, traced, config.units),
    )


def _strongest(parts: ReplacedMlps, traced: Traced, kept: Tensor, count: int) -> list[int]:
    """The kept units to which the first logit owes most, one way or the other."""
    owed = traced.along_all_paths()[: parts.n_units].abs() * kept[: parts.n_units]
    top = owed.topk(min(count, parts.n_units))
    return top.indices[top.values > 0].tolist()


def _ablate(
    parts: ReplacedMlps, ids: Int[Tensor, " position"], answer: Tensor, columns: Sequence[int]
) -> list[float]:
    """How far the logit of the answer, relative to the mean, falls without each unit in the model itself."""
    if not columns:
        return []
    edits: list[Edit] = []
    for row, column in enumerate(columns):
        group = next(group for group in parts.groups if column in group.columns)
        index = column - group.column
        position = int(group.position[index])
        if group.basis is None:
            edits.append(Zero(Site.parse(group.name(index)), (row,)))
        else:
            change = zero(int(group.unit[index]))
            edits += splice(group.basis, change=change, rows=[row], positions=[position])
    batch = ids.expand(len(columns) + 1, -1)
    logits = parts.stream.model.run(
        batch, edit=edits, logits=LogitSelection((-1,)), mask=torch.ones_like(batch)
    ).logits
    assert logits is not None
    centred = logits[:, 0].float() - logits[:, 0].float().mean(-1, keepdim=True)
    said = centred[:, int(answer)]
    return (said[-1] - said[:-1]).tolist()


def _names(parts: ReplacedMlps) -> list[str]:
    positions = range(parts.stream.n_positions)
    names = [group.name(index) for group in parts.groups for index in range(len(group.unit))]
    names += [f"error:mlp_out.{layer}@{p}" for layer in range(len(parts.errors)) for p in positions]
    return names + [f"embed@{p}" for p in positions]


def _arrays(
    parts: ReplacedMlps,
    traced: Traced,
    nodes: Tensor,
    edges: Tensor,
    total: Float[Tensor, " node"],
    answers: Int[Tensor, " logit"],
    probability: Float[Tensor, " logit"],
    model: Model,
    ids: Int[Tensor, " position"],
) -> dict[str, Any]:
    """The kept nodes and edges as columns."""
    n, depth = parts.stream.n_positions, model.n_layers
    layers = [float(group.layers[0]) for group in parts.groups for _ in group.columns]
    if any(len(group.layers) > 1 for group in parts.groups):
        layers = _read_layers(parts)
    layers += (
        [layer + 0.25 for layer in range(depth) for _ in range(n)]
        + [-1.0] * n
        + [float(depth)] * len(answers)
    )
    kinds = ["unit"] * parts.n_units + ["error"] * (depth * n) + ["embed"] * n + ["logit"] * len(answers)
    places = [int(p) for group in parts.groups for p in group.position] + list(range(n)) * (depth + 1)
    values = torch.cat([*(group.value for group in parts.groups), parts.errors.norm(dim=-1).flatten()])
    values = torch.cat([values, parts.stream.embedding.norm(dim=-1), traced.driven[: len(answers)]])
    names = _names(parts) + [f"logits.u{int(token)}@{n - 1}" for token in answers]
    texts = [_text(model, int(token)) for token in ids]
    labels = [f"{texts[p]} ({p})" for p in places] + [f"says {_text(model, int(token))}" for token in answers]
    shares = torch.cat([total, probability])
    kept = torch.cat([nodes, torch.ones(len(answers), dtype=torch.bool)]).nonzero()[:, 0].tolist()
    place = {column: index for index, column in enumerate(kept)}
    rows, columns = edges.nonzero(as_tuple=True)
    first = len(nodes)
    targets = [
        first + row if row < traced.n_logits else int(traced.found.target[row]) for row in rows.tolist()
    ]
    where = [*places, *([n - 1] * len(answers))]
    return {
        "name": ("node", np.array([names[c] for c in kept])),
        "label": ("node", np.array([labels[c] for c in kept])),
        "kind": ("node", np.array([kinds[c] for c in kept])),
        "layer": ("node", np.array([layers[c] for c in kept])),
        "position": ("node", np.array([where[c] for c in kept])),
        "value": ("node", values[kept].numpy()),
        "influence": ("node", shares[kept].numpy()),
        "source": ("edge", np.array([place[c] for c in columns.tolist()], dtype=np.int64)),
        "target": ("edge", np.array([place[c] for c in targets], dtype=np.int64)),
        "weight": ("edge", traced.found.rows[rows, columns].numpy()),
    }


def _read_layers(parts: ReplacedMlps) -> list[float]:
    """The first layer that each unit reads."""
    found = torch.full((parts.n_units,), math.inf)
    for some in torch.arange(parts.n_units).split(4096):
        directions, _, _ = parts.driven(some)
        for layer, (which, _) in directions.reads.items():
            found[some[which]] = found[some[which]].clamp_max(layer)
    return torch.where(found.isfinite(), found, 0.0).tolist()


def _short(name: str, label: str, kind: str) -> str:
    """What stands in a box of the picture: a unit's number or `error`, and the token."""
    if kind == "unit":
        return f"{name.rpartition('.')[2].partition('@')[0]} ·{label}"
    return f"error ·{label}" if kind == "error" else label


def _text(model: Model, token: int) -> str:
    known = model.tokenizer is not None and token < len(model.tokenizer)
    return token_text(model.tokenizer, token) if known else f" {token}"


def _notes(parts: ReplacedMlps, traced: Traced, limit: int) -> tuple[str, ...]:
    by_neurons = sum(1 for group in parts.groups if group.basis is None)
    told = [f"Contributions sum to what drives each target to {traced.error:.1e} relative."]
    if by_neurons:
        told.append(
            f"{by_neurons} of {parts.stream.model.n_layers} MLPs are taken apart into their own neurons."
        )
    followed = int((traced.found.target >= 0).sum())
    if followed == limit < parts.n_units:
        told.append(
            f"{followed} of {parts.n_units} active units were followed back; influence along paths through the others "
            "is not counted."
        )
    return tuple(told)
