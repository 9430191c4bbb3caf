"""Does a found subspace work through what the network reads, or through a pathway that is asleep otherwise?

A direction that is half read and half unread can carry a variable by an illusion: the unread half knows the variable,
exchanging along the direction copies that knowledge into the read half, which by itself knows nothing and never moved.

1. The weights that read the site span what is read; the rest is their null space.
2. A subspace is taken apart into what it is of each. Both parts are exchanged alone, beside the whole.
3. Exchanging the unread part can do nothing. What the read part alone does not do, the whole did through a dormant
   pathway: `dormant` is the share of its effect that is lost.

Reference: Makelov, Lange and Nanda (2023), Is This the Subspace You Are Looking for? Misleads: in a residual stream
that many weights read, nothing is unread, and no illusion shows, though one may be there.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.core.weight import Weight
from microtome.models import weights
from microtome.models.linear_norm import LinearNorm, read_norm
from microtome.models.model import Model

_ROUNDING = 1e-4  # relative size of a singular value, or length of a part, that counts as nothing


@dataclass(frozen=True, eq=False)
class Parts:
    """Orthonormal directions of a subspace's read and unread parts, none where there is no such part.

    unread_share: of the subspace's squared length, how much lies in the null space.
    """

    read: Float[Tensor, "read d"]
    unread: Float[Tensor, "unread d"]
    unread_share: float


def parts(directions: Float[Tensor, "direction d"], readers: Float[Tensor, "reader d"]) -> Parts:
    """A subspace taken apart by what reads it, however small the weights it is read with."""
    length = readers.double().norm(dim=-1, keepdim=True)
    _, size, rows = torch.linalg.svd(readers.double() / length.where(length > 0, 1.0), full_matrices=False)
    span = rows[size > _ROUNDING]
    basis = _orthonormal(directions.double())
    read = basis @ span.T @ span
    unread = basis - read
    return Parts(
        _orthonormal(read).to(directions.dtype),
        _orthonormal(unread).to(directions.dtype),
        float(unread.pow(2).sum() / len(basis)),
    )


def readers(model: Model, site: Site) -> Float[Tensor, "reader d"] | None:
    """All weights that read a site directly, as rows; `None` where that is not known (a module's path, experts).

    A head is read by its output projection, a neuron by its output weights, a stream by every projection behind it:
    queries, keys, values, neurons and the unembedding, each through its norm. Raises `InputError` for several heads,
    whose parts are read apart.
    """
    if not model.anatomies or site.stack or model.anatomy.family.residual == "post_norm":
        return None
    if site.part == "z":
        if site.heads is None or len(site.heads) != 1:
            raise InputError(f"{site} is several heads, each read by weights of its own; name one")
        return model.weight(Weight("W_O", site.layer))[site.heads[0]].T.detach()
    if site.part == "mlp_post":
        found = model.weight(Weight("W_out", site.layer)).T.detach()
        return found if site.units is None else found[:, list(site.units)]
    first = _first_reader(model, site)
    return None if first is None or site.units is not None else _of_stream(model, *first)


def _first_reader(model: Model, site: Site) -> tuple[int, bool] | None:
    """The layer behind a stream, and whether its attention reads the stream too."""
    if site.part in ("embed", "pos_embed"):
        return 0, True
    if site.layer is None:
        return None
    parallel = model.anatomy.family.residual == "parallel"
    match site.part:
        case "resid_pre":
            return site.layer, True
        case "resid_mid" | "attn_out" if not parallel:
            return site.layer, False
        case "resid_post" | "mlp_out" | "attn_out":
            return site.layer + 1, True
    return None


def _of_stream(model: Model, first: int, attention: bool) -> Float[Tensor, "reader d_model"] | None:
    anatomy, rows = model.anatomy, []
    for layer in range(first, model.n_layers):
        if layer > first or attention:
            norm = _norm(model, "attn_norm", layer)
            for name in ("W_Q", "W_K", "W_V"):
                found = weights.find(anatomy, Weight(name, layer))
                if found is None:
                    return None
                rows.append(norm.pull(found.movedim(1, -1).flatten(0, -2)))
        if not model.has(Site("mlp_out", layer)):
            continue
        up = weights.find(anatomy, Weight("W_in", layer))
        if up is None:
            return None
        gate = weights.find(anatomy, Weight("W_gate", layer))
        norm = _norm(model, "mlp_norm" if anatomy.role("mlp_norm", layer) is not None else "attn_norm", layer)
        rows += [norm.pull(one.T) for one in (up, gate) if one is not None]
    head = weights.find(anatomy, Weight("W_U"))
    if head is None or anatomy.role("before_head") is not None:
        return None
    rows.append(_norm(model, "final_norm", None).pull(head.T))
    return torch.cat([row.detach() for row in rows])


def _norm(model: Model, role: str, layer: int | None) -> LinearNorm:
    module = model.anatomy.role(role, layer) if layer is not None else model.anatomy.role(role)
    return read_norm(module, model.sizes["d_model"], model.device)


def _orthonormal(rows: Float[Tensor, "direction d"]) -> Float[Tensor, "rank d"]:
    """Orthonormal rows of the same span; those that are nothing but rounding are left out."""
    if not len(rows):
        return rows
    _, size, found = torch.linalg.svd(rows, full_matrices=False)
    return found[size > _ROUNDING]
