"""Which edges does a network have? Everything that writes to the residual stream, and everything that reads from it.

Sources, in the order of a pass: the embedding (`embed`; with its positions, or beside them as `pos_embed`), each head
(`z.1.h0`), each MLP (`mlp_out.1`). Receivers: the query, key and value input of each head, the input of each MLP, and
the logits. There is an edge from every source to every receiver that comes after it; in a parallel block the MLP does
not come after the heads beside it. A key or value head that serves several query heads is one receiver, named for all
of them (`z.1.h0,1` through `k`). GPT-2 small has 157 sources, 445 receivers and 32 491 edges.

Edges may be told apart by position, that of the receiver: `v@4` is a value made from the stream at position 4, and the
head writes it wherever it looks back to there.
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
Edges = Bool[Tensor, "*position receiver source"]
Weights = Float[Tensor, "*position receiver source"]


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
    allowed: which edges there are. Matrices of edges are `[receiver, source]` in this order, with `position` before
    them where edges are told apart by position. readers: the receivers in groups; empty for a graph that is only
    looked at.
    """

    sources: tuple[str, ...]
    receivers: tuple[tuple[str, Kind], ...]
    allowed: Edges
    readers: tuple[Reader, ...] = ()

    @staticmethod
    def of(model: Model, split_positions: bool = False, positions: int | None = None) -> "EdgeGraph":
        """The edges of a model; `split_positions` counts learned positions as a source of their own.

        positions: how many there are of them, to tell edges apart by position; `None`: an edge acts at all positions.

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
        if positions is not None:
            allowed = allowed.repeat(positions, 1, 1)
        return EdgeGraph(tuple(sources), tuple(receivers), allowed, tuple(readers))

    @property
    def splits_positions(self) -> bool:
        """Whether positions are a source of their own."""
        return "pos_embed" in self.sources

    @property
    def positions(self) -> int | None:
        """At how many positions edges are told apart; `None` where an edge acts at all positions."""
        return len(self.allowed) if self.allowed.dim() == 3 else None

    def __len__(self) -> int:
        return int(self.allowed.sum())

    @cached_property
    def _row(self) -> dict[tuple[str, str], int]:
        return {receiver: row for row, receiver in enumerate(self.receivers)}

    @cached_property
    def _column(self) -> dict[str, int]:
        return {source: column for column, source in enumerate(self.sources)}

    def place(self, edge: tuple[str, str, str]) -> tuple[int, ...]:
        """Row and column of an edge (source, target, kind), after the position where its kind names one (`v@4`).

        Raises `InputError` for one that does not exist.
        """
        source, target, kind = edge
        kind, told, position = kind.partition("@")
        row, column = self._row.get((target, kind)), self._column.get(source)
        if row is None or column is None or not self.allowed[..., row, column].any():
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
        if not told:
            return row, column
        count = self.positions or 0
        if not (position.isdecimal() and int(position) < count):
            raise InputError(
                f"{source} -> {target} ({edge[2]}) is at no position of these edges: "
                + (
                    f"they are 0 … {count - 1}"
                    if count
                    else "here an edge acts at all of them; leave the @ out"
                )
            )
        return int(position), row, column

    def edges(self) -> list[tuple[str, str, str]]:
        """Every edge as (source, target, kind), in the order of a matrix read row by row."""
        return [self.edge(place) for place in self.allowed.nonzero().tolist()]

    def edge(self, place: Sequence[int]) -> tuple[str, str, str]:
        """The edge (source, target, kind) at a place of a matrix."""
        *position, row, column = place
        target, kind = self.receivers[row]
        return self.sources[column], target, "@".join([kind, *map(str, position)])

    def mask(self, kept: Circuit | Iterable[tuple[str, str, str]]) -> Edges:
        """The edges of a circuit as a matrix, at all positions where an edge names none.

        Raises `InputError` for an edge that does not exist.
        """
        ends = [edge.ends for edge in kept.edges] if isinstance(kept, Circuit) else kept
        found = torch.zeros_like(self.allowed)
        for edge in ends:
            *position, row, column = self.place(edge)
            found[position or ..., row, column] = True
        return found

    def circuit(self, kept: Edges, weights: Weights | None = None) -> Circuit:
        """The kept edges as a circuit. A node weighs what its outgoing edges weigh together."""
        edges: list[Edge] = []
        nodes: dict[str, float] = {}
        for place in (kept & self.allowed).nonzero().tolist():
            weight = 1.0 if weights is None else float(weights[tuple(place)])
            source, target, kind = self.edge(place)
            edges.append(Edge(source, target, kind, weight))
            nodes[source] = nodes.get(source, 0.0) + weight
            nodes.setdefault(target, 0.0)
        return Circuit.of(nodes, edges)

    def connected(self, kept: Edges) -> Edges:
        """The kept edges that lie on a path of kept edges from an embedding to the logits.

        By position, a head writes at a position what it reads there as a query, and there or before as key and value.
        """
        kept = kept & self.allowed
        at = kept if self.positions else kept[None]
        live = torch.zeros(len(at), len(self.sources), dtype=torch.bool)
        live[:, : 1 + self.splits_positions] = True
        for column in range(1 + self.splits_positions, len(self.sources)):
            here, back = self._fed[column]
            live[:, column] = (at[:, here] & live[:, None]).any(dim=2).any(dim=1)
            looked = (at[:, back] & live[:, None]).any(dim=2).any(dim=1)
            live[:, column] |= looked.cummax(dim=0).values
        at = at & live[:, None]
        used = torch.zeros_like(live)
        useful = torch.zeros(at.shape[:2], dtype=torch.bool)
        useful[:, -1] = True
        for column in range(len(self.sources) - 1, -1, -1):
            here, back = self._fed[column]
            used[:, column] = (at[:, :, column] & useful).any(dim=1)
            useful[:, here] |= used[:, column, None]
            useful[:, back] |= used[:, column].flip(0).cummax(dim=0).values.flip(0)[:, None]
        return (at & useful[:, :, None]).view_as(kept)

    def strongest(self, weights: Weights, n: int) -> Edges:
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

    @cached_property
    def _fed(self) -> list[tuple[list[int], list[int]]]:
        """The same in two: those that feed it at their own position, and those that it looks back to."""
        backward = [kind in ("k", "v") for _, kind in self.receivers]
        return [
            ([row for row in rows if not backward[row]], [row for row in rows if backward[row]])
            for rows in self.feeds
        ]


def members(name: str) -> Sequence[str]:
    """The heads that a receiver stands for; itself where it is no group of heads."""
    if not name.startswith("z."):
        return (name,)
    site = Site.parse(name)
    return [str(Site("z", site.layer, heads=(head,))) for head in site.heads or ()]
