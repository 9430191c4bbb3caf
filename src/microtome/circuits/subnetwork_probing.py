"""Which heads, MLPs or edges are worth their price? Gates learned under a fixed charge for each that is open.

1. Every head and MLP, or every edge, has a gate; what it shuts out carries the other side's value (or zero, or a mean).
2. The gates descend the divergence from the uncut runs plus `price` for each gate expected to be open. So a part stays
   where leaving it out would cost more than its price, in nats.
3. The circuit is the fewest, in the order of their gates, that hold the divergence under a bound, found by bisection on
   exact runs, less those that can be spared. Each weighs by how much shutting it as well raises the divergence,
   exactly.

Reference: Cao, Sanh, Rush (2021), Low-Complexity Probing via Finding Subnetworks; as a method for circuits, Conmy et
al. (2023). Misleads where parts back each other up: which of them stays is chance; and the gates fit the pairs at hand.
"""

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.circuits import mask_results
from microtome.circuits.learned_mask import Grain, Price
from microtome.core.card import Card
from microtome.data.pairs import Pairs
from microtome.models.model import Model

grading = (  # learned positions are a source of their own in the keys
    {"split_positions": True},
    {"split_positions": True, "grain": "edges"},
)

card = Card(
    name="subnetwork_probing",
    title="Subnetwork probing",
    question="Which heads and MLPs, or which edges, are worth a price on each that is kept?",
    steps=(
        "Give every head and MLP, or every edge, a gate; what it shuts out carries the other side's value.",
        "Learn the gates by gradient: divergence from the uncut runs, plus a price for each gate that is open.",
        "Keep the fewest, in the order of their gates, that hold the divergence under a bound.",
    ),
    reference="Cao, Sanh and Rush 2021; Conmy et al. 2023",
    misleads="Of parts that back each other up some keep their gates by chance: compare seeds.",
    needs="pairs",
    causal="intervention",
    claims=("circuit", "edges", "nodes"),
)


class Config(mask_results.Config):
    """What is masked, what must not change, and what an open gate costs."""

    grain: Grain = Field(
        "nodes", description="nodes: a gate for each head and MLP; edges: one for each edge."
    )
    price: float = Field(0.02, ge=0, description="Charge for each open gate, in the metric's units.")


class Result(mask_results.Result):
    """See `mask_results.Result`."""


def run(model: Model, data: Pairs, config: Config | None = None) -> mask_results.Result:
    """Learn the gates and read the circuit off them. Raises `InputError` where cutting everything changes nothing,
    `FamilyError` where the stream is not a sum of what parts write."""
    config = config or Config()

    def price(count: int) -> Price:
        def charged(chances: Float[Tensor, " gate"], step: int) -> Tensor:
            return config.price * chances.sum()

        return charged

    return mask_results.learned(Result, card, model, data, config, price)
