"""Which edges matter? A method as a stranger would write it, to test the grader from outside.

`how` says what the method does: `look` reads the edges off the weights' sizes, `guess` says the same of every network,
`fail` raises.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import xarray as xr

from microtome.core import config, result
from microtome.core.answers import Answer, EdgeScores
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.provenance import Provenance
from microtome.core.shapes import Shape

TRUE = (2, 5, 7)


class Config(config.Config):
    """Settings."""

    how: Literal["look", "guess", "fail"] = "look"


class Result(result.Result):
    """`score` over `head`."""

    def shapes(self) -> tuple[Shape, ...]:
        return ()

    def answers(self) -> tuple[Answer, ...]:
        values = self.data["score"].values.tolist()
        return (EdgeScores({(f"z.0.h{h}", "logits", "logits"): value for h, value in enumerate(values)}),)


card = Card(
    name="edge_guesses",
    title="Edge guesses",
    question="Which heads write most?",
    steps=("Take the norm of what each head writes with.",),
    reference="folklore",
    misleads="A head that writes much need not be read.",
    needs="weights",
    causal="observation",
    claims=("edges",),
)
grading: Sequence[dict[str, Any]] = ({}, {"how": "guess"}, {"how": "fail"})


def run(model: Any, data: None, config: Config) -> Result:
    with measure() as recorder:
        recorder.add(passes=2)
        if config.how == "fail":
            raise RuntimeError("it broke in the middle")
        sizes = model.weight("W_O.0").detach().flatten(1).norm(dim=1).double()
        if config.how == "guess":
            sizes = torch.tensor([float(head in TRUE) for head in range(len(sizes))]).double()
    return Result(
        "edge_guesses",
        xr.Dataset({"score": ("head", sizes.numpy())}),
        config,
        0,
        Provenance(),
        recorder.cost(),
    )
