"""What does a result claim that an answer key could check? The few forms in which methods and testbeds meet.

A method's `Result` says its claims in these forms (`Result.answers`); a testbed's truth holds the same things; the
grader compares them. A method that says none cannot be graded, and none of these names a method or a testbed.

Nodes have one name everywhere: `embed`, `pos_embed`, a head `z.1.h0`, an MLP `mlp_out.1`, a neuron `mlp_post.1.u7`,
`logits`; for any other module, `path:NAME:out` or a unit of it. Edges go from node to node through `q`, `k`, `v`,
`mlp` or `logits`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from microtome.core.circuit import Circuit
from microtome.core.errors import InputError, NotFiniteError
from microtome.core.site import Site


@dataclass(frozen=True)
class NodeScores:
    """How much each node matters, larger is more; signs are kept, magnitudes rank.

    role: what for (`induction`, `previous_token`, …); empty: for the task as a whole.
    """

    scores: Mapping[str, float]
    role: str = ""

    def __post_init__(self) -> None:
        _finite(self.scores, "node")


@dataclass(frozen=True)
class EdgeScores:
    """How much each edge (source, target, kind) matters; signs are kept, magnitudes rank."""

    scores: Mapping[tuple[str, str, str], float]

    def __post_init__(self) -> None:
        _finite(self.scores, "edge")


@dataclass(frozen=True)
class RuleScores:
    """How strongly each rule holds, larger is stronger: tokens by id, the last of which follows the others.

    kind: `skip_trigram` (source … destination → out), `bigram` (token → out), `ngram` (first second → out).
    """

    kind: str
    scores: Mapping[tuple[int, ...], float]

    def __post_init__(self) -> None:
        _finite(self.scores, "rule")


@dataclass(frozen=True)
class FoundCircuit:
    """This circuit, no more and no less, does the task."""

    circuit: Circuit


@dataclass(frozen=True, eq=False)
class Directions:
    """Directions `[direction, d]` found at a site. variable: what they are said to stand for; empty: not said."""

    site: Site
    directions: Float[
        NDArray[np.floating], "..."
    ]  # [direction, d]: the error below says so in the user's words
    variable: str = ""

    def __post_init__(self) -> None:
        if self.directions.ndim != 2:
            raise InputError(
                f"directions at {self.site} have shape {self.directions.shape}, expected [direction, d]"
            )
        if not np.isfinite(self.directions).all():
            raise NotFiniteError(f"the directions at {self.site} hold NaN or infinity")


@dataclass(frozen=True, eq=False)
class UnitValues:
    """How strongly each unit at a site is on, `[row, position, unit]`, in the data that the method was run on; NaN
    where a row has ended."""

    site: Site
    values: Float[NDArray[np.floating], "..."]  # [row, position, unit]: as above

    def __post_init__(self) -> None:
        if self.values.ndim != 3:
            raise InputError(
                f"units at {self.site} have values of shape {self.values.shape}, expected [row, position, unit]"
            )
        missing = np.isnan(self.values)
        if np.isinf(self.values).any() or (missing.any(-1) != missing.all(-1)).any():
            raise NotFiniteError(f"the units at {self.site} hold infinity, or NaN where others have values")


@dataclass(frozen=True)
class Quantities:
    """Single numbers by name. exact: those said to be exact, so that only rounding may separate them from the truth."""

    values: Mapping[str, float]
    exact: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        _finite(self.values, "quantity")


Name = TypeVar("Name")
Answer = NodeScores | EdgeScores | RuleScores | FoundCircuit | Directions | UnitValues | Quantities


def _finite(scores: Mapping[Name, float], what: str) -> None:
    for name, score in scores.items():
        if not math.isfinite(score):
            raise NotFiniteError(f"the {what} {name} scores {score}; leave out what was not measured")
