"""Which parts do the work, and how are they joined? A `Circuit` is a graph over sites or units.

Nodes are names: a site's string at any grain (`z.5.h1`, `mlp_out.3`, `mlp_post.0.u12`) or a unit's. A node's weight is
the signed effect of the part, an edge's the signed effect along it. A circuit found by a method and a true one written
by a testbed are the same type, so they can be compared.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import networkx as nx

from microtome.core.errors import InputError, SiteError, StoreError
from microtome.core.shapes import Arc, Graph, Node
from microtome.core.site import Site


@dataclass(frozen=True, order=True)
class Edge:
    """From one node to another.

    kind: through what it acts, such as `q`, `k`, `v`, `mlp`, `logits`; may be empty. `v@4`: at the target's position 4
    alone.
    """

    source: str
    target: str
    kind: str = ""
    weight: float = 1.0

    @property
    def ends(self) -> tuple[str, str, str]:
        """What makes it this edge: all but its weight."""
        return (self.source, self.target, self.kind)


@dataclass(frozen=True)
class Overlap:
    """How far a circuit agrees with a true one. A precision of nothing found, a recall of nothing true: NaN."""

    node_precision: float
    node_recall: float
    edge_precision: float
    edge_recall: float


@dataclass(frozen=True)
class Circuit:
    """Nodes, their weights in the same order, and edges among them; sorted, so that equal circuits are equal.

    Build it with `Circuit.of`. Raises `InputError` for a repeated node or edge, an edge that ends outside the nodes,
    and a weight that is not finite.
    """

    nodes: tuple[str, ...]
    weights: tuple[float, ...]
    edges: tuple[Edge, ...] = ()

    def __post_init__(self) -> None:
        if len(self.nodes) != len(self.weights):
            raise InputError(
                f"{len(self.nodes)} nodes with {len(self.weights)} weights; give one weight a node"
            )
        if repeated := _repeated(self.nodes):
            raise InputError(f"the circuit names {repeated} twice; name each node once")
        if repeated := _repeated(edge.ends for edge in self.edges):
            raise InputError(f"the circuit has the edge {repeated} twice; add their weights up first")
        known = set(self.nodes)
        for edge in self.edges:
            if missing := {edge.source, edge.target} - known:
                raise InputError(
                    f"an edge ends at {missing.pop()!r}, which is no node of the circuit; add the node"
                )
        for name, weight in [
            *zip(self.nodes, self.weights, strict=True),
            *((e.ends, e.weight) for e in self.edges),
        ]:
            if not math.isfinite(weight):
                raise InputError(f"{name} has the weight {weight}; weights must be finite")
        pairs = sorted(zip(self.nodes, self.weights, strict=True))
        object.__setattr__(self, "nodes", tuple(name for name, _ in pairs))
        object.__setattr__(self, "weights", tuple(float(weight) for _, weight in pairs))
        object.__setattr__(self, "edges", tuple(sorted(self.edges)))

    @staticmethod
    def of(
        nodes: Mapping[Site, float] | Mapping[str, float] | Iterable[Site | str], edges: Iterable[Edge] = ()
    ) -> "Circuit":
        """From sites or names, with weights (a mapping) or without (then each weighs 1)."""
        weighted = nodes.items() if isinstance(nodes, Mapping) else ((node, 1.0) for node in nodes)
        pairs = [(str(node), weight) for node, weight in weighted]
        return Circuit(tuple(n for n, _ in pairs), tuple(w for _, w in pairs), tuple(edges))

    def weight(self, node: Site | str) -> float:
        """The weight of a node. Raises `InputError` where the circuit lacks it."""
        if str(node) not in self.nodes:
            raise InputError(f"{node} is not in the circuit of {len(self.nodes)} nodes; ask with `in` first")
        return self.weights[self.nodes.index(str(node))]

    def __len__(self) -> int:
        return len(self.nodes)

    def __contains__(self, node: object) -> bool:
        return str(node) in self.nodes

    def __le__(self, other: "Circuit") -> bool:
        """Every node and every edge is in `other`, whatever the weights."""
        return set(self.nodes) <= set(other.nodes) and self._ends <= other._ends

    def __and__(self, other: "Circuit") -> "Circuit":
        """The nodes and edges in both, with the weights of this one."""
        return self._select(set(self.nodes) & set(other.nodes), self._ends & other._ends)

    def __or__(self, other: "Circuit") -> "Circuit":
        """The nodes and edges in either; where both have one, with the weight of this one."""
        weights = dict(zip(other.nodes, other.weights, strict=True)) | dict(
            zip(self.nodes, self.weights, strict=True)
        )
        edges = {edge.ends: edge for edge in (*other.edges, *self.edges)}
        return Circuit.of(weights, edges.values())

    def __sub__(self, other: "Circuit") -> "Circuit":
        """The nodes that `other` lacks, and the edges among them."""
        return self._select(set(self.nodes) - set(other.nodes), self._ends)

    def strongest(self, n: int) -> "Circuit":
        """The `n` nodes of largest absolute weight (ties by name), and the edges among them."""
        ranked = sorted(self.nodes, key=lambda node: (-abs(self.weight(node)), node))
        return self._select(set(ranked[:n]), self._ends)

    def compare(self, truth: "Circuit") -> Overlap:
        """Precision and recall of this circuit's nodes and edges against the true ones."""
        nodes = len(set(self.nodes) & set(truth.nodes))
        edges = len(self._ends & truth._ends)
        return Overlap(
            _share(nodes, len(self.nodes)),
            _share(nodes, len(truth.nodes)),
            _share(edges, len(self.edges)),
            _share(edges, len(truth.edges)),
        )

    def to_json(self) -> str:
        """A JSON text that `from_json` reads back equal."""
        nodes = dict(zip(self.nodes, self.weights, strict=True))
        return json.dumps(
            {"format": _FORMAT, "nodes": nodes, "edges": [asdict(e) for e in self.edges]}, indent=1
        )

    @staticmethod
    def from_json(text: str | Path) -> "Circuit":
        """Read a text, or a file, that `to_json` made. Raises `StoreError` for anything else."""
        source = str(text) if isinstance(text, Path) else "the text"
        try:
            record = json.loads(text.read_text(encoding="utf-8") if isinstance(text, Path) else text)
            if record["format"] != _FORMAT:
                raise StoreError(f"{source} has the format {record['format']!r}, expected {_FORMAT!r}")
            return Circuit.of(record["nodes"], [Edge(**edge) for edge in record["edges"]])
        except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{source} is no circuit ({error}); give what Circuit.to_json wrote") from error

    def shape(self, title: str = "Circuit", unit: str = "") -> Graph:
        """The circuit as a drawable graph: parts in the order of the forward pass, from bottom to top."""
        layers = _layers(self)
        nodes = tuple(
            Node(id=name, label=name, layer=layers[name], weight=weight, kind=name.split(".")[0])
            for name, weight in zip(self.nodes, self.weights, strict=True)
        )
        arcs = tuple(Arc(edge.source, edge.target, edge.weight, edge.kind) for edge in self.edges)
        return Graph(title, nodes, arcs, unit, f"{len(nodes)} nodes, {len(arcs)} edges")

    @property
    def _ends(self) -> set[tuple[str, str, str]]:
        return {edge.ends for edge in self.edges}

    def _select(self, nodes: set[str], ends: set[tuple[str, str, str]]) -> "Circuit":
        kept = [e for e in self.edges if e.ends in ends and {e.source, e.target} <= nodes]
        return Circuit.of({n: w for n, w in zip(self.nodes, self.weights, strict=True) if n in nodes}, kept)


_FORMAT = "microtome.circuit/1"


def _layers(circuit: Circuit) -> dict[str, float]:
    """Height of each node: by the site's place in the forward pass; where a node is no site, by longest path."""
    try:
        depths = {node: Site.parse(node).depth for node in circuit.nodes}
    except SiteError:
        graph = nx.DiGraph([(e.source, e.target) for e in circuit.edges])
        graph.add_nodes_from(circuit.nodes)
        # Nodes that feed each other stand at one height, so that any graph can be drawn.
        groups = nx.condensation(graph)
        heights = {
            node: float(height)
            for height, row in enumerate(nx.topological_generations(groups))
            for node in row
        }
        return {node: heights[group] for node, group in groups.graph["mapping"].items()}
    rank = {depth: float(index) for index, depth in enumerate(sorted(set(depths.values())))}
    return {node: rank[depth] for node, depth in depths.items()}


def _repeated(items: Iterable[object]) -> object:
    return next((item for item, count in Counter(items).items() if count > 1), None)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
