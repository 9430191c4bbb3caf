"""What does each variant of a run do? A sweep in portions that fit memory, every effect with its guard."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.cost import Cost
from microtome.core.edits import Edit
from microtome.core.logits import Metric
from microtome.core.site import Site
from microtome.models.felt import felt
from microtome.models.model import Model
from microtome.models.sweep import Variant, sweep
from microtome.patching.contrast import Contrast, Direction, final_stream
from microtome.patching.off_distribution import Natural, median

WHERE = ("site", "final stream")
_PORTION_BYTES = 1 << 28


@dataclass(frozen=True)
class Effects:
    """The metric of a base run and of its variants, and how far off-distribution each variant is.

    percentile: `[where, variant]`: of the edited values at their sites, of the final stream at the last token (medians
    over prompts); NaN where nothing is judged.
    """

    base: Float[Tensor, " row"]
    metric: Float[Tensor, "variant row"]
    percentile: Float[Tensor, "where variant"]
    values: Mapping[Site, Tensor]
    cost: Cost

    @property
    def raw(self) -> Float[Tensor, "variant row"]:
        """Metric of the variant minus that of the base."""
        return self.metric - self.base


def measure(
    model: Model,
    tokens: Int[Tensor, "row column"],
    variants: Sequence[Variant],
    metric: Metric,
    natural: Natural,
    base_values: Mapping[Site, Tensor],
    *,
    read: Sequence[Site] = (),
    edit: Sequence[Edit] = (),
    mask: Int[Tensor, "row column"] | None = None,
    judged: Sequence[Sequence[Edit]] | None = None,
) -> Effects:
    """Run all variants; on rows that one leaves out it is the base.

    base_values: of the base run, at every site that a variant edits. read: values to keep of every variant.
    judged: for each variant the edits whose values the guard looks at; by default all of its edits.
    """
    final = final_stream(model)
    portion = portion_of(model, tokens, [final, *read])
    found: list[Tensor] = []
    kept: dict[Site, list[Tensor]] = {site: [] for site in read}
    far: list[float] = []
    cost, base = Cost(), torch.zeros(0)
    for start in range(0, len(variants), portion):
        part = variants[start : start + portion]
        swept = sweep(model, tokens, part, metric, read=[final, *read], edit=edit, mask=mask)
        base, cost = swept.base, cost + swept.cost
        found.append(swept.metric.where(~swept.metric.isnan(), swept.base))
        for site in read:
            kept[site].append(swept.values[site])
        far += [median(natural.percentiles(stream, final)) for stream in swept.values[final]]
    looked_at = [variant.edits for variant in variants] if judged is None else judged
    near = [natural.of_edits(edits, base_values) for edits in looked_at]
    return Effects(
        base,
        torch.cat(found),
        torch.tensor([near, far]),
        {site: torch.cat(values) for site, values in kept.items()},
        cost,
    )


def portion_of(model: Model, tokens: Int[Tensor, "row column"], reads: Sequence[Site]) -> int:
    """How many variants to sweep at once, so that what is read of them fits memory (no site is wider than counted)."""
    width = max(model.sizes["d_model"], model.sizes["n_heads"] * model.sizes["d_head"])
    columns = sum(tokens.shape[1] if site.positions is None else len(site.positions) for site in reads)
    return max(1, _PORTION_BYTES // (4 * tokens.shape[0] * width * columns))


def patched(
    contrast: Contrast,
    direction: Direction,
    variants: Sequence[Variant],
    *,
    read: Sequence[Site] = (),
    judged: Sequence[Sequence[Edit]] | None = None,
) -> Effects:
    """The effects of variants on the base run of a direction; what cannot change anything is not run."""
    side = contrast.base(direction)
    anatomy = contrast.model.anatomies.get("")
    judged = [variant.edits for variant in variants] if judged is None else judged
    if anatomy is not None:
        causal = anatomy.family.causal
        variants = [felt(variant, side.values, contrast.batch, causal=causal) for variant in variants]
    return measure(
        contrast.model,
        side.tokens,
        variants,
        contrast.metric,
        contrast.natural,
        side.values,
        read=read,
        mask=contrast.pairs.mask,
        judged=judged,
    )
