"""Does this part make that neuron fire, and by this weight? Claims about single weights, tested without touching them.

    microtome run weight_claims --text prompts.txt --set 'claims=["mlp_post.0.u3 drives mlp_pre.1.u7 through W_in.1"]'

1. A claim names a source (a neuron, a head, an MLP, the embedding), a neuron or token that it drives (or `silences`),
   and the weight by which the target reads the source. It predicts two numbers before anything is run.
2. The weight's path alone is cut: what the source adds over its mean is taken from what the target reads, as the target
   reads it, norm and all. Nothing else is changed, the weights least of all.
3. Where the source is active, the target must fall (or rise), and by more than if a random other source of the same
   kind were cut: the first prediction.
4. The source is ablated as a whole. Of what that does to the target, the path must be at least the share predicted: the
   second. What is left of the effect goes around the weight.

A target's path is direct: source to stream to target. Reference: Elhage et al. (2021), A Mathematical Framework for
Transformer Circuits, for paths through the stream. Misleads: the mean is what a source adds to every input; a source
that is always as active shows nothing. Claims hold on these inputs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.claim import Claim, Evidence, Prediction, Tested
from microtome.core.cost import Recorder, measure
from microtome.core.edits import Add, Set
from microtome.core.errors import FamilyError, InputError, SiteError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Shape, Table
from microtome.core.site import Site
from microtome.core.weight import Weight
from microtome.data.observed import Observed, as_prompts
from microtome.data.prompts import Prompts
from microtome.models.model import Model
from microtome.models.stream_parts import behind, require_additive

card = Card(
    name="weight_claims",
    title="Claims about weights",
    question="Does X, when active, drive Y through weight Z?",
    steps=(
        "Read X and Y; find the places where X is most active.",
        "Take what X adds over its mean from what Y reads through the weight, and nothing else.",
        "Compare with cutting random other sources, and with ablating X as a whole.",
        "Tell whether both predictions of the claim came true.",
    ),
    reference="Elhage et al. 2021, A Mathematical Framework for Transformer Circuits",
    misleads="Only what differs from the source's mean is seen, and only on these inputs.",
    needs="tokens",
    causal="intervention",
    locality="local",
)
_GRAMMAR = re.compile(
    r"(?P<source>\S+)\s+(?P<verb>drives|silences)\s+(?P<target>\S+)\s+through\s+(?P<weight>\S+)"
)
_READ_BY = {"mlp_pre": ("W_in", "W_gate"), "mlp_post": ("W_in", "W_gate"), "logits": ("W_U",)}


@dataclass(frozen=True)
class WeightClaim:
    """Source X drives (or silences) target Y through weight Z. Written `X drives Y through Z`.

    Raises `InputError` for a target that is no single neuron or token, a source of several heads or neurons, and a
    weight that the target does not read with; `SiteError` for what is no address.
    """

    source: Site
    target: Site
    weight: Weight
    drives: bool = True

    @staticmethod
    def parse(text: str) -> "WeightClaim":
        """Read the written form. Raises `InputError` showing it."""
        match = _GRAMMAR.fullmatch(text.strip())
        if match is None:
            raise InputError(
                f"{text!r} is no claim about a weight; write: mlp_post.0.u3 drives mlp_pre.1.u7 through W_in.1"
            )
        return WeightClaim(
            Site.parse(match["source"]),
            Site.parse(match["target"]),
            Weight.parse(match["weight"]),
            match["verb"] == "drives",
        )

    def __post_init__(self) -> None:
        kinds = {"z": self.source.heads, "mlp_post": self.source.units, "mlp_out": (0,), "embed": (0,)}
        chosen = kinds.get(self.source.part)
        if chosen is None or len(chosen) != 1 or self.source.positions is not None:
            raise InputError(
                f"{self.source} is no source: write one head z.0.h1, one neuron mlp_post.0.u3, mlp_out.0 or embed"
            )
        units = self.target.units
        if (
            self.target.part not in _READ_BY
            or units is None
            or len(units) != 1
            or self.target.positions is not None
        ):
            raise InputError(
                f"{self.target} is no target: write one neuron mlp_pre.1.u7 or mlp_post.1.u7, or one token logits.u5"
            )
        if self.weight.name not in _READ_BY[self.target.part] or self.weight.layer != self.target.layer:
            raise InputError(
                f"{self.target} is not read with {self.weight}; it reads the stream with "
                f"{' and '.join(_READ_BY[self.target.part])} of its own layer"
            )
        if self.source.depth >= self.target.depth:
            raise InputError(
                f"{self.source} stands behind {self.target} and cannot drive it; turn the claim around"
            )

    def __str__(self) -> str:
        return f"{self.source} {'drives' if self.drives else 'silences'} {self.target} through {self.weight}"

    def claim(self) -> Claim:
        """As the general form of a claim."""
        return Claim(str(self), (str(self.source), str(self.target), str(self.weight)), "these inputs")


class Config(base.Config):
    """What is claimed, and where a source counts as active."""

    claims: tuple[str, ...] = Field(
        (), description="Claims: SOURCE drives (or silences) TARGET through WEIGHT."
    )
    active: float = Field(0.9, gt=0, lt=1, description="Quantile of its size above which a source is active.")
    least: float = Field(0.5, description="Share of the source's whole effect that the path must have.")
    controls: int = Field(8, ge=1, description="Random other sources of the same kind, at most.")
    seed: base.Seed = Field(0, description="Seed of the other sources.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """By `claim`: `path`, how much the target falls at the `n` active places when the path alone is cut (a rise counts
    for one that silences); `whole`, when the source is ablated; `share`, of the latter in the former; `control`, the
    mean over other sources of the size of `path`; `holds_path`, `holds_share`: whether the predictions came true;
    `divergence`: KL of the outputs in nats, at the last place, when the path alone is cut everywhere.
    """

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        columns = ("path", "control", "holds_path", "whole", "share", "holds_share", "divergence", "n")
        rows = tuple(
            (name, *(data[column].values[i].item() for column in columns))
            for i, name in enumerate(data["claim"].values.tolist())
        )
        titles = (
            "claim",
            "by the path",
            "other sources",
            "holds",
            "by the source",
            "share",
            "holds",
            "KL",
            "places",
        )
        return (Table("weights as claimed", titles, rows, caption="change of the target at active places"),)

    def tested(self) -> tuple[Tested, ...]:
        """The predictions of every claim, with their outcomes."""
        found = []
        for i, name in enumerate(self.data["claim"].values.tolist()):
            one = {column: self.data[column].values[i].item() for column in ("path", "control", "share", "n")}
            data = self.provenance.data_hash
            for prediction, value, control in zip(
                predictions(WeightClaim.parse(name), data, self.config["least"]),
                (one["path"], one["share"]),
                (one["control"], None),
                strict=True,
            ):
                evidence = Evidence(value, one["n"], "interventional", data, control_value=control)
                found.append(Tested(prediction, evidence, prediction.hit(value, control)))
        return tuple(found)


def predictions(claim: WeightClaim, data_hash: str, least: float) -> tuple[Prediction, Prediction]:
    """What a claim foretells: that the path moves the target more than others would, and that it is most of the way."""
    key = claim.claim().key
    change = "falls" if claim.drives else "rises"
    return (
        Prediction(
            key,
            f"how much {claim.target} {change} when {claim.source} is cut from it through {claim.weight}",
            data_hash,
            low=0.0,
            against="above",
            control="other sources of the same kind",
        ),
        Prediction(
            key, f"share of that in what ablating {claim.source} does to {claim.target}", data_hash, low=least
        ),
    )


def run(model: Model, data: Observed, config: Config | None = None) -> Result:
    """Test every claim. Raises `InputError` for none and for a source that never varies, `FamilyError` where the stream
    is not a sum of what parts write, `SiteError` for what this network does not have."""
    config = config or Config()
    if not config.claims:
        raise InputError("no claim is made; write claims: mlp_post.0.u3 drives mlp_pre.1.u7 through W_in.1")
    claims = [WeightClaim.parse(text) for text in config.claims]
    require_additive(model)
    prompts = as_prompts(data, model.tokenizer)
    with measure() as recorder:
        rows = [_tested(model, prompts, claim, config, recorder) for claim in claims]
    arrays = {name: ("claim", np.array([row[name] for row in rows])) for name in rows[0]}
    return Result.of(
        card,
        xr.Dataset(arrays, {"claim": [str(claim) for claim in claims]}),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), prompts.hash),
        recorder.cost(),
    )


def _tested(
    model: Model, data: Prompts, claim: WeightClaim, config: Config, recorder: Recorder
) -> dict[str, float | int | bool]:
    real = torch.ones_like(data.tokens, dtype=torch.bool) if data.mask is None else data.mask.bool()
    own = _cut(model, data, claim, claim.source, real, recorder)
    size = own.over.norm(dim=-1)
    if not float(size[real].max()) > 0:
        raise InputError(
            f"{claim.source} is the same at every place of these inputs; give inputs where it varies"
        )
    active = real & (size >= size[real].quantile(config.active)) & (size > 0)
    sign = 1.0 if claim.drives else -1.0
    path = sign * float((own.target - own.without)[active].double().mean())
    ablated = model.run(
        data.tokens, [claim.target], [Set(claim.source, value=own.mean, origin="mean")], mask=data.mask
    )[claim.target][..., 0]
    whole = sign * float((own.target - ablated)[active].double().mean())
    others = _others(model, claim.source, config)
    cut = [_cut(model, data, claim, other, real, recorder) for other in others]
    control = float(np.mean([abs(float((own.target - one.without)[active].double().mean())) for one in cut]))
    recorder.add(passes=3)
    share = path / whole if whole else float("nan")
    first, second = predictions(claim, data.hash, config.least)
    return {
        "path": path,
        "whole": whole,
        "share": share,
        "control": control,
        "holds_path": first.hit(path, control),
        "holds_share": second.hit(share, None),
        "divergence": _divergence(model, data, claim.target, own.without),
        "n": int(active.sum()),
    }


@dataclass(frozen=True, eq=False)
class _Cut:
    """A source cut from a target. over: what the source writes over its mean; mean: of the source's own value."""

    target: Float[Tensor, "row position"]
    without: Float[Tensor, "row position"]
    over: Float[Tensor, "row position d_model"]
    mean: Tensor


def _cut(
    model: Model,
    data: Prompts,
    claim: WeightClaim,
    source: Site,
    real: Bool[Tensor, "row position"],
    recorder: Recorder,
) -> _Cut:
    """The target with the source's path to it taken out, everything else as it was."""
    run = model.run(data.tokens, [source, claim.target, *_result(source)], mask=data.mask)
    written = _written(model, source, run[source], run[_result(source)[0]] if _result(source) else None)
    over = written - written[real].mean(0)
    stream = _stream(model, claim.target)
    without = model.run(data.tokens, [claim.target], [Add(stream, vector=-over)], mask=data.mask)[
        claim.target
    ]
    recorder.add(passes=2)
    return _Cut(run[claim.target][..., 0], without[..., 0], over, run[source][real].mean(0))


def _result(source: Site) -> list[Site]:
    return [Site("result", source.layer, heads=source.heads)] if source.part == "z" else []


def _written(
    model: Model, source: Site, value: Tensor, headed: Tensor | None
) -> Float[Tensor, "row position d_model"]:
    """What a source adds to the stream at each place. Raises `FamilyError` where a norm stands between."""
    if source.part == "embed":
        return value
    assert source.layer is not None
    which = "attn" if source.part == "z" else "mlp"
    if behind(model.anatomy, source.layer, which) is not None:
        raise FamilyError(
            f"in {model.name} a norm stands behind the {which} of layer {source.layer}, so what {source} adds "
            "depends on the others; claims about weights need a model without one"
        )
    if headed is not None:
        return headed.sum(2)
    if source.part == "mlp_out":
        return value
    return value * model.weight(Weight("W_out", source.layer))[source.units[0]].detach()  # type: ignore[index]


def _stream(model: Model, target: Site) -> Site:
    """The stream that a target reads."""
    if target.part == "logits":
        return Site("resid_post", model.n_layers - 1)
    mid = Site("resid_mid", target.layer)
    return (
        mid
        if model.anatomy.family.residual == "sequential" and model.has(mid)
        else Site("resid_pre", target.layer)
    )


def _others(model: Model, source: Site, config: Config) -> Sequence[Site]:
    """Random other sources of the same kind, in the same layer if it has some."""
    layers = range(model.n_layers)
    if source.part == "embed":
        return [Site("mlp_out", 0)] if model.has(Site("mlp_out", 0)) else [Site("z", 0, heads=(0,))]
    if source.part == "mlp_out":
        found = [
            Site("mlp_out", layer)
            for layer in layers
            if layer != source.layer and layer < (source.layer or 0)
        ]
        found = found or [Site("embed")]
    elif source.part == "z":
        found = [source.head(head) for head in range(model.n_heads) if (head,) != source.heads]
    else:
        found = [source.unit(unit) for unit in range(model.sizes["d_mlp"]) if (unit,) != source.units]
    if not found:
        raise SiteError(f"{source} is the only one of its kind; there is no other source to compare it with")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(config.seed))
    return [found[i] for i in order[: config.controls].tolist()]


def _divergence(model: Model, data: Prompts, target: Site, without: Float[Tensor, "row position"]) -> float:
    """KL in nats between the outputs at the last place, with the target as it is and with the path to it cut."""
    last = Site("logits", positions=(-1,))
    if target.part == "logits":
        return float("nan")
    plain = model.run(data.tokens, [last], mask=data.mask)[last].log_softmax(-1)
    moved = model.run(data.tokens, [last], [Set(target, value=without[..., None])], mask=data.mask)[
        last
    ].log_softmax(-1)
    return float((plain.exp() * (plain - moved)).sum(-1).mean())
