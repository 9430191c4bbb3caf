"""Is the map of this model true? The untouched model is the judge, before any self-consistency.

1. Logits of a pass that reads every site equal the untouched forward's, bit for bit.
2. The stream is rebuilt: each block's output is the next block's input; attention and MLP add up to it.
3. Norms read where the map says; weights make queries, values and neurons of what they read, and make what is added
   of what the heads and neurons write; the pattern explains the kernel's `z` (checked on reading).
4. The head rebuilds the logits from the last stream.

The short form looks at the first and last block of each stack on a few random tokens; `thorough=True` at all blocks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from microtome.core.errors import FamilyError, SiteError
from microtome.core.site import Site
from microtome.core.weight import Weight
from microtome.models.anatomy import Anatomy
from microtome.models.inputs import Inputs
from microtome.models.linear_norm import read_norm
from microtome.models.weights import find

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
    for anatomy in model.anatomies.values():
        _check_paths(anatomy)
    try:
        found = identities(model, thorough=thorough, columns=columns)
    except (RuntimeError, SiteError) as error:
        raise FamilyError(
            f"the map {model.anatomy.family.name!r} does not fit this {type(model.module).__name__}: {error}. {_ADVICE}"
        ) from error
    broken = [identity for identity in found if not identity.holds]
    if broken:
        worst = max(broken, key=lambda identity: identity.error / max(identity.allowed, 1e-30))
        where = "" if worst.layer is None else f" in layer {worst.layer}"
        raise FamilyError(
            f"the map {model.anatomy.family.name!r} is not true of this {type(model.module).__name__}: "
            f"{worst.name}{where} is off by {worst.error:.1e} (allowed {worst.allowed:.0e}). {_ADVICE}"
        )
    return found


_ADVICE = (
    "Give a map that fits, load(module, family=Family(...)), or use module paths, load(module, family=None)"
)
_OUTSIDE = ("embed", "pos_embed", "final_norm")
_INSIDE = (
    *("attn", "o", "q", "k", "v", "qkv", "attn_norm", "attn_adds", "mid", "cross"),
    *("mlp", "mlp_norm", "mlp_up", "mlp_gate", "gate_up", "mlp_down", "mlp_adds", "router"),
)


def _check_paths(anatomy: Anatomy) -> None:
    """Every path of the map leads to a module, in every block."""
    places = [(role, None) for role in _OUTSIDE]
    places += [(role, layer) for role in _INSIDE for layer in range(len(anatomy.blocks))]  # type: ignore[misc]
    for role, layer in places:
        path = getattr(anatomy.family, role)
        if path and anatomy.role(role, layer) is None:
            where = "the model" if layer is None else f"block {layer}"
            raise FamilyError(
                f"the map {anatomy.family.name!r} expects {role} at {path!r}, where {where} has no module. {_ADVICE}"
            )


@torch.no_grad()
def identities(model: "Model", *, thorough: bool = False, columns: int = 6) -> list[Identity]:
    """Every identity and its error, on random tokens."""
    inputs = _probe(model, columns)
    tolerance = max(1e-5, 32 * torch.finfo(model.dtype).eps)
    untouched = model.call(inputs)
    found: list[Identity] = []
    for stack, anatomy in model.anatomies.items():
        last = len(anatomy.blocks) - 1
        layers = range(last + 1) if thorough else sorted({0, last})
        reads = {s for s in model.sites() if s.stack == stack and (s.layer is None or s.layer in layers)}
        reads |= {Site("resid_pre", n + 1, stack=stack) for n in layers if n < last}
        reads.discard(Site("logits"))
        has_logits = not stack and anatomy.role("head") is not None
        seen = model.run(inputs.kwargs, read=list(reads), logits=has_logits, check_finite=False)
        if seen.logits is not None:
            gap = 0.0 if torch.equal(seen.logits, untouched.logits) else _gap(seen.logits, untouched.logits)
            found.append(Identity("logits against the untouched model", None, gap, 0.0))
            rebuilt = model.unembed(seen[Site("resid_post", last)])
            gap = _gap(rebuilt, seen.logits)
            found.append(Identity("unembedding of the last stream", None, gap, tolerance))
        for layer in layers:
            block = _Block(anatomy, layer, seen.values, tolerance)
            block.stream()
            block.attention()
            block.mlp()
            found += block.found
    return found


class _Block:
    """The identities of one block."""

    def __init__(self, anatomy: Anatomy, layer: int, values: Mapping[Site, Tensor], tolerance: float) -> None:
        self.anatomy, self.layer, self.tolerance = anatomy, layer, tolerance
        self.family = anatomy.family
        self.found: list[Identity] = []
        self._values = values

    def _get(self, part: str, after: int = 0) -> Tensor | None:
        return self._values.get(Site(part, self.layer + after, stack=self.anatomy.stack))

    def _expect(self, name: str, made: Tensor | None, seen: Tensor | None, *, exactly: bool = False) -> None:
        """Note how far two values are apart, where the model has both."""
        if made is not None and seen is not None:
            gap = _gap(made.reshape(seen.shape), seen)
            self.found.append(Identity(name, self.layer, gap, 0.0 if exactly else self.tolerance))

    def stream(self) -> None:
        """The stream between blocks and inside the block."""
        pre, mid, post = self._get("resid_pre"), self._get("resid_mid"), self._get("resid_post")
        attn, mlp = self._get("attn_out"), self._get("mlp_out")
        assert pre is not None
        assert attn is not None
        self._expect("resid_post = the next resid_pre", post, self._get("resid_pre", after=1), exactly=True)
        match self.family.residual:
            case "parallel" if mlp is not None:
                self._expect("resid_pre + attn_out + mlp_out = resid_post", pre + attn + mlp, post)
            case "sequential" if mid is not None:
                if not self.family.cross:
                    self._expect("resid_pre + attn_out = resid_mid", pre + attn, mid)
                if mlp is not None:
                    self._expect("resid_mid + mlp_out = resid_post", mid + mlp, post)
            case "sequential" if mlp is None and not self.family.mlp:
                self._expect("resid_pre + attn_out = resid_post", pre + attn, post)
            case "post_norm" if mid is not None:
                self._expect("norm(resid_pre + attn_out) = resid_mid", self._normed(pre + attn, mid), mid)
                if mlp is not None and post is not None:
                    self._expect(
                        "norm(resid_mid + mlp_out) = resid_post", self._normed(mid + mlp, post), post
                    )

    def _normed(self, total: Tensor, seen: Tensor) -> Tensor:
        """What the one norm of the block that fits best makes of a sum."""
        norms = [m for m in self.anatomy.blocks[self.layer].modules() if "norm" in type(m).__name__.lower()]
        return min((norm(total) for norm in norms), key=lambda made: _gap(made, seen), default=total)

    def attention(self) -> None:
        """From the stream to queries and values, and from the heads' results to what is added."""
        pre, attn_in, result = self._get("resid_pre"), self._get("attn_in"), self._get("result")
        q, attn = self._get("q"), self._get("attn_out")
        assert pre is not None
        self._expect("the norm before attention reads resid_pre", self._apply("attn_norm", pre), attn_in)
        self._divides("attn_norm", pre, attn_in)
        self._expect("attn_in W_V + b_V = v", self._made(attn_in, "V"), self._get("v"))
        queries = self._made(attn_in, "Q")
        attention = self.anatomy.role("attn", self.layer)
        norms = attention is not None and any("norm" in type(m).__name__.lower() for m in attention.modules())
        if queries is not None and q is not None and not norms:
            # The first position is not rotated, though a rotation may carry a factor.
            first, made = q[:, 0].float().flatten(1), queries[:, 0]
            factor = (first * made).sum() / made.pow(2).sum().clamp_min(1e-30)
            self._expect("attn_in W_Q + b_Q = q at the first position", factor * made, first)
        if result is not None:
            bias = find(self.anatomy, Weight("b_O", self.layer))
            total = result.sum(dim=2) if bias is None else result.sum(dim=2) + bias
            self._expect("the heads' results and bias make attn_out", self._apply("attn_adds", total), attn)

    def mlp(self) -> None:
        """From the stream through the neurons to what is added."""
        between = self._get("resid_pre") if self.family.residual == "parallel" else self._get("resid_mid")
        shared = self.family.residual == "parallel" and not self.family.mlp_norm
        mlp_in, pre, post = self._get("mlp_in"), self._get("mlp_pre"), self._get("mlp_post")
        reads = (
            self._get("attn_in") if shared else None if between is None else self._apply("mlp_norm", between)
        )
        self._expect("the norm before the MLP reads the stream", reads, mlp_in)
        self._divides("mlp_norm", between, mlp_in)
        linear = self._made(mlp_in, "in")
        gate = self._made(mlp_in, "gate")
        self._expect("mlp_in W + b = mlp_pre", linear if gate is None else gate, pre)
        if (
            pre is not None
            and post is not None
            and (activation := activation_of(self.anatomy.module.config)) is not None
        ):
            active = activation(pre.float())
            assert linear is not None
            self._expect(
                "the activation of mlp_pre is mlp_post", active if gate is None else active * linear, post
            )
        written = self._made(post, "out")
        if written is not None:
            adds = "mlp_adds" if self.family.mlp_adds != self.family.mlp_down else ""
            self._expect(
                "mlp_post W_out + b_out make mlp_out", self._apply(adds, written), self._get("mlp_out")
            )

    def _divides(self, role: str, given: Tensor | None, made: Tensor | None) -> None:
        """The norm's scale is what the norm divides by."""
        module, scale = self.anatomy.role(role, self.layer), self._get(f"{role}_scale")
        if module is not None and given is not None and scale is not None:
            norm = read_norm(module, given.shape[-1])
            self._expect(f"{role}_scale divides", norm.push(given, scale) + norm.bias, made)

    def _apply(self, role: str, value: Tensor) -> Tensor:
        """What a module of the block makes of a value; the value itself where there is no such module."""
        module = self.anatomy.role(role, self.layer) if role else None
        return value if module is None else module(value.to(self._dtype))

    @property
    def _dtype(self) -> torch.dtype:
        found = self._get("resid_pre")
        assert found is not None
        return found.dtype

    def _made(self, value: Tensor | None, name: str) -> Tensor | None:
        """A value through a weight and its bias, in float32; `None` where the model lacks either."""
        matrix = find(self.anatomy, Weight(f"W_{name}", self.layer))
        if value is None or matrix is None:
            return None
        matrix = matrix.movedim(0, -2).flatten(-2) if matrix.dim() == 3 else matrix
        bias = find(self.anatomy, Weight(f"b_{name}", self.layer))
        made = value.float() @ matrix.to(value.device).float()
        return made if bias is None else made + bias.to(value.device).float().flatten()


def activation_of(config: Any) -> Callable[[Tensor], Tensor] | None:
    """The activation that the configuration names, if it names one that has nothing to learn."""
    from transformers.activations import ACT2FN

    names = ("hidden_activation", "hidden_act", "activation_function", "dense_act_fn")
    name = next((getattr(config, n) for n in names if isinstance(getattr(config, n, None), str)), None)
    if name not in ACT2FN:
        return None
    found: nn.Module = ACT2FN[name]
    return None if any(True for _ in found.parameters()) else found


def _gap(one: Tensor, two: Tensor) -> float:
    return float((one.float() - two.float()).abs().max() / two.float().abs().max().clamp_min(1e-6))


def _probe(model: "Model", columns: int) -> Inputs:
    """Random ids, the same every time, that any text model takes."""
    generator = torch.Generator().manual_seed(0)
    limit = model.sizes["n_positions"] or columns
    ids = torch.randint(model.sizes["d_vocab"], (2, min(columns, limit)), generator=generator)
    if "encoder" in model.anatomies:
        return model.inputs({"input_ids": ids, "decoder_input_ids": ids[:, : max(1, columns // 2)]})
    return model.inputs(ids)
