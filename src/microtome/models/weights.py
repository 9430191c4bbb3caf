"""Parameters under the field's names and in one layout, as views of the user's own tensors.

Linear layers keep `[out, in]`, GPT-2's keep `[in, out]`; projections may be fused, and their heads interleaved.
Nothing is copied where a view will do, nothing is rewritten, and norms are not folded in.
"""

from jaxtyping import Float
from torch import Tensor, nn

from microtome.core.errors import SiteError
from microtome.core.weight import Weight
from microtome.models.anatomy import Anatomy


def weight(anatomy: Anatomy, address: Weight) -> Tensor:
    """The parameter at an address, laid out as `Weight` says. A view of the model's own tensor: do not write to it.

    Raises `SiteError` for a layer or head out of range, or a parameter that this family does not have.
    """
    if address.layer is not None and not 0 <= address.layer < len(anatomy.blocks):
        raise SiteError(f"{address}: there are {len(anatomy.blocks)} layers (0 … {len(anatomy.blocks) - 1})")
    found = find(anatomy, address)
    if found is None:
        raise SiteError(f"{address}: the {anatomy.family.name} family has no such parameter")
    if address.heads is not None:
        if any(not 0 <= head < found.shape[0] for head in address.heads):
            raise SiteError(f"{address}: there are {found.shape[0]} heads (0 … {found.shape[0] - 1})")
        found = found[list(address.heads)]
    return found


def output_by_head(anatomy: Anatomy, layer: int) -> Tensor:
    """`W_O` `[head, d_head, d_model]`."""
    return weight(anatomy, Weight("W_O", layer))


def find(anatomy: Anatomy, address: Weight) -> Tensor | None:
    """The whole parameter at an address, `None` if this family has no such parameter."""
    kind, _, name = address.name.partition("_")
    layer = address.layer
    match name:
        case "E" | "pos":
            module = anatomy.role("embed" if name == "E" else "pos_embed")
            return parameter(module, "weight")
        case "U":
            head = anatomy.role("head")
            head = head if isinstance(head, nn.Linear) else _last_linear(head)
            return _oriented(head) if kind == "W" else parameter(head, "bias")
        case "O":
            module = anatomy.role("o", layer)
            return _by_head(_oriented(module), anatomy) if kind == "W" else parameter(module, "bias")
        case "out":
            module = anatomy.role("mlp_down", layer)
            return _oriented(module) if kind == "W" else parameter(module, "bias")
        case "in" | "gate":
            return _neurons(anatomy, kind, name, layer)
        case _:
            return _projection(anatomy, kind, name, layer)


def _neurons(anatomy: Anatomy, kind: str, name: str, layer: int | None) -> Tensor | None:
    if fused := anatomy.role("gate_up", layer):
        found = _oriented(fused) if kind == "W" else parameter(fused, "bias")
        return None if found is None else found.chunk(2, dim=-1)[0 if name == "gate" else 1]
    module = anatomy.role("mlp_up" if name == "in" else "mlp_gate", layer)
    return _oriented(module) if kind == "W" else parameter(module, "bias")


def _projection(anatomy: Anatomy, kind: str, name: str, layer: int | None) -> Tensor | None:
    module = projector(anatomy, name, layer)
    found = _oriented(module) if kind == "W" else parameter(module, "bias")
    return None if found is None else by_head(anatomy, found, name).movedim(-2, 0)


def projector(anatomy: Anatomy, name: str, layer: int | None) -> nn.Module | None:
    """The module that computes queries (`"Q"`), keys or values of a layer, alone or together with the others."""
    return anatomy.role("qkv", layer) or anatomy.role(name.lower(), layer)


def by_head(
    anatomy: Anatomy, flat: Float[Tensor, "*batch wide"], name: str
) -> Float[Tensor, "*batch head d_head"]:
    """A view of the queries (`"Q"`), keys or values in what their projector computes, or in its weight or bias."""
    sizes = anatomy.sizes
    heads, kv_heads, d_head = sizes["n_heads"], sizes["n_kv_heads"], sizes["d_head"]
    if not anatomy.family.qkv:
        return flat.unflatten(-1, (heads if name == "Q" else kv_heads, d_head))
    if anatomy.family.interleaved:
        return flat.unflatten(-1, (heads, 3, d_head))[..., "QKV".index(name), :]
    start, count = {"Q": (0, heads), "K": (heads, kv_heads), "V": (heads + kv_heads, kv_heads)}[name]
    # Not `split`, whose views may not be written to.
    return flat.narrow(-1, start * d_head, count * d_head).unflatten(-1, (count, d_head))


def _by_head(flat: Tensor | None, anatomy: Anatomy) -> Tensor | None:
    return None if flat is None else flat.unflatten(0, (anatomy.sizes["n_heads"], anatomy.sizes["d_head"]))


def _oriented(module: nn.Module | None) -> Tensor | None:
    """`[in, out]` of a linear layer, whichever way it is kept."""
    found = parameter(module, "weight")
    if found is None or module is None:
        return None
    return found.T if hasattr(module, "out_features") else found


def parameter(module: nn.Module | None, name: str) -> Tensor | None:
    """A module's own parameter, also one that Accelerate keeps elsewhere until the module runs."""
    found = getattr(module, name, None)
    if isinstance(found, Tensor) and found.is_meta:
        kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        found = None if kept is None else kept[name]
    return found if isinstance(found, Tensor) else None


def _last_linear(module: nn.Module | None) -> nn.Module | None:
    layers = [] if module is None else [m for m in module.modules() if isinstance(m, nn.Linear)]
    return layers[-1] if layers else None
