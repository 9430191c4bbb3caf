"""Is the map of this model true? The untouched model is the judge, before any self-consistency.

1. Logits of a pass that reads every site equal the untouched forward's, bit for bit.
2. The stream is rebuilt: each block's output is the next block's input; attention and MLP add up to it.
3. What the heads write sums to the attention's projection; the pattern explains the kernel's `z` (checked on reading).
4. The head rebuilds the logits from the last stream.

The short form looks at the first and last block of each stack on a few random tokens; `thorough=True` at all blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from microtome.core.errors import FamilyError
from microtome.core.site import Site
from microtome.models.anatomy import Anatomy
from microtome.models.inputs import Inputs

if TYPE_CHECKING:
    from microtome.models.model import Model


@dataclass(frozen=True)
class Identity:
    """One identity of the map, and how far it is from holding: largest difference over largest value."""

    name: str
    layer: int | None
    error: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed


def check_map(model: "Model", *, thorough: bool = False, columns: int = 6) -> list[Identity]:
    """Test the map of a model against its untouched forward. Returns the identities that were tested.

    Raises `FamilyError` naming the identity that fails, by how much, and what to do.
    """
    found = identities(model, thorough=thorough, columns=columns)
    broken = [identity for identity in found if not identity.holds]
    if broken:
        worst = max(broken, key=lambda identity: identity.error / max(identity.allowed, 1e-30))
        where = "" if worst.layer is None else f" in layer {worst.layer}"
        raise FamilyError(
            f"the map {model.anatomy.family.name!r} is not true of this {type(model.module).__name__}: "
            f"{worst.name}{where} is off by {worst.error:.1e} (allowed {worst.allowed:.0e}). Give a map that fits, "
            "load(module, family=Family(...)), or address modules by path, load(module, family=None)"
        )
    return found


@torch.no_grad()
def identities(model: "Model", *, thorough: bool = False, columns: int = 6) -> list[Identity]:
    """Every identity and its error, on random tokens."""
    inputs = _probe(model, columns)
    found: list[Identity] = []
    tolerance = 1e-5 if model.dtype == torch.float32 else 32 * torch.finfo(model.dtype).eps
    untouched = model.call(inputs)
    for stack, anatomy in model.anatomies.items():
        layers = range(len(anatomy.blocks)) if thorough else sorted({0, len(anatomy.blocks) - 1})
        reads = [
            s
            for s in model.sites()
            if s.stack == stack and (s.layer is None or s.layer in layers) and s.part != "logits"
        ]
        reads += [
            Site("resid_pre", n + 1, stack=stack)
            for n in layers
            if n + 1 < len(anatomy.blocks) and n + 1 not in layers
        ]
        seen = model.run(
            inputs.kwargs, read=reads, logits=not stack and _has_logits(model), check_finite=False
        )
        if seen.logits is not None:
            same = torch.equal(seen.logits, untouched.logits)
            gap = 0.0 if same else _gap(seen.logits, untouched.logits)
            found.append(Identity("logits against the untouched model", None, gap if not same else 0.0, 0.0))
            last = seen.values.get(Site("resid_post", len(anatomy.blocks) - 1))
            if last is not None:
                rebuilt = model.unembed(last)
                found.append(
                    Identity("unembedding of the last stream", None, _gap(rebuilt, seen.logits), tolerance)
                )
        for layer in layers:
            found += _block(
                anatomy,
                layer,
                lambda part, n=layer, st=stack: seen.values.get(Site(part, n, stack=st)),
                tolerance,
            )
            after, before = (
                seen.values.get(Site("resid_post", layer, stack=stack)),
                seen.values.get(Site("resid_pre", layer + 1, stack=stack)),
            )
            if after is not None and before is not None:
                found.append(
                    Identity("resid_post against the next resid_pre", layer, _gap(after, before), 0.0)
                )
    return found


def _block(
    anatomy: Anatomy, layer: int, value: Callable[[str], Tensor | None], tolerance: float
) -> list[Identity]:
    family = anatomy.family
    pre, mid, post = value("resid_pre"), value("resid_mid"), value("resid_post")
    attn, mlp, result = value("attn_out"), value("mlp_out"), value("result")
    assert pre is not None and post is not None and attn is not None and result is not None
    found = []
    if family.residual == "parallel" and mlp is not None:
        found.append(
            Identity(
                "resid_pre + attn_out + mlp_out = resid_post", layer, _gap(pre + attn + mlp, post), tolerance
            )
        )
    if family.residual == "sequential" and mid is not None:
        if not family.cross:
            found.append(
                Identity("resid_pre + attn_out = resid_mid", layer, _gap(pre + attn, mid), tolerance)
            )
        if mlp is not None:
            found.append(
                Identity("resid_mid + mlp_out = resid_post", layer, _gap(mid + mlp, post), tolerance)
            )
    if not family.attn_adds:
        bias = getattr(anatomy.role("o", layer), "bias", None)
        total = result.sum(dim=2) if bias is None else result.sum(dim=2) + bias
        found.append(
            Identity("the heads' results (and bias) = attn_out", layer, _gap(total, attn), tolerance)
        )
    return found


def _gap(one: Tensor, two: Tensor) -> float:
    return float((one.float() - two.float()).abs().max() / two.float().abs().max().clamp_min(1e-6))


def _has_logits(model: "Model") -> bool:
    return model.anatomy.role("head") is not None


def _probe(model: "Model", columns: int) -> Inputs:
    """Random ids, the same every time, that any text model takes."""
    generator = torch.Generator().manual_seed(0)
    limit = model.sizes["n_positions"] or columns
    ids = torch.randint(model.sizes["d_vocab"], (2, min(columns, limit)), generator=generator)
    if "encoder" in model.anatomies:
        return model.inputs({"input_ids": ids, "decoder_input_ids": ids[:, : max(1, columns // 2)]})
    return model.inputs(ids)
