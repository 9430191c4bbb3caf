"""How much of the model's behaviour is left when its values are replaced by what a basis makes of them?

1. Run the model on text as it is, with the basis spliced in and its error dropped, and with the sites that the basis
   writes set to zero.
2. Cross-entropy: of the next token, the mean over all real tokens that have one. Divergence: KL from the plain model's
   next-token distribution to the other's, the mean over all real tokens.
3. Recovered: how far the splice comes back from the ablation: (ablated - spliced) / (ablated - plain). 1: nothing is
   lost; 0: no better than zero; below: worse. Where the ablation does not hurt there is no way to come back: NaN.

A basis that writes sites before it has read all (a crosscoder) is spliced in two passes: what it makes of the values of
a plain pass is put in their places.

Misleads where ablation hurts enormously, as in a whole residual stream: then 0.99 may hide a large loss, and the loss
itself stands beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.bases.basis import Basis, parted
from microtome.bases.splice import splice
from microtome.core.edits import Edit, Set, Zero
from microtome.core.errors import InputError
from microtome.data.observed import Observed, as_prompts
from microtome.models.model import Model


@dataclass(frozen=True)
class SplicedLoss:
    """Means, in nats a token. tokens: how many were compared; predicted: how many had a next one."""

    plain: float
    spliced: float
    ablated: float
    divergence: float
    ablated_divergence: float
    tokens: int
    predicted: int

    @property
    def recovered(self) -> float:
        """Share of the cross-entropy; NaN where the ablation does not raise it."""
        return _share(self.plain, self.spliced, self.ablated)

    @property
    def divergence_recovered(self) -> float:
        """Share of the divergence; NaN where the ablation changes nothing."""
        return _share(0.0, self.divergence, self.ablated_divergence)

    def numbers(self) -> dict[str, float]:
        """The scores by name."""
        return {
            "cross_entropy": self.plain,
            "cross_entropy_spliced": self.spliced,
            "cross_entropy_ablated": self.ablated,
            "cross_entropy_recovered": self.recovered,
            "divergence": self.divergence,
            "divergence_recovered": self.divergence_recovered,
        }


def spliced_loss(
    model: Model, data: Observed, basis: Basis, rows: int = 16, positions: Sequence[int] | None = None
) -> SplicedLoss:
    """Measure a basis in its model. data: texts or token ids `[row, column]`; rows: in a pass. positions: where
    the basis is spliced in, and what it writes set to zero; by default everywhere.

    Raises `InputError` where nothing has a next token, or the model's output is no distribution of tokens.
    """
    prompts = as_prompts(data, model.tokenizer)
    zeros: list[Edit] = [Zero(site if positions is None else site.at(*positions)) for site in basis.writes]
    late = any(read.depth > site.depth for site in basis.writes for read in basis.needed(site))
    at_once = [] if late else splice(basis, error="drop", positions=positions)
    losses, divergences = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    counted = predicted = 0
    for start in range(0, len(prompts.tokens), rows):
        ids = prompts.tokens[start : start + rows]
        mask = None if prompts.mask is None else prompts.mask[start : start + rows]
        real = torch.ones_like(ids).bool() if mask is None else mask.bool()
        plain: Tensor | None = None
        spliced_in = _made(model, ids, mask, basis, positions) if late else at_once
        for way, edits in enumerate(([], spliced_in, zeros)):
            said = _distributions(model, ids, mask, edits)
            plain = said if plain is None else plain
            divergences[way] += float(_divergence(plain, said)[real].sum())
            losses[way] += float(_losses(said, ids)[real[:, 1:]].sum())
        counted += int(real.sum())
        predicted += int(real[:, 1:].sum())
    if not predicted:
        raise InputError("no token has a next one to predict; give rows of at least two tokens")
    plain_loss, spliced, ablated = (losses / predicted).tolist()
    _, divergence, ablated_divergence = (divergences / counted).tolist()
    return SplicedLoss(plain_loss, spliced, ablated, divergence, ablated_divergence, counted, predicted)


@torch.no_grad()
def _made(
    model: Model,
    ids: Int[Tensor, "row column"],
    mask: Int[Tensor, "row column"] | None,
    basis: Basis,
    positions: Sequence[int] | None,
) -> list[Edit]:
    """What a basis makes of the values of a plain pass, to be put in their places."""
    values = model.run(ids, tuple(dict.fromkeys((*basis.reads, *basis.writes))), mask=mask).values
    rows = basis.rows_of(values)
    made = parted(basis.rebuilt(rows, basis.encode(rows)), basis.write_widths)
    edits: list[Edit] = []
    for site, part in zip(basis.writes, made, strict=True):
        value = part.reshape(values[site].shape).to(values[site].dtype)
        edits.append(
            Set(site, value=value)
            if positions is None
            else Set(site.at(*positions), value=value[:, list(positions)])
        )
    return edits


@torch.no_grad()
def _distributions(
    model: Model, ids: Int[Tensor, "row column"], mask: Int[Tensor, "row column"] | None, edits: list[Edit]
) -> Float[Tensor, "row column token"]:
    found: Any = model.run(ids, edit=edits, logits=True, mask=mask).logits
    if found is None or found.shape[:2] != ids.shape:
        raise InputError(
            f"{model.name} says nothing of a next token at each position; its loss cannot be taken"
        )
    logits: Tensor = found
    return logits.float().log_softmax(-1).cpu()


def _divergence(
    plain: Float[Tensor, "row column token"], other: Float[Tensor, "row column token"]
) -> Float[Tensor, "row column"]:
    return (plain.exp() * (plain - other)).sum(-1)


def _losses(
    said: Float[Tensor, "row column token"], ids: Int[Tensor, "row column"]
) -> Float[Tensor, "row next"]:
    return -said[:, :-1].gather(-1, ids[:, 1:, None].cpu())[..., 0]


def _share(best: float, found: float, worst: float) -> float:
    return (worst - found) / (worst - best) if worst > best else float("nan")
