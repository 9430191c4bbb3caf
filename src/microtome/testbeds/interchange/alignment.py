"""Which part of the network holds which variable of the causal model, and along which edges is it computed?

1. Each variable but the answer gets heads or MLPs of its own; the answer stands in the logits, the tokens in `embed`.
2. A variable's parents stand where it reads: an MLP reads them as an MLP does, a head through the queries, keys or
   values that are said. So the alignment implies the circuit's edges, and every other edge is outside the circuit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from jaxtyping import Bool
from torch import Tensor

from microtome.core.circuit import Circuit, Edge
from microtome.core.errors import InputError
from microtome.data.causal_model import TOKENS, CausalModel
from microtome.testbeds.interchange.wiring import EdgeName, Wiring


@dataclass(frozen=True)
class Place:
    """Where a variable stands. through: by parent, through which of `q`, `k`, `v` the heads read it; not for MLPs."""

    nodes: tuple[str, ...]
    through: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Alignment:
    """Variables in their places. Raises `InputError` where places and causal model or network do not fit.

    They do not fit where a variable has no place, a place no variable or a node that is taken, a head no way to read a
    parent, or where a parent stands no lower than its child.
    """

    model: CausalModel
    places: Mapping[str, Place]
    wiring: Wiring

    def __post_init__(self) -> None:
        if {*self.places} != {*self.model.inner}:
            raise InputError(f"places of {sorted(self.places)}, expected one for each of {self.model.inner}")
        nodes = [node for place in self.places.values() for node in place.nodes]
        if len({*nodes}) != len(nodes) or not all(place.nodes for place in self.places.values()):
            raise InputError(f"{nodes} name a node twice, or a variable has none; give each variable its own")
        if unknown := {*nodes} - {*self.wiring.nodes}:
            raise InputError(
                f"this network has no {sorted(unknown)}; there are {', '.join(self.wiring.nodes)}"
            )
        self.wiring.mask(self.edges)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The heads and MLPs of the circuit, in the order of the pass."""
        taken = {node for place in self.places.values() for node in place.nodes}
        return tuple(node for node in self.wiring.nodes if node in taken)

    @property
    def spared(self) -> tuple[str, ...]:
        """The heads and MLPs outside the circuit."""
        return tuple(node for node in self.wiring.nodes if node not in self.nodes)

    @cached_property
    def edges(self) -> tuple[EdgeName, ...]:
        """The circuit's (source, target, kind)."""
        return tuple(
            (source, target, kind)
            for name in (*self.model.inner, self.model.answer)
            for parent in self.model.parents(name)
            for source in self._stands(parent)
            for target in self._stands(name)
            for kind in self._kinds(name, parent, target)
        )

    @property
    def outside(self) -> Bool[Tensor, "source target"]:
        """True at the edges that the pass allows and the circuit lacks."""
        return self.wiring.mask(self.wiring.edges) & ~self.wiring.mask(self.edges)

    def circuit(self, effect: Mapping[EdgeName, float]) -> Circuit:
        """Heads, MLPs, embedding and logits, and the edges among them, which weigh what they were measured to do."""
        ends = {end for source, target, _ in self.edges for end in (source, target)}
        return Circuit.of(sorted(ends), [Edge(*edge, effect[edge]) for edge in self.edges])

    def _stands(self, name: str) -> tuple[str, ...]:
        if name == TOKENS:
            return ("embed",)
        return ("logits",) if name == self.model.answer else self.places[name].nodes

    def _kinds(self, name: str, parent: str, target: str) -> str | tuple[str]:
        if not target.startswith("z"):
            return ("logits" if target == "logits" else "mlp",)
        kinds = self.places[name].through.get(parent, "")
        if not kinds or {*kinds} - {*"qkv"}:
            raise InputError(
                f"{target} computes {name} and must read {parent} through some of q, k and v, not {kinds!r}"
            )
        return kinds
