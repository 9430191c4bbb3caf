"""What did a head read that it wrote towards the answer? Its direct contribution, split by the parts that fed it.

1. The stream that a head reads is the sum of what embeddings, earlier heads, earlier MLPs and biases wrote, at every
   position.
2. With the attention pattern and the divisors of the norms as they are, a head's value and output are linear: what each
   part becomes is the part, through the head's norm, `W_V W_O`, the pattern, and the answer's direction.
3. So the path `part → head → answer` has a contribution of its own. With the biases of norm and value they sum to the
   head's direct contribution, which is checked.

Patterns are not explained here: which parts made a head look where it looks runs through queries and keys.

Elhage et al. (2021), A Mathematical Framework for Transformer Circuits: virtual attention heads.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from microtome.attribution.direct_logit_attribution import Target, answers
from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, Quantities
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.errors import FamilyError, InputError, SiteError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Grid, Shape, Table
from microtome.core.site import Site
from microtome.data.observed import Observed
from microtome.data.pairs import Pairs
from microtome.models.head_circuits import norm_before, ov
from microtome.models.model import Model
from microtome.models.readout import Readout, readout
from microtome.models.stream_parts import StreamParts, behind, stream_parts

card = Card(
    name="composed_paths",
    title="Composed paths to the logits",
    question="Through which earlier part did each head get what it writes towards the answer?",
    steps=(
        "Take the stream apart into parts, at every position.",
        "Carry each part through a head's norm, values, pattern and output to the answer, all of them frozen.",
        "The paths through a head and its biases sum to the head's direct contribution.",
    ),
    reference="Elhage et al. (2021), A Mathematical Framework for Transformer Circuits",
    misleads=(
        "Patterns are frozen, so what a part does by changing where a head looks is not seen. A path's contribution is "
        "a share of what was written, not the effect of removing the part."
    ),
    needs="pairs",
    causal="observation",
    locality="local",
    comprehensiveness="partial",
    claims=("quantity:path",),
)


class Config(base.Config):
    """Settings of composed paths."""

    rows_at_once: int = Field(4, ge=1, description="Prompts whose streams are held apart at a time.")
    listed: int = Field(30, ge=1, description="How many of the strongest paths to list.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`path` `[row, head, part]` in logits: part → head → answer, zero where the part comes after the head reads;
    the part `biases` holds what norm and value biases add. `direct` `[row, head]`: their sum."""

    def answers(self) -> tuple[Answer, ...]:
        """What each part adds to the answer through each head, exactly."""
        path = self.data["path"].mean("row")
        found = {
            f"path.{part}.{head}": float(path.sel(head=head, part=part))
            for head in path["head"].values.tolist()
            for part in path["part"].values.tolist()
        }
        return (Quantities(found, frozenset(found)),)

    def shapes(self) -> tuple[Shape, ...]:
        mean, count = self.data["path"].mean("row").values, self.data.sizes["row"]
        heads, parts = (tuple(map(str, self.data[name].values)) for name in ("head", "part"))
        order = np.argsort(-np.abs(mean), axis=None)[: int(self.config["listed"])]
        rows = []
        for place in order:
            h, p = np.unravel_index(place, mean.shape)
            rows.append(
                (parts[p], heads[h], float(mean[h, p]), float(self.data["path"].values[:, h, p].std()))
            )
        caption = f"Mean over {count} prompts, in logits; patterns and norms frozen."
        return (
            Grid("Paths to the answer", mean, "head", heads, "part", parts, "logits", caption=caption),
            Table(
                "Strongest paths",
                ("part", "through", "mean", "spread over prompts"),
                tuple(rows),
                f"{caption} The largest {len(rows)} of {mean.size}, chosen by size.",
                self.notes,
            ),
        )


@torch.no_grad()
def run(model: Model, data: Observed, config: Config | None = None) -> Result:
    """Split every head's direct contribution to the answer of each clean prompt by what it read.

    Raises `InputError` for anything but pairs, `FamilyError` where the stream is not additive or values are not linear.
    """
    config = config or Config()
    if not isinstance(data, Pairs):
        raise InputError(
            f"composed paths lead to the answers of pairs; got {type(data).__name__}, give pairs"
        )
    found, direct, worst = [], [], 0.0
    names: tuple[str, ...] = ()
    with measure() as recorder:
        head = readout(model)
        for start in range(0, len(data), config.rows_at_once):
            some = data.rows(range(start, min(start + config.rows_at_once, len(data))))
            parts = stream_parts(model, some.clean, None, some.mask)
            paths, whole = _paths(model, some, parts, head)
            recorder.add(passes=2)
            found.append(paths)
            direct.append(whole)
            worst = max(
                worst, float((paths.sum(-1) - whole).abs().max() / whole.abs().max().clamp_min(1e-30))
            )
            names = tuple(part.name for part in parts.parts)
    allowed = 1e-3 if model.dtype == torch.float32 else 32 * torch.finfo(model.dtype).eps
    if worst > allowed:
        raise FamilyError(
            f"the paths through a head of {model.name} sum to its contribution only to {worst:.1e} (allowed "
            f"{allowed:.0e}); something between its input and its values is not linear"
        )
    return Result.of(
        card,
        xr.Dataset(
            {
                "path": (("row", "head", "part"), torch.cat(found).cpu().numpy()),
                "direct": (("row", "head"), torch.cat(direct).cpu().numpy()),
            },
            {
                "row": list(data.texts),
                "head": [f"z.{n}.h{h}" for n in range(model.n_layers) for h in range(model.n_heads)],
                "part": [*names, "biases"],
            },
            {"error": worst},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
        (
            f"The paths through a head sum to its direct contribution to {worst:.1e} relative.",
            "Patterns are frozen: paths through queries and keys are not here.",
        ),
    )


def _paths(
    model: Model, pairs: Pairs, parts: StreamParts, head: Readout
) -> tuple[Float[Tensor, "row head part"], Float[Tensor, "row head"]]:
    """Paths of some prompts, biases last, and the direct contribution of each head."""
    layers = range(model.n_layers)
    reads = [Site("resid_post", model.n_layers - 1, positions=(-1,))]
    for n in layers:
        reads += [Site("pattern", n, positions=(-1,)), Site("resid_pre", n), Site("z", n, positions=(-1,))]
    run = model.run(pairs.clean, reads, mask=pairs.mask)
    direction = _direction(head, answers(pairs), parts.vectors.device)
    direction = direction / head.norm.scale(run[reads[0]][:, 0])
    found, direct = [], []
    for n in layers:
        z = run[Site("z", n, positions=(-1,))].float()
        written = model.weight(f"W_O.{n}").float()
        after = behind(model.anatomy, n, "attn")
        wanted = pulled = direction
        if after is not None:
            bias = getattr(model.anatomy.role("o", n), "bias", None)
            whole = torch.einsum("rphd,hdm->rpm", z, written)[:, 0]
            wanted = direction / after.scale(whole if bias is None else whole + bias.float())
            pulled = after.pull(wanted)
        direct.append(torch.einsum("rhd,hdm,rm->rh", z[:, 0], written, pulled))
        circuit = ov(model, n)
        # The answer as a direction at the head's input, before its norm's divisor.
        asked = torch.einsum("hmd,hdn,rn->rhm", circuit.left, circuit.right, wanted)
        divisor = norm_before(model, n).scale(run[Site("resid_pre", n)])[..., 0]
        pattern = run[Site("pattern", n, positions=(-1,))][:, :, 0].float() / divisor[:, None]
        earlier = torch.tensor([part.layer is None or part.layer < n for part in parts.parts])
        mixed = torch.einsum("rhk,rkpm->rhpm", pattern, parts.vectors * earlier[:, None].to(pattern.device))
        through = torch.einsum("rhpm,rhm->rhp", mixed, asked)
        found.append(
            torch.cat([through, _biases(model, n, pattern * divisor[:, None], pulled)[..., None]], dim=-1)
        )
    return torch.cat(found, dim=1), torch.cat(direct, dim=1)


def _biases(
    model: Model, layer: int, pattern: Float[Tensor, "row head key"], asked: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row head"]:
    """What the biases of the norm and of the values add through each head."""
    from_norm = norm_before(model, layer).bias
    value = torch.einsum("m,hmd->hd", from_norm, model.weight(f"W_V.{layer}").float())
    value = value + _value_bias(model, layer)
    value = value.repeat_interleave(model.n_heads // value.shape[0], dim=0)
    return torch.einsum("hd,hdm,rm->rh", value, model.weight(f"W_O.{layer}").float(), asked) * pattern.sum(-1)


def _value_bias(model: Model, layer: int) -> Tensor | float:
    try:
        return model.weight(f"b_V.{layer}").detach().float()
    except SiteError:
        return 0.0


def _direction(head: Readout, target: Target, device: torch.device) -> Float[Tensor, "row d_model"]:
    ids: Int[Tensor, "row token"] = target.ids.to(device)
    return torch.einsum("rt,rtm->rm", target.weights.to(device), head.directions(ids))
