"""Which edges does a network have? Everything that writes to the residual stream, and everything that reads from it.

Sources, in the order of a pass: the embedding (`embed`; with its positions, or beside them as `pos_embed`), each head
(`z.1.h0`), each MLP (`mlp_out.1`). Receivers: the query, key and value input of each head, the input of each MLP, and
the logits. There is an edge from every source to every receiver that comes after it; in a parallel block the MLP does
not come after the heads beside it. A key or value head that serves several query heads is one receiver, named for all
of them (`z.1.h0,1` through `k`). GPT-2 small has 157 sources, 445 receivers and 32 491 edges.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.core.circuit import Circuit, Edge
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.models.model import Model
from microtome.models.stream_parts import require_additive

Kind = Literal["q", "k", "v", "mlp", "logits"]


@dataclass(frozen=True)
class Reader:
    """Receivers that read the stream at one place, through the same norm: the rows `rows` of a matrix of edges.

    visible: how many of the first sources come before it.
    """

    kind: Kind
    layer: int | None
    rows: slice
    visible: int


@dataclass(frozen=True, eq=False)
class EdgeGraph:
    """All edges of a network. Make one with `EdgeGraph.of`.

    sources: names of what writes, in the order of a pass. receivers: name and kind of what reads, likewise.
    allowed: which edges there are. Matrices of edges are `[receiver, source]` in this order. readers: the receivers in
    groups; empty for a graph that is only looked at.
    """

    sources: tuple[str, ...]
    receivers: tuple[tuple[str, Kind], ...]
    allowed: Bool[Tensor, "receiver source"]
    readers: tuple[Reader, ...] = ()

    @staticmethod
    def of(model: Model, split_positions: bool = False) -> "EdgeGraph":
        """The edges of a model; `split_positions` counts learned positions as a source of their own.

        Raises `FamilyError` where the stream is not a sum of what parts write, `InputError` for a model without a
        map, or without learned positions to split off.
        """
        if not model.anatomies:
            raise InputError(
                f"{model.name} is addressed by module paths; its edges are known only with a map of it"
            )
        require_additive(model)
        if split_positions and not model.has("pos_embed"):
            raise InputError(
                f"{model.name} has no learned positions to count as a source; leave split_positions out"
            )
        sources = ["embed", "pos_embed"] if split_positions else ["embed"]
        receivers: list[tuple[str, Kind]] = []
        readers: list[Reader] = []

        def reads(kind: Kind, layer: int | None, names: Iterable[str], visible: int) -> None:
            start = len(receivers)
            receivers.extend((name, kind) for name in names)
            readers.append(Reader(kind, layer, slice(start, len(receivers)), visible))

        heads, kv_heads = model.n_heads, model.sizes["n_kv_heads"]
        parallel = model.anatomy.family.residual == "parallel"
        for layer in range(model.n_layers):
            before = len(sources)
            own = [str(Site("z", layer, heads=(head,))) for head in range(heads)]
            each = heads // kv_heads
            shared = [
                str(Site("z", layer, heads=tuple(range(first, first + each))))
                for first in range(0, heads, each)
            ]
            reads("q", layer, own, before)
            reads("k", layer, shared, before)
            reads("v", layer, shared, before)
            sources += own
            if model.has(mlp := Site("mlp_out", layer)):
                reads("mlp", layer, [str(mlp)], before if parallel else len(sources))
                sources.append(str(mlp))
        reads("logits", None, ["logits"], len(sources))
        allowed = torch.zeros(len(receivers), len(sources), dtype=torch.bool)
        for reader in readers:
            allowed[reader.rows, : reader.visible] = True
        return EdgeGraph(tuple(sources), tuple(receivers), allowed, tuple(readers))

    @property
    def splits_positions(self) -> bool:
        """Whether positions are a source of their own."""
        return "pos_embed" in self.sources

    def __len__(self) -> int:
        return int(self.allowed.sum())

    @cached_property
    def _row(self) -> dict[tuple[str, str], int]:
        return {receiver: row for row, receiver in enumerate(self.receivers)}

    @cached_property
    def _column(self) -> dict[str, int]:
        return {source: column for column, source in enumerate(self.sources)}

    def place(self, edge: tuple[str, str, str]) -> tuple[int, int]:
        """Row and column of an edge (source, target, kind). Raises `InputError` for one that does not exist."""
        source, target, kind = edge
        row, column = self._row.get((target, kind)), self._column.get(source)
        if row is None or column is None or not self.allowed[row, column]:
            why = (
                f"there is no source {source!r}"
                if column is None
                else f"nothing called {target!r} reads through {kind!r}"
                if row is None
                else f"{source} does not come before {target}"
            )
            raise InputError(
                f"{source} -> {target} ({kind}) is no edge of this network: {why}. Sources are embed, z.LAYER.hHEAD "
                "and mlp_out.LAYER; targets z.LAYER.hHEAD through q, k or v (all heads that share a key), "
                "mlp_out.LAYER through mlp, and logits through logits"
            )
        return row, column

    def edges(self) -> list[tuple[str, str, str]]:
        """Every edge as (source, target, kind), in the order of a matrix read row by row."""
        return [
            (self.sources[column], *self.receivers[row]) for row, column in self.allowed.nonzero().tolist()
        ]

    def mask(self, kept: Circuit | Iterable[tuple[str, str, str]]) -> Bool[Tensor, "receiver source"]:
        """The edges of a circuit as a matrix. Raises `InputError` for an edge that does not exist."""
        ends = [edge.ends for edge in kept.edges] if isinstance(kept, Circuit) else kept
        found = torch.zeros_like(self.allowed)
        for edge in ends:
            found[self.place(edge)] = True
        return found

    def circuit(
        self, kept: Bool[Tensor, "receiver source"], weights: Float[Tensor, "receiver source"] | None = None
    ) -> Circuit:
        """The kept edges as a circuit. A node weighs what its outgoing edges weigh together."""
        edges: list[Edge] = []
        nodes: dict[str, float] = {}
        for row, column in (kept & self.allowed).nonzero().tolist():
            weight = 1.0 if weights is None else float(weights[row, column])
            target, kind = self.receivers[row]
            edges.append(Edge(self.sources[column], target, kind, weight))
            nodes[self.sources[column]] = nodes.get(self.sources[column], 0.0) + weight
            nodes.setdefault(target, 0.0)
        return Circuit.of(nodes, edges)

    def connected(self, kept: Bool[Tensor, "receiver source"]) -> Bool[Tensor, "receiver source"]:
        """The kept edges that lie on a path of kept edges from an embedding to the logits."""
        kept = kept & self.allowed
        feeds = self.feeds
        live = torch.zeros(len(self.sources), dtype=torch.bool)
        live[: 1 + self.splits_positions] = True
        for column in range(1 + self.splits_positions, len(self.sources)):
            live[column] = bool((kept[feeds[column]] & live).any())
        kept = kept & live
        used = torch.zeros(len(self.sources), dtype=torch.bool)
        useful = torch.zeros(len(self.receivers), dtype=torch.bool)
        useful[-1] = True
        for column in range(len(self.sources) - 1, -1, -1):
            used[column] = bool((kept[:, column] & useful).any())
            useful[feeds[column]] = useful[feeds[column]] | used[column]
        return kept & useful[:, None]

    def strongest(self, weights: Float[Tensor, "receiver source"], n: int) -> Bool[Tensor, "receiver source"]:
        """At least `n` edges on paths from an embedding to the logits, of the fewest strongest that hold so many.

        All that lie on paths, where there are fewer. Strength is the absolute weight; ties go by order.
        """
        flat = weights.abs().masked_fill(~self.allowed, -1.0).flatten()
        order = torch.sort(flat, descending=True, stable=True).indices[: len(self)]

        def taken(count: int) -> Tensor:
            kept = torch.zeros(flat.shape, dtype=torch.bool)
            kept[order[:count]] = True
            return self.connected(kept.view_as(self.allowed))

        least = bisect_left(range(len(self)), n, key=lambda count: int(taken(count).sum()))
        return taken(least)

    @cached_property
    def feeds(self) -> list[list[int]]:
        """For each source, the receivers through which it is fed."""
        rows: dict[str, list[int]] = {}
        for row, (name, _) in enumerate(self.receivers):
            for one in members(name):
                rows.setdefault(one, []).append(row)
        return [rows.get(source, []) for source in self.sources]


def members(name: str) -> Sequence[str]:
    """The heads that a receiver stands for; itself where it is no group of heads."""
    if not name.startswith("z."):
        return (name,)
    site = Site.parse(name)
    return [str(Site("z", site.layer, heads=(head,))) for head in site.heads or ()]
