"""Which subspace of a site carries a variable? It is learned by exchanging it, by gradient, network untouched.

1. `rotation`: k orthonormal directions, wholly exchanged.
2. `boundless`: a rotation of the whole site, of which the first directions are exchanged, up to a boundary that is
   learned too: a soft step, of which the temperature falls until it is a sharp one.
3. `mask`: the site's own units, each exchanged by a share, whose temperature falls likewise.

The loss is the cross-entropy of the causal model's answers; for 2 and 3 plus a small cost of every direction taken.
Reference: Geiger et al. (2023), Finding Alignments Between Interpretable Causal Variables and Distributed Neural
Representations; Wu et al. (2023), Interpretability at Scale, for 2; Davies et al. (2023), Discovering Variable Binding
Circuitry with Desiderata, for 3.
"""

from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from microtome.causal.interchange import Exchanges, counting, places
from microtome.causal.partial_swap import PartialSwap
from microtome.core.cost import Recorder
from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection
from microtome.core.site import Site
from microtome.data.causal_model import UNASKED
from microtome.data.hypothesis import Hypothesis
from microtome.models.model import Model

Kind = Literal["rotation", "boundless", "mask"]
_SHARP: Final = 0.1  # of the largest temperature, at the end


@dataclass(frozen=True)
class Schedule:
    """How a subspace is learned. price: of each direction that is taken, in nats, where their number is learned."""

    steps: int
    batch: int
    rate: float
    price: float


class Subspace(nn.Module):
    """Directions of a site of width d and by how much each is exchanged, as learned so far.

    first: where to start, before random directions fill up.

    Raises `InputError` where a rotation is given no number of directions, or more than the site is wide.
    """

    def __init__(
        self,
        kind: Kind,
        width: int,
        count: int,
        source: torch.Generator,
        first: Float[Tensor, "some d"] | None = None,
    ) -> None:
        super().__init__()
        if kind == "rotation" and not 1 <= count <= width:
            raise InputError(
                f"a rotation of {count} directions does not fit a site {width} wide; ask for 1 … {width}"
            )
        self.kind, self.width = kind, width
        rows = {"rotation": count, "boundless": width, "mask": 0}[kind]
        if rows:
            self.turn = nn.utils.skip_init(nn.Linear, width, rows, bias=False)
            drawn = torch.randn(rows, width, generator=source)
            if first is not None:
                drawn = torch.cat([first, drawn])[:rows]
            with torch.no_grad():
                self.turn.weight.copy_(torch.linalg.qr(drawn.T).Q.T)
            parametrizations.orthogonal(self.turn, orthogonal_map="householder", use_trivialization=False)
        if kind == "boundless":
            self.boundary = nn.Parameter(torch.tensor(0.5))
        if kind == "mask":
            self.mask = nn.Parameter(torch.zeros(width))

    @property
    def directions(self) -> Float[Tensor, "direction d"]:
        """All that may be exchanged, orthonormal."""
        if self.kind == "mask":
            return torch.eye(self.width)
        weight: Tensor = self.turn.weight
        return weight

    def share(self, heat: float) -> Float[Tensor, " direction"]:
        """By how much each is exchanged. heat: 1 at the beginning, 0 at the end, where shares are nothing or all."""
        if self.kind == "rotation":
            return torch.ones(len(self.directions))
        if self.kind == "mask":
            return torch.sigmoid(self.mask / (heat + _SHARP))
        place = torch.arange(self.width) + 0.5
        # At first the step is as wide as the site.
        return torch.sigmoid((self.boundary * self.width - place) / (heat * self.width / 4 + _SHARP))

    def chosen(self) -> Float[Tensor, "direction d"]:
        """What is exchanged in the end; at least one direction."""
        with torch.no_grad():
            share = self.share(0.0)
            taken = share > 0.5
            taken[share.argmax()] = True
            return self.directions[taken].detach().clone()


def learn(
    model: Model,
    hypothesis: Hypothesis,
    site: Site,
    values: Float[Tensor, "row *rest"],
    exchanges: Exchanges,
    subspace: Subspace,
    schedule: Schedule,
    source: torch.Generator,
    recorder: Recorder,
) -> list[float]:
    """Train a subspace at a site to carry the one variable that is exchanged; the loss of each step, in nats.

    values: at the site, of all rows of the hypothesis.
    """
    columns = places(hypothesis)
    (sources,) = exchanges.sources.values()
    parameters = list(subspace.parameters())
    optimizer = torch.optim.Adam(parameters, schedule.rate)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / schedule.steps)
    losses: list[float] = []
    best: dict[str, Tensor] = {}
    order: list[Tensor] = []
    for step in range(schedule.steps):
        if not order:
            order = list(torch.randperm(len(sources), generator=source).split(schedule.batch))
        some = order.pop()
        heat = 1 - step / max(1, schedule.steps - 1)
        share = subspace.share(heat)
        edit = PartialSwap(site, directions=subspace.directions, share=share, value=values[sources[some]])
        run = model.run(hypothesis.tokens[exchanges.base[some]], edit=[edit], logits=LogitSelection(columns))
        assert run.logits is not None
        loss = entropy(hypothesis, run.logits, exchanges.due[some][:, list(columns)])
        if subspace.kind != "rotation":
            loss = loss + schedule.price * share.sum()
        if subspace.kind == "rotation" and float(loss.detach()) < min(losses, default=float("inf")):
            best = {name: value.clone() for name, value in subspace.state_dict().items()}
        losses.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, parameters)  # the network's own gradients are not touched
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        falling.step()
    if best:  # where the network is flat, later steps can lose what was found
        subspace.load_state_dict(best)
    recorder.add(passes=2 * schedule.steps)
    return losses


def of_means(
    hypothesis: Hypothesis, name: str, values: Float[Tensor, "row position *inner d"], count: int
) -> Float[Tensor, "some d"]:
    """Orthonormal directions along which the site's mean moves most as the variable's value does, `count` at most."""
    means = means_by_value(hypothesis, name, values)
    if means is None:
        return values.new_zeros(0, values.shape[-1])
    _, size, directions = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    return directions[size > 1e-6 * size.max().clamp_min(1e-30)][:count]


def means_by_value(
    hypothesis: Hypothesis, name: str, values: Float[Tensor, "row position *inner d"]
) -> Float[Tensor, "value d"] | None:
    """The mean at a site for each value of a variable that occurs, over the places where it counts.

    `None` where the site has not all positions, so that it is not known which place is which.
    """
    taken = hypothesis.values[name]
    if taken.shape != values.shape[:2]:
        return None
    rows = values.flatten(2, -2).mean(2) if values.dim() > 3 else values
    counts = counting(hypothesis, name)
    rows, taken = rows[:, counts], taken[:, counts]
    return torch.stack([rows[taken == value].mean(0) for value in taken.unique()])


def entropy(
    hypothesis: Hypothesis, logits: Float[Tensor, "row place token"], due: Tensor
) -> Float[Tensor, ""]:
    """Cross-entropy of what is due, in nats, among the hypothesis' choices; the mean over places that are asked."""
    asked = due != UNASKED
    wanted = due[asked]
    found = logits[asked].float()
    if hypothesis.choices:
        choices = torch.tensor(hypothesis.choices)
        found, wanted = found[:, choices], (wanted[:, None] == choices).int().argmax(-1)
    return functional.cross_entropy(found, wanted)
