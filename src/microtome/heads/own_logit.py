"""Does a head make the token it looks at likelier, or less likely? Its direct effect on the logit of that very token.

For a query at `i` and a key at `j` holding token `t`:

    pattern[i, j] · (v[j] W_O) · direction[t] / scale[i]

summed over the keys, with the unembedding's mean over the vocabulary taken off (a shift of all logits is no preference)
and the final norm's divisor, as that of a norm behind the attention, kept as it is. Positive for a head that copies,
negative for one that suppresses what it attends to.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.site import Site
from microtome.models.model import Model
from microtome.models.readout import readout
from microtome.models.stream_parts import behind


@torch.no_grad()
def own_logit_effect(
    model: Model,
    ids: Int[Tensor, "row column"],
    other: Int[Tensor, "row column"],
    skip: int = 0,
) -> tuple[Float[Tensor, "row layer head"], Float[Tensor, "row layer head"]]:
    """Mean effect over the queries of each row, in logits: on the tokens attended, and (the control) on `other`'s
    tokens in their places. One pass.

    skip: columns at the start whose keys and queries do not count.
    """
    layers = range(model.n_layers)
    head = readout(model)
    after = [behind(model.anatomy, n, "attn") for n in layers]
    last = Site("resid_post", model.n_layers - 1)
    reads = [last]
    for n in layers:
        reads += [Site("pattern", n), Site("v", n)] + ([Site("z", n)] if after[n] is not None else [])
    seen = model.run(ids, reads)
    everything = torch.arange(model.sizes["d_vocab"], device=seen[last].device).split(4096)
    mean = torch.stack([head.directions(part).sum(0) for part in everything]).sum(0) / model.sizes["d_vocab"]
    scale = head.norm.scale(seen[last])[..., 0]
    effects = []
    for tokens in (ids, other):
        directions = head.directions(tokens.to(scale.device)) - mean
        per_layer = []
        for n in layers:
            divisor, wanted = scale, directions
            written = model.weight(f"W_O.{n}").float()
            norm = after[n]
            if norm is not None:
                bias = getattr(model.anatomy.role("o", n), "bias", None)
                whole = torch.einsum("rphd,hdm->rpm", seen[Site("z", n)].float(), written)
                divisor = divisor * norm.scale(whole if bias is None else whole + bias.float())[..., 0]
                wanted = norm.pull(directions)
            values = seen[Site("v", n)].float()
            values = values.repeat_interleave(model.n_heads // values.shape[2], dim=2)
            moves = torch.einsum("rkhd,hdm,rkm->rhk", values, written, wanted)
            pattern = seen[Site("pattern", n)].float()[:, :, skip:, skip:]
            effect = torch.einsum("rhqk,rhk->rhq", pattern, moves[:, :, skip:])
            per_layer.append((effect / divisor[:, None, skip:]).mean(-1))
        effects.append(torch.stack(per_layer, dim=1))
    return effects[0], effects[1]
