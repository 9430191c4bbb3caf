"""What does an edge carry? In a network without norms it is cut exactly, by itself, with nothing but linear algebra.

Without norms the stream is a plain sum, so what one part adds to what another reads is a linear map of what it wrote:
to cut an edge, that is replaced (by a mean, or by what it is on another input), and nothing else changes. This says
what is true of a testbed; `microtome.circuits` finds edges in any network, in another way.
"""

from collections.abc import Mapping
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.circuit import Circuit
from microtome.core.edits import Add, Edit
from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection
from microtome.core.site import Site
from microtome.core.weight import Weight
from microtome.data.pairs import Pairs
from microtome.models.model import Model

Ends = tuple[str, str, str]
LEAST: Final = 1e-3  # of the largest logit: what is less counts as no change
_PROJECTED = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}


def candidate_edges(model: Model) -> tuple[Ends, ...]:
    """Every edge (source, target, kind) among embeddings, heads, MLPs and logits. Raises `InputError` for norms."""
    if getattr(model.module.config, "norm", None) != "none":
        raise InputError(f"edges are cut so only in our own Transformer without norms, not in {model.name}")
    found: list[Ends] = []
    written = ["embed", *(["pos_embed"] if model.has(Site("pos_embed")) else [])]
    for layer in range(model.n_layers):
        heads = [f"z.{layer}.h{head}" for head in range(model.n_heads)]
        found += [(source, target, kind) for target in heads for kind in "qkv" for source in written]
        written += heads
        if model.has(Site("mlp_out", layer)):
            found += [(source, f"mlp_out.{layer}", "mlp") for source in written]
            written.append(f"mlp_out.{layer}")
    return (*found, *((source, "logits", "logits") for source in written))


@torch.no_grad()
def writes(model: Model, tokens: Int[Tensor, "row place"]) -> dict[str, Float[Tensor, "row place d_model"]]:
    """What each source adds to the stream."""
    layers = range(model.n_layers)
    plain = [Site("embed")] + [Site("mlp_out", n) for n in layers if model.has(Site("mlp_out", n))]
    positions = [Site("pos_embed")] if model.has(Site("pos_embed")) else []
    heads = [Site("z", n) for n in layers]
    run = model.run(tokens, [*plain, *positions, *heads])
    found = {str(site): run[site] for site in plain}
    found |= {str(site): run[site].expand_as(run[plain[0]]) for site in positions}
    for site in heads:
        assert site.layer is not None
        each = torch.einsum("rphd,hdm->hrpm", run[site], model.weight(Weight("W_O", site.layer)))
        found |= {str(site.head(head)): each[head] for head in range(model.n_heads)}
    return found


def cut(model: Model, change: Mapping[str, Float[Tensor, "row place d_model"]], edge: Ends) -> Add:
    """The edit that replaces what an edge carries. change: by how much what each source wrote is to change."""
    source, target, kind = edge
    if kind == "logits":
        return Add(Site("resid_post", model.n_layers - 1), vector=change[source])
    node = Site.parse(target)
    assert node.layer is not None
    if kind == "mlp":
        return Add(Site("mlp_in", node.layer), vector=change[source])
    assert node.heads is not None
    (head,) = node.heads
    matrix = model.weight(Weight(f"W_{kind.upper()}", node.layer))[head]
    return Add(Site(_PROJECTED[kind], node.layer).head(head), vector=(change[source] @ matrix)[:, :, None])


@torch.no_grad()
def unshown(model: Model, circuit: Circuit, pairs: Pairs) -> frozenset[str | Ends]:
    """Edges of the circuit over which nothing comes that changes the last answer of any pair: each is cut by itself, so
    that it carries what it carries on the other side. And the nodes that have no other edges."""
    here, there = writes(model, pairs.clean), writes(model, pairs.corrupt)
    change = {name: there[name] - wrote for name, wrote in here.items()}

    def last(edit: list[Edit]) -> Float[Tensor, "row label"]:
        logits = model.run(pairs.clean, edit=edit, logits=LogitSelection((-1,))).logits
        assert logits is not None
        return logits[:, 0]

    whole = last([])
    silent = {
        edge.ends
        for edge in circuit.edges
        if (last([cut(model, change, edge.ends)]) - whole).abs().max() < LEAST * whole.abs().max()
    }
    live = {end for edge in circuit.edges if edge.ends not in silent for end in (edge.source, edge.target)}
    return frozenset(silent) | (set(circuit.nodes) - live)
