"""What does each node of a prompt contribute to the answers, and to the units that lead there? Targets, batch by batch.

1. The likeliest next tokens are the first targets, each logit relative to the mean over the vocabulary.
2. Units become targets in the order of their influence on the logits so far, a batch at a time, until all are or enough
   are. A unit whose row is not known yet passes no influence on; so the ranking is redone after every batch.
3. The contributions to each target must sum to what the model itself says drives it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.circuits.frozen_stream import Directions, FrozenStream
from microtome.circuits.graph_influence import Contributions, influence
from microtome.circuits.replaced_mlps import ReplacedMlps
from microtome.core.errors import FamilyError


@dataclass(frozen=True, eq=False)
class Traced:
    """Contributions to the targets. logits: the first `len(logits)` rows. driven `[target]`: how far each is driven in
    all, own offset included; error: how far sums are from it, at worst, relative to the largest."""

    found: Contributions
    n_logits: int
    driven: Float[Tensor, " target"]
    error: float

    def along_all_paths(self) -> Float[Tensor, " node"]:
        """What the first logit owes to each node along all paths: units pass on the share of what drives them."""
        rows, target = self.found.rows, self.found.target
        ratio = rows[self.n_logits :] / torch.where(
            self.driven[self.n_logits :] == 0, torch.inf, self.driven[self.n_logits :]
        ).unsqueeze(-1)
        at = target[self.n_logits :]
        total = rows[0].clone()
        flow = total.clone()
        while bool((flow[at] != 0).any()):
            flow = flow[at] @ ratio
            total = total + flow
        return total


@torch.no_grad()
def likeliest(
    stream: FrozenStream, probability: float, count: int
) -> tuple[Int[Tensor, " logit"], Float[Tensor, " logit"]]:
    """The fewest next tokens that hold this probability, at most so many; and their probabilities."""
    logits = stream.model.unembed(stream.last[-1:].to(stream.model.dtype))[0].float()
    shares = logits.softmax(-1)
    top = shares.topk(min(count, len(shares)))
    held = int((top.values.cumsum(0) < probability).sum()) + 1
    return top.indices[:held], top.values[:held]


def _logit_directions(
    stream: FrozenStream, answers: Int[Tensor, " logit"]
) -> tuple[Directions, Float[Tensor, " logit"], Float[Tensor, " logit"]]:
    """Directions of the answers' logits relative to the mean; how far each is driven by the stream; its offset."""
    head = stream.head
    every = torch.arange(head.n_tokens).split(8192)
    mean = sum(head.after_norm(ids).sum(0) for ids in every) / head.n_tokens
    bias = sum(head.bias(ids).sum() for ids in every) / head.n_tokens
    vectors = head.after_norm(answers) - mean
    end = stream.n_positions - 1
    pushed = head.norm.push(stream.last[end:], head.norm.scale(stream.last[end:]))[0]
    offset = vectors @ head.norm.bias + head.bias(answers) - bias
    at = torch.full((len(answers),), end)
    return Directions(at, {}, (torch.arange(len(answers)), vectors)), vectors @ pushed, offset


@torch.no_grad()
def trace(
    parts: ReplacedMlps,
    answers: Int[Tensor, " logit"],
    probability: Float[Tensor, " logit"],
    units: int,
    batch: int,
) -> Traced:
    """Rows of the logits, then of at most `units` units in the order of their influence so far.

    Raises `FamilyError` where contributions do not sum to what they should.
    """
    directions, driven, offset = _logit_directions(parts.stream, answers)
    rows = [parts.contributions(directions)]
    sums, offsets = [driven], [offset]
    target = torch.full((len(answers),), -1)
    limit = min(units, parts.n_units)
    while len(target) - len(answers) < limit:
        some = min(batch, limit - (len(target) - len(answers)))
        so_far = _contributions(rows, target, probability, parts)
        reach = influence(so_far, so_far.shares)[: parts.n_units]
        reach[target[target >= 0]] = -1.0
        best = reach.topk(some)
        chosen = best.indices[best.values > 0].sort().values
        if not len(chosen):
            break
        directions, driven, offset = parts.driven(chosen)
        rows.append(parts.contributions(directions))
        sums.append(driven)
        offsets.append(offset)
        target = torch.cat([target, chosen])
    driven = torch.cat(sums)
    gap = (torch.cat(rows).sum(-1) - driven).abs().max() / driven.abs().max().clamp_min(1e-30)
    allowed = (
        1e-3 if parts.stream.model.dtype == torch.float32 else 32 * torch.finfo(parts.stream.model.dtype).eps
    )
    if not float(gap) <= allowed:
        raise FamilyError(
            f"contributions in {parts.stream.model.name} sum to what they should only to {float(gap):.1e} (allowed "
            f"{allowed:.0e}); something between stream and values is not linear"
        )
    return Traced(
        _contributions(rows, target, probability, parts),
        len(answers),
        driven + torch.cat(offsets),
        float(gap),
    )


def _contributions(
    rows: Sequence[Tensor], target: Tensor, probability: Float[Tensor, " logit"], parts: ReplacedMlps
) -> Contributions:
    """The biases are no node: they are the same for every prompt."""
    whole = torch.cat(list(rows))[:, :-1]
    padded = torch.zeros(len(target))
    padded[: len(probability)] = probability
    return Contributions(whole, target, padded, parts.n_units, parts.columns - parts.n_units)
