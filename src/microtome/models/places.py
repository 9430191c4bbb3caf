"""How is a site reached? Every part outside the attention kernel is a module's input or output, seen through a view.

A `Place` names a module, whether the value is its input or its output, and how the raw tensor there is read in
canonical layout and put back. `place(anatomy, site)` finds it, or says why this model has no such site.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from microtome.core.errors import SiteError
from microtome.core.site import Site
from microtome.models.anatomy import Anatomy, submodule
from microtome.models.batch import Batch
from microtome.models.weights import by_head, output_by_head, parameter


class Call:
    """One call of a module, seen from a hook: its arguments, and its output once there is one."""

    __slots__ = ("args", "kwargs", "module", "output")

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None):
        self.module, self.args, self.kwargs, self.output = module, args, kwargs, output

    @property
    def input(self) -> Tensor:
        found = (
            self.args[0]
            if self.args
            else self.kwargs.get("hidden_states", next(iter(self.kwargs.values()), None))
        )
        if not isinstance(found, Tensor):
            raise SiteError(
                f"the first input of {type(self.module).__name__} is {type(found).__name__}, not a tensor"
            )
        return found

    @input.setter
    def input(self, value: Tensor) -> None:
        if self.args:
            self.args = (value, *self.args[1:])
        else:
            name = "hidden_states" if "hidden_states" in self.kwargs else next(iter(self.kwargs))
            self.kwargs = self.kwargs | {name: value}

    @property
    def result(self) -> Tensor:
        found = self.output
        if isinstance(found, (tuple, list)):
            found = found[0]
        elif not isinstance(found, Tensor) and hasattr(found, "logits"):
            found = found.logits
        if not isinstance(found, Tensor):
            raise SiteError(
                f"the output of {type(self.module).__name__} is {type(found).__name__}, not a tensor"
            )
        return found

    @result.setter
    def result(self, value: Tensor) -> None:
        if isinstance(self.output, (tuple, list)):
            self.output = type(self.output)((value, *self.output[1:]))
        elif not isinstance(self.output, Tensor) and hasattr(self.output, "logits"):
            self.output.logits = value
        else:
            self.output = value


@dataclass(frozen=True)
class Place:
    """A module's input or output as it is: `[row, position, unit]`, or whatever a module by path gives.

    in_place: write into the raw tensor itself, for a value that the block uses twice (the stream between attention
        and MLP feeds the norm and the skip connection).
    recomputes: what follows is computed from the value by `store`, so a gradient needs it to be stored.
    """

    module: nn.Module
    side: Literal["in", "out"]
    in_place: bool = False
    recomputes = False

    def raw(self, call: Call) -> Tensor:
        return call.input if self.side == "in" else call.result

    def canonical(self, raw: Tensor, call: Call, batch: Batch) -> Tensor:
        return raw

    def store(self, value: Tensor, call: Call, batch: Batch) -> None:
        """Put a canonical value back."""
        raw = self.raw(call)
        new = self.laid_out(value, raw)
        if self.in_place:
            raw.copy_(new)
        elif self.side == "in":
            call.input = new
        else:
            call.result = new

    def laid_out(self, value: Tensor, raw: Tensor) -> Tensor:
        """The canonical value in the layout of the raw tensor."""
        return value.reshape(raw.shape) if value.numel() == raw.numel() else value

    def gradient(self, gradient: Tensor, raw: Tensor, call: Call, batch: Batch) -> Tensor:
        """The gradient by the raw tensor as one by the canonical value."""
        return self.canonical(gradient, call, batch)


class Stream(Place):
    """`[batch, position, unit]`, also where a module sees the positions of all rows in one axis, or one row for all."""

    def canonical(self, raw: Tensor, call: Call, batch: Batch) -> Tensor:
        if raw.dim() == 2:
            return raw.view(batch.rows, -1, raw.shape[-1])
        return raw if raw.shape[0] == batch.rows else raw.expand(batch.rows, -1, -1)


@dataclass(frozen=True)
class Heads(Place):
    """`[batch, position, head, d_head]`, kept flat by the model."""

    heads: int = 1

    def canonical(self, raw: Tensor, call: Call, batch: Batch) -> Tensor:
        return raw.reshape(batch.rows, -1, self.heads, raw.shape[-1] // self.heads)


@dataclass(frozen=True)
class Projected(Place):
    """Queries, keys or values as projected: `[batch, position, head, d_head]` within what the projector computes."""

    anatomy: Anatomy | None = None
    name: str = "Q"

    def canonical(self, raw: Tensor, call: Call, batch: Batch) -> Tensor:
        assert self.anatomy is not None
        return by_head(self.anatomy, raw.view(batch.rows, -1, raw.shape[-1]), self.name)

    def laid_out(self, value: Tensor, raw: Tensor) -> Tensor:
        assert self.anatomy is not None
        new = raw.clone()
        part = by_head(self.anatomy, new, self.name)
        part.copy_(value.view(part.shape))
        return new


@dataclass(frozen=True)
class Half(Place):
    """The first half of a fused projection: the gate."""

    def canonical(self, raw: Tensor, call: Call, batch: Batch) -> Tensor:
        return raw.chunk(2, dim=-1)[0]

    def laid_out(self, value: Tensor, raw: Tensor) -> Tensor:
        return torch.cat([value, raw.chunk(2, dim=-1)[1]], dim=-1)


@dataclass(frozen=True)
class HeadResult(Place):
    """What each head writes: computed from the input of the output projection when asked for, edited by difference."""

    anatomy: Anatomy | None = None
    layer: int = 0

    def canonical(self, raw: Tensor, call: Call, batch: Batch) -> Tensor:
        assert self.anatomy is not None
        z = call.input.reshape(batch.rows, -1, self.anatomy.sizes["n_heads"], self.anatomy.sizes["d_head"])
        return torch.einsum("bphd,hdm->bphm", z, output_by_head(self.anatomy, self.layer))

    def store(self, value: Tensor, call: Call, batch: Batch) -> None:
        old = self.canonical(call.result, call, batch)
        call.result = call.result + (value - old).sum(dim=2).reshape(call.result.shape)

    def gradient(self, gradient: Tensor, raw: Tensor, call: Call, batch: Batch) -> Tensor:
        assert self.anatomy is not None
        whole = gradient.reshape(batch.rows, -1, 1, gradient.shape[-1])
        return whole.expand(-1, -1, self.anatomy.sizes["n_heads"], -1)


@dataclass(frozen=True)
class NormScale(Place):
    """The divisor of a norm: the root of the variance (where it centres) or of the mean square, epsilon included."""

    eps: float = 1e-5
    centred: bool = True
    recomputes = True

    def canonical(self, raw: Tensor, call: Call, batch: Batch) -> Tensor:
        return self._scale(call, batch)

    def _scale(self, call: Call, batch: Batch) -> Tensor:
        value = call.input.to(torch.promote_types(call.input.dtype, torch.float32))
        if self.centred:
            value = value - value.mean(dim=-1, keepdim=True)
        scale = (value.pow(2).mean(dim=-1, keepdim=True) + self._eps(call.module)).sqrt()
        return scale.view(batch.rows, -1, 1)

    def _eps(self, module: nn.Module) -> float:
        return float(getattr(module, "eps", getattr(module, "variance_epsilon", self.eps)))

    def store(self, value: Tensor, call: Call, batch: Batch) -> None:
        raw = call.result
        bias = parameter(call.module, "bias")
        ratio = (self._scale(call, batch) / value).reshape(*raw.shape[:-1], 1).to(raw.dtype)
        call.result = raw * ratio if bias is None else (raw - bias) * ratio + bias


@dataclass(frozen=True)
class Router(Place):
    """Routing logits of a top-k router that returns (logits, weights, choices); edits choose the experts anew."""

    recomputes = True

    def canonical(self, raw: Tensor, call: Call, batch: Batch) -> Tensor:
        return raw.view(batch.rows, -1, raw.shape[-1])

    def store(self, value: Tensor, call: Call, batch: Batch) -> None:
        logits = value.reshape(call.result.shape)
        weights, choices = torch.topk(torch.softmax(logits.float(), dim=-1), int(call.module.top_k), dim=-1)  # type: ignore[arg-type]
        weights = (weights / weights.sum(dim=-1, keepdim=True)).to(call.output[1].dtype)
        call.output = (logits, weights, choices)


def place(anatomy: Anatomy, site: Site) -> Place:
    """Where the whole site stands in this model. Raises `SiteError` if the model has no such part or layer."""
    layer = site.layer
    if layer is not None and not 0 <= layer < len(anatomy.blocks):
        raise SiteError(
            f"{site}: layer {layer} is out of range; there are {len(anatomy.blocks)} (0 … {len(anatomy.blocks) - 1})"
        )
    family = anatomy.family
    block = anatomy.blocks[layer] if layer is not None else anatomy.module
    match site.part:
        case "embed" | "pos_embed":
            return Stream(anatomy.need(site.part, site), "out")
        case "resid_pre":
            return Stream(block, "in")
        case "resid_post":
            return Stream(block, "out")
        case "attn_in":
            return Stream(anatomy.need("attn", site), "in")
        case "q_proj" | "k_proj" | "v_proj":
            name = site.part[0]
            module = anatomy.need("qkv" if family.qkv else name, site)
            return Projected(module, "out", anatomy=anatomy, name=name.upper())
        case "z":
            return Heads(anatomy.need("o", site), "in", heads=anatomy.sizes["n_heads"])
        case "result":
            assert layer is not None
            return HeadResult(anatomy.need("o", site), "out", anatomy=anatomy, layer=layer)
        case "attn_out":
            return Stream(anatomy.need("attn_adds" if family.attn_adds else "o", site), "out")
        case "resid_mid":
            return _resid_mid(anatomy, site)
        case "attn_norm_scale" | "mlp_norm_scale" | "final_norm_scale":
            role = site.part.removesuffix("_scale")
            module = anatomy.need(role, site)
            return NormScale(module, "out", eps=anatomy.norm_eps, centred=anatomy.is_centred(role, layer))
        case "attn_out_norm_scale" | "mlp_out_norm_scale":
            return _norm_behind(anatomy, site)
        case "mlp_in":
            return Stream(anatomy.need("mlp" if family.mlp else "mlp_up", site), "in")
        case "mlp_pre" if family.gate_up:
            return Half(anatomy.need("gate_up", site), "out")
        case "mlp_pre":
            return Stream(anatomy.need("mlp_gate" if family.mlp_gate else "mlp_up", site), "out")
        case "mlp_post":
            return Stream(anatomy.need("mlp_down", site), "in")
        case "mlp_out":
            return Stream(anatomy.need(_mlp_writer(anatomy), site), "out")
        case "router":
            return Router(anatomy.need("router", site), "out")
        case "logits":
            return Place(anatomy.module, "out")
    raise SiteError(f"{site} is not the input or output of a module")


def _norm_behind(anatomy: Anatomy, site: Site) -> NormScale:
    which = site.part.partition("_")[0]
    adder = anatomy.need(f"{which}_adds", site)
    if adder is anatomy.role("o" if which == "attn" else "mlp_down", site.layer):
        raise SiteError(f"{site.whole}: in the {anatomy.family.name} family no norm stands there")
    centred = anatomy.is_centred(f"{which}_adds", site.layer)
    return NormScale(adder, "out", eps=anatomy.norm_eps, centred=centred)


def _mlp_writer(anatomy: Anatomy) -> str:
    family = anatomy.family
    return "mlp_adds" if family.mlp_adds else "mlp" if family.mlp else "mlp_down"


def _resid_mid(anatomy: Anatomy, site: Site) -> Place:
    family = anatomy.family
    if family.residual == "parallel":
        raise SiteError(
            f"{site.whole}: in the {family.name} family attention and MLP run in parallel, so there is no stream "
            "between them; use resid_pre and attn_out"
        )
    if family.mid:
        return Stream(anatomy.need("mid", site), "out")
    reader = "mlp_norm" if family.mlp_norm else "mlp" if family.mlp else "mlp_up"
    return Stream(anatomy.need(reader, site), "in", in_place=True)


def path_place(root: nn.Module, site: Site) -> Place:
    """Where a module by path stands. Raises `SiteError` naming the nearest path that exists."""
    found = submodule(root, site.path) if site.path else root
    if found is None:
        known = site.path
        while known and submodule(root, known) is None:
            known = known.rpartition(".")[0]
        parent = submodule(root, known) if known else root
        children = ", ".join(name for name, _ in parent.named_children()) if parent is not None else ""
        raise SiteError(
            f"{site}: no module {site.path!r}; {known or 'the model'} has {children or 'no children'}"
        )
    return Place(found, "in" if site.side == "in" else "out")
