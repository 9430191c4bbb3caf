"""What does it cost to treat the norms of a model as linear: to fold their gains, and to freeze their divisors?

    norm(x) = gain · centre(x) / scale(x) + bias

Every account that adds up contributions through a norm folds the linear part into what reads it and freezes the
divisor. The first is exact but for rounding. The second says that nothing acts by changing how long the stream is.

1. Fold: what each norm's reader would get of gain, centring, bias and divisor, read off the module, beside what it got;
   and the metric with all readers given the folded values.
2. Weaken each attention and each MLP by `step` (1: take it out) and see by how much the metric changes.
3. The same with one norm's divisor held at what it was, at all positions, and with all of them held. What is missing
   of the change is the error of the frozen account.
4. The divisor as a node of its own: set it, alone, to what it becomes when the part is weakened. What the metric does
   then is the effect that the part has through this node.

Kobayashi et al. (2021), Incorporating Residual and Normalization Layers into Analysis of Masked Language Models.
Misleads: the error belongs to the step. Frozen divisors are worst for large changes, and not exact for small ones
either, since a change along the stream is always taken back by the divisor. Norms between a part and the stream (Gemma
2, OLMo 2) are held like the others, and not folded: what they read is no site. Norms that stand in the stream itself
(BERT) leave nothing additive, and are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.edits import Edit, Scale, Set
from microtome.core.errors import FamilyError
from microtome.core.logits import LogitSelection, Metric
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Grid, Shape, Table
from microtome.core.site import Site
from microtome.data.metrics import LogitDifference, build
from microtome.data.observed import Observed, as_prompts
from microtome.data.pairs import Pairs
from microtome.data.prompts import Prompts
from microtome.models.linear_norm import read_norm
from microtome.models.model import Model
from microtome.models.run import Run
from microtome.models.sweep import Sweep, Variant, sweep

ALL: Final = "all"
"""Names all norms together."""

card = Card(
    name="frozen_norms",
    title="Error of folded and frozen norms",
    question="How wrong is an account that takes the norms of a model to be linear, and what acts through divisors?",
    steps=(
        "Fold each norm's gain, centring and bias, and compare what its reader gets, and the metric.",
        "Weaken each attention and MLP; see the metric change, with divisors as they come and with divisors held.",
        "Set a divisor alone to what it becomes: the effect through it as a node.",
    ),
    reference=(
        "Kobayashi et al. (2021), Incorporating Residual and Normalization Layers into Analysis of Masked Language "
        "Models"
    ),
    misleads=(
        "The error belongs to the size of the change and to these prompts: what moves a part further moves divisors "
        "further."
    ),
    needs="tokens",
    causal="intervention",
    locality="local",
    comprehensiveness="comprehensive",
)


class Config(base.Config):
    """Settings of frozen norms."""

    step: float = Field(1.0, gt=0, le=1, description="By what share each part is weakened; 1 takes it out.")
    each: bool = Field(
        True, description="Whether to hold and set each divisor by itself, or only all together."
    )


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`live [row, part]`: change of the metric when a part is weakened; `frozen [row, part, held]`: the same with one
    norm's divisor held, or all of them; `through [row, part, node]`: change by the divisor alone, as a node.
    `scale_change [part, norm]`: mean |new / old − 1| of the divisor. `fold_error [norm]`: largest difference between a
    folded norm and the module's, over its largest value; NaN between a part and the stream. Attribute `folded`: largest
    change of the metric with all norms folded. Without `each`, only all norms together are held, and there are no
    nodes."""

    def missed(self) -> xr.DataArray:
        """What freezing misses: mean |live − frozen| over mean |live|, `[part, held]`."""
        live = self.data["live"]
        return abs(live - self.data["frozen"]).mean("row") / abs(live).mean("row")

    def shapes(self) -> tuple[Shape, ...]:
        data, missed = self.data, self.missed()
        parts, held = (tuple(map(str, data[name].values)) for name in ("part", "held"))
        caption = f"{data.sizes['row']} prompts, each part weakened by {self.config['step']:.0%}."
        size = abs(data["live"]).mean()
        lost = {name: abs(data["live"] - data["frozen"].sel(held=name)).mean() / size for name in held}
        alone = abs(data["through"]).mean(("row", "part")) / size
        rows = tuple(
            (
                str(norm),
                float(data["fold_error"][at]),
                float(data["scale_change"][:, at].mean()),
                float(lost[norm]) if norm in lost else None,
                float(alone.sel(node=norm)) if norm in lost else None,
            )
            for at, norm in enumerate(data["norm"].values)
        )
        effects = (
            (
                name,
                float(data["live"][:, at].mean()),
                float(data["frozen"][:, at, -1].mean()),
                float(missed[at, -1]),
            )
            for at, name in enumerate(parts)
        )
        return (
            Table(
                "Norms taken to be linear",
                (
                    "norm",
                    "error of folding",
                    "divisor moves by",
                    "freezing misses",
                    "through the divisor alone",
                ),
                (*rows, (ALL, None, None, float(lost[ALL]), None)),
                f"{caption} The last two as shares of the mean size of an effect. All folded, the metric changes by "
                f"{data.attrs['folded']:.1e}.",
                self.notes,
            ),
            Grid(
                "What freezing misses",
                missed.values,
                "part",
                parts,
                "held",
                held,
                "of the effect",
                caption=caption,
            ),
            Table(
                "Effects with all norms frozen",
                ("part", "live", "frozen", "missed"),
                tuple(effects),
                f"{caption} Mean change of the metric; missed is the mean over prompts of the difference's size.",
            ),
        )


@torch.no_grad()
def run(model: Model, data: Observed, config: Config | None = None) -> Result:
    """data: pairs (their logit difference), or prompts, texts or ids (the model's first choice over its second).

    Raises `FamilyError` for a model none of whose norms has a divisor that can be held.
    """
    config = config or Config()
    prompts = as_prompts(data, model.tokenizer)
    norms = _norms(model)
    parts = [
        Site(name, layer)
        for layer in range(model.n_layers)
        for name in ("attn_out", "mlp_out")
        if model.has(Site(name, layer))
    ]
    with measure() as recorder:
        sites = dict.fromkeys([*norms, *(site for norm in norms for site in _ends(model, norm) if site)])
        plain = model.run(prompts.tokens, list(sites), logits=LogitSelection((-1,)), mask=prompts.mask)
        recorder.add(passes=1)
        metric = _metric(data, plain)

        def swept(variants: Sequence[Sequence[Edit]], read: Sequence[Site] = ()) -> Sweep:
            asked = [Variant(tuple(edits)) for edits in variants]
            found = sweep(model, prompts.tokens, asked, metric, read=read, mask=prompts.mask)
            recorder.add(found.cost.passes, found.cost.flops)
            return found

        weaker = [Scale(part, factor=1 - config.step) for part in parts]
        live = swept([[one] for one in weaker], norms)
        held = [Set(norm, value=plain[norm]) for norm in norms]
        ways = [*([one] for one in held if config.each), held]
        errors, edits = _folded(model, norms, plain)
        frozen = swept([edits, *([one, *way] for way in ways for one in weaker)])
        nodes = norms if config.each else []
        moved = [[Set(norm, value=value)] for norm in nodes for value in live.values[norm]]
        through = (swept(moved).metric - live.base).unflatten(0, (len(nodes), -1)) if nodes else None
    moves = [_moved(live.values[norm] / plain[norm], prompts) for norm in norms]
    return Result.of(
        card,
        xr.Dataset(
            {
                "live": (("row", "part"), (live.metric - live.base).mT.numpy()),
                "frozen": (
                    ("row", "part", "held"),
                    (frozen.metric[1:] - live.base).unflatten(0, (len(ways), -1)).permute(2, 1, 0).numpy(),
                ),
                "through": (
                    ("row", "part", "node"),
                    np.zeros((len(live.base), len(parts), 0))
                    if through is None
                    else through.permute(2, 1, 0).numpy(),
                ),
                "scale_change": (("part", "norm"), torch.stack(moves, -1).numpy()),
                "fold_error": ("norm", np.array(errors)),
            },
            {
                "row": list(prompts.texts),
                "part": list(map(str, parts)),
                "norm": list(map(str, norms)),
                "node": list(map(str, nodes)),
                "held": [*map(str, nodes), ALL],
            },
            {"folded": float((frozen.metric[0] - live.base).abs().max())},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), prompts.hash),
        recorder.cost(),
    )


def _norms(model: Model) -> list[Site]:
    """The divisors that are sites, in the order in which a pass meets them."""
    names = ("attn_norm_scale", "attn_out_norm_scale", "mlp_norm_scale", "mlp_out_norm_scale")
    every = [Site(name, layer) for layer in range(model.n_layers) for name in names]
    found = [site for site in (*every, Site("final_norm_scale")) if model.has(site)]
    if not found:
        raise FamilyError(f"{model.name} has no norm beside its stream, so none is frozen")
    return found


def _ends(model: Model, norm: Site) -> tuple[Site | None, Site | None]:
    """The stream that a norm reads, and where what it makes is read; None where that is no site."""
    if norm.layer is None:
        return Site("resid_post", model.n_layers - 1), None
    if norm.part == "attn_norm_scale":
        return Site("resid_pre", norm.layer), Site("attn_in", norm.layer)
    if norm.part == "mlp_norm_scale":
        between = Site("resid_mid", norm.layer)
        return between if model.has(between) else Site("resid_pre", norm.layer), Site("mlp_in", norm.layer)
    return None, None


def _folded(model: Model, norms: Sequence[Site], plain: Run) -> tuple[list[float], list[Edit]]:
    """How far each norm, taken apart, is from the module itself; and edits that put what it makes in its place."""
    errors: list[float] = []
    edits: list[Edit] = []
    for site in norms:
        stream, reader = _ends(model, site)
        if stream is None:
            errors.append(float("nan"))
            continue
        module = model.anatomy.role(site.part.removesuffix("_scale"), site.layer)
        norm = read_norm(module, model.sizes["d_model"], model.device)
        made = norm.push(plain[stream], plain[site].float()) + norm.bias
        real = norm(plain[stream]) if reader is None else plain[reader].float()
        errors.append(float((made - real).abs().max() / real.abs().max().clamp_min(1e-30)))
        if reader is not None:
            edits.append(Set(reader, value=made.to(plain[reader].dtype)))
    return errors, edits


def _metric(data: Observed, plain: Run) -> Metric:
    if isinstance(data, Pairs):
        return build("logit-difference", data)
    assert plain.logits is not None
    best = plain.logits[:, -1].topk(2).indices.tolist()
    return LogitDifference(tuple((first,) for first, _ in best), tuple((second,) for _, second in best))


def _moved(ratio: Float[Tensor, "part row column 1"], prompts: Prompts) -> Float[Tensor, " part"]:
    """Mean over real tokens of how far a divisor is from what it was."""
    real = torch.ones_like(prompts.tokens) if prompts.mask is None else prompts.mask
    share = real.to(ratio) / real.sum()
    return ((ratio[..., 0] - 1).abs() * share).sum((1, 2))
