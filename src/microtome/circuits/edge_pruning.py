"""Which few edges are enough for the network to go on as before? Gates on all edges, driven to a wanted sparsity.

1. Every edge has a gate; what it does not let through carries the other side's value instead (or zero, or the mean).
2. The gates learn to keep the divergence from the uncut runs low, while a Lagrangian draws the share of edges expected
   to be shut to a target that rises from 0 to `sparsity` during warm-up: `λ₁ (target - share) + λ₂ (target - share)²`
   where the share falls short, in which `λ` climb the gradient that the gates descend. A target that cannot be reached
   keeps pushing on whatever is not needed.
3. The circuit is the fewest edges, in the order of their gates, that hold the divergence under a bound, found by
   bisection on exact runs, less those that can be spared. Each edge's weight is by how much cutting it as well raises
   the divergence, exactly.

Reference: Bhaskar, Wettig, Friedman, Chen (2024), Finding Transformer Circuits with Edge Pruning; the Lagrangian of
Wang, Wohlwend, Lei (2020). Misleads where edges back each other up: which of them keeps its gate is chance, so compare
seeds; and the gates fit the pairs at hand. What is enough by itself can lack an edge that is needed beside all others:
one that only keeps another from saying something wrong.
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.circuits import mask_results
from microtome.circuits.learned_mask import Price
from microtome.core.card import Card
from microtome.data.pairs import Pairs
from microtome.models.model import Model

grading = (  # learned positions are a source of their own in the keys
    {"split_positions": True},
    {"split_positions": True, "kind": "zero"},
)

card = Card(
    name="edge_pruning",
    title="Edge pruning",
    question="Which few edges between heads and MLPs are enough, by gates on all of them learned together?",
    steps=(
        "Give every edge a gate; what it shuts out carries the other side's value.",
        "Learn the gates by gradient: low divergence from the uncut runs, at a sparsity that rises to a target.",
        "Keep the fewest edges, in the order of their gates, that hold the divergence under a bound; drop the spare.",
    ),
    reference="Bhaskar, Wettig, Friedman and Chen 2024, Finding Transformer Circuits with Edge Pruning",
    misleads="Of edges that back each other up some keep their gates by chance: compare seeds.",
    needs="pairs",
    causal="intervention",
    claims=("circuit", "edges", "nodes"),
)


class Config(mask_results.Config):
    """What is masked, what must not change, and how sparse the mask is to be."""

    sparsity: float = Field(
        1.0, gt=0, le=2, description="Share of edges to be shut at the end; above 1 keeps pushing."
    )
    warm_up: float = Field(0.8, ge=0, le=1, description="Share of the steps in which the target rises.")
    multiplier_rate: float = Field(0.2, gt=0, description="Rate at which the multipliers climb.")


class Result(mask_results.Result):
    """See `mask_results.Result`."""


def run(model: Model, data: Pairs, config: Config | None = None) -> mask_results.Result:
    """Learn the gates and read the circuit off them. Raises `InputError` where cutting everything changes nothing,
    `FamilyError` where the stream is not a sum of what parts write."""
    config = config or Config()

    def price(count: int) -> Price:
        return _Lagrangian(config)

    return mask_results.learned(Result, card, model, data, config, price)


class _Lagrangian:
    """The price of a share of gates shut that falls short of the target. At every call it climbs its own gradient."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._linear = self._square = 0.0

    def __call__(self, chances: Float[Tensor, " gate"], step: int) -> Tensor:
        config = self._config
        risen = min(1.0, step / max(1.0, config.warm_up * config.steps))
        missing = risen * config.sparsity - (1 - chances.mean())
        price = self._linear * missing + self._square * missing.square()
        short = float(missing.detach())
        self._linear = max(0.0, self._linear + config.multiplier_rate * short)
        self._square += config.multiplier_rate * short**2
        return price if short > 0 else 0 * price
