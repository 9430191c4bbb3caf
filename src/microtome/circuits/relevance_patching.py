"""Along which edges does relevance flow? Edge attribution with rules in the place of gradients.

1. Run both sides of each pair.
2. Go back from the metric by rules (`microtome.circuits.gradient_rules`) that leave the values as they are: `relp`
   holds norms and patterns fixed, passes an activation on in proportion to its input, and halves products; `gim` holds
   norms fixed, halves products (queries and keys get a quarter each), and differentiates the softmax at a higher
   temperature. `own` takes the rules one by one.
3. An edge's score is what comes back to its receiver times the difference of what its source writes.
4. A random sample of edges is really cut, one at a time, and the error told beside the scores.

As costly as one gradient, and less noisy than one where units saturate and norms rescale. Reference: Jafari et al.
(2025), RelP; Edin et al. (2025), GIM; Bach et al. (2015) for the idea. Misleads: the scores are not derivatives of
anything, and `relp` sees nothing that acts through where a head looks (edges into queries and keys score zero).
"""

from typing import Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.circuits import edge_estimates
from microtome.circuits.edge_cut import Ablation
from microtome.circuits.edge_graph import Weights
from microtome.circuits.edge_run import EdgeRun
from microtome.circuits.gradient_rules import Attention, GradientRules
from microtome.core.card import Card
from microtome.core.cost import Recorder
from microtome.data.pairs import Pairs
from microtome.models.model import Model

grading = (  # learned positions are a source of their own in the keys
    {"split_positions": True},
    {"split_positions": True, "rules": "gim"},
)

card = Card(
    name="relevance_patching",
    title="Relevance patching",
    question="Which edges carry the behaviour, estimated by relevance rules in the place of gradients?",
    steps=(
        "Run both sides of each pair.",
        "Go back from the metric with norms held fixed, activations passed on in proportion and products halved.",
        "An edge's score is what comes back to its receiver times the difference of what its source writes.",
        "Cut a random sample of edges for real and tell the error.",
    ),
    reference="Jafari et al. 2025, RelP; Edin et al. 2025, Gradient Interaction Modifications",
    misleads="Rules are not derivatives; with patterns held fixed, edges into queries and keys score zero.",
    needs="pairs",
    causal="intervention",
    claims=("edges", "nodes"),
)


class Config(edge_estimates.Config):
    """What cut edges carry, and by which rules to go back."""

    rules: Literal["relp", "gim", "own"] = Field("relp", description="relp, gim, or own: the fields below.")
    frozen_norms: bool = Field(False, description="Hold the divisors of norms fixed (own).")
    proportional_neurons: bool = Field(False, description="Activations pass on φ(x)/x, not φ'(x) (own).")
    halved_products: bool = Field(False, description="Each factor of a product gets half (own).")
    attention: Attention = Field("gradient", description="gradient, frozen or tempered (own).")
    temperature: float = Field(2.0, gt=0, description="Of the softmax that gim differentiates.")

    @property
    def chosen(self) -> GradientRules:
        """The rules."""
        if self.rules == "relp":
            return GradientRules(True, True, True, "frozen")
        if self.rules == "gim":
            return GradientRules(True, False, True, "tempered", self.temperature)
        return GradientRules(
            self.frozen_norms,
            self.proportional_neurons,
            self.halved_products,
            self.attention,
            self.temperature,
        )


class Result(edge_estimates.Result):
    """See `edge_estimates.Result`."""


def run(model: Model, data: Pairs, config: Config | None = None) -> edge_estimates.Result:
    """Score every edge. Raises `InputError` where cutting everything changes nothing, `FamilyError` where the stream is
    not a sum of what parts write."""
    config = config or Config()
    rules = config.chosen

    def estimate(
        batch: EdgeRun, ablation: Ablation, recorder: Recorder
    ) -> tuple[Float[Tensor, " row"], Weights]:
        recorder.add(passes=1)
        return batch.gradient(ablation, rules=rules)

    return edge_estimates.estimated(Result, card, model, data, config, estimate)
