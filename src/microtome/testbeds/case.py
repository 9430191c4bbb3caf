"""What is understood already? A `Case`: a task, a model that does it, the truth about how, and the evidence for that.

A testbed is a module that makes cases, offered under the entry point `microtome.testbeds`. It has

    card = TestbedCard(…)                        what it is, on one page
    def cases() -> tuple[str, ...]               names of its cases; cheap, builds nothing
    def build(case: str, seed: int = 0) -> Case  one of them; the same seed gives the same case

A case is named `testbed/case`. Its truth counts only as far as its evidence holds: a network that was trained too
little to do its task is refused with a `TruthError` rather than served as an answer key.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor

from microtome.core.card import Needs
from microtome.core.circuit import Circuit
from microtome.core.errors import InputError, TruthError
from microtome.core.site import Site
from microtome.data.hypothesis import Hypothesis
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.models.random_twin import How, random_twin


@dataclass(frozen=True)
class TestbedCard:
    """A testbed on one page. kinds: which kinds of truth its cases carry (`circuit`, `variables`, `features`, …)."""

    __test__ = False  # not a class of tests, whatever pytest thinks of its name

    name: str
    title: str
    question: str
    reference: str
    kinds: tuple[str, ...]
    misleads: str


@dataclass(frozen=True)
class Evidence:
    """One measured number that the truth rests on, with the bound it must keep. n: of how many it was taken."""

    what: str
    value: float
    least: float | None = None
    most: float | None = None
    n: int | None = None

    @property
    def holds(self) -> bool:
        """Whether the number keeps its bounds; NaN keeps none."""
        return (self.least is None or self.value >= self.least) and (
            self.most is None or self.value <= self.most
        )

    def __str__(self) -> str:
        bounds = [f"at least {self.least:g}" if self.least is not None else ""]
        bounds += [f"at most {self.most:g}" if self.most is not None else ""]
        wanted = " and ".join(bound for bound in bounds if bound)
        counted = f" of {self.n}" if self.n is not None else ""
        return f"{self.what} {self.value:.6g}{counted}{f' (wanted {wanted})' if wanted else ''}"


@dataclass(frozen=True, eq=False)
class Variable:
    """A variable of the true algorithm, and where the network holds it.

    site: where it stands. directions `[value, d]`: one for each of `values` where it is categorical; a single row,
    along which the number is written, where it is numerical (`values` is then empty).
    writer: the node that computes it, such as `mlp_out.0`; empty where it comes with the input.
    """

    name: str
    site: Site
    directions: Float[Tensor, "value d"]
    values: tuple[str | int | float | bool, ...] = ()
    writer: str = ""

    def __post_init__(self) -> None:
        if self.values and len(self.values) != len(self.directions):
            raise InputError(
                f"{self.name} has {len(self.values)} values and {len(self.directions)} directions; one a value"
            )


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known of a network. Every part may be left out; none is ever guessed.

    circuit: the nodes and edges that do the task, of all that `candidates` names (empty: all heads and MLPs).
    unshown: nodes and edges (source, target, kind) of the circuit that no pair of the case can show, because putting
    one side into the other there changes nothing; neither right nor wrong where pairs are compared.
    roles: nodes by what they are known to do, such as `induction` or `previous_token`.
    rules: by kind, such as `skip_trigram`: tokens by id, the last of which follows the others; all that there are.
    variables: what stands where. features `[feature, d]`: the true dictionary at a site.
    labels: latents of the case's data by name, `[row]` or `[row, position]`; -1 or NaN where undefined.
    quantities: exact numbers by name.
    """

    circuit: Circuit | None = None
    candidates: tuple[str, ...] = ()
    unshown: frozenset[str | tuple[str, str, str]] = frozenset()
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rules: Mapping[str, frozenset[tuple[int, ...]]] = field(default_factory=dict)
    variables: tuple[Variable, ...] = ()
    features: Mapping[str, Float[Tensor, "feature d"]] = field(default_factory=dict)
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    quantities: Mapping[str, float] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which parts are known."""
        named = ("circuit", "roles", "rules", "variables", "features", "labels", "quantities")
        return tuple(name for name in named if getattr(self, name))


@dataclass(frozen=True, eq=False)
class Case:
    """A network with its answer key. Raises `TruthError` where the evidence does not hold.

    name: `testbed/case`. task: what the network does, in a sentence. pairs, tokens: what methods are run on; `tokens`
    are ids `[row, column]`, or the inputs by keyword of a module that takes none.
    hypothesis: the true algorithm as a causal model, in the places that the truth says.
    untouched: the model as it was before it was edited or trojaned, where the case is about that.
    twin: how the control's weights are made; `drawn` where they are mostly zeros.
    """

    name: str
    task: str
    model: Model
    truth: Truth
    evidence: tuple[Evidence, ...]
    pairs: Pairs | None = None
    tokens: Any = None
    hypothesis: Hypothesis | None = None
    seed: int = 0
    untouched: Model | None = None
    twin: How = "shuffled"

    def __post_init__(self) -> None:
        if not self.evidence:
            raise TruthError(f"{self.name} comes without evidence; measure that the network does its task")
        broken = [str(one) for one in self.evidence if not one.holds]
        if broken:
            raise TruthError(
                f"{self.name} (seed {self.seed}) cannot serve as truth: {'; '.join(broken)}. "
                "Train it longer, or with the settings it ships with"
            )

    def data(self, needs: Needs) -> Any:
        """What a method with these needs is run on. Raises `InputError` where the case has none."""
        if needs == "weights":
            return None
        found = {"pairs": self.pairs, "hypothesis": self.hypothesis, "tokens": self.tokens}[needs]
        if needs == "tokens" and found is None and self.pairs is not None:
            found = self.pairs.clean
        if found is None:
            raise InputError(f"{self.name} has no {needs} to run a method on")
        return found

    @cached_property
    def control(self) -> Model:
        """The same architecture with random weights: whatever is found there is not the algorithm."""
        return random_twin(self.model, self.seed, self.twin)
