"""Which edges does an attention-only network without norms need? Each is cut by itself, and the answers are counted.

Without norms the stream is a plain sum, so what one part adds to what another reads is a linear map of what it wrote:
to cut an edge, that is replaced by its mean over all rows and places, and nothing else changes.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.circuit import Circuit, Edge
from microtome.core.edits import Add, Edit
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.core.weight import Weight
from microtome.models.model import Model
from microtome.testbeds.algorithmic.network import UNASKED, Examples

_PROJECTED = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}


def candidate_edges(model: Model) -> tuple[tuple[str, str, str], ...]:
    """Every edge (source, target, kind) among embeddings, heads and logits of a model with one head a layer."""
    if model.n_heads != 1 or model.has("mlp_out.0"):
        raise InputError("edges are cut one by one only in attention-only networks of one head a layer")
    found = []
    written = ["embed", "pos_embed"]
    for layer in range(model.n_layers):
        found += [(source, f"z.{layer}.h0", kind) for kind in "qkv" for source in written]
        written.append(f"z.{layer}.h0")
    return (*found, *((source, "logits", "logits") for source in written))


def cut(
    model: Model, written: dict[str, Float[Tensor, "row place d_model"]], edge: tuple[str, str, str]
) -> Edit:
    """The edit that cuts an edge. written: what each source wrote in the same rows."""
    source, target, kind = edge
    change = written[source].mean((0, 1)) - written[source]
    if kind == "logits":
        return Add(Site("resid_post", model.n_layers - 1), vector=change)
    layer = int(target.split(".")[1])
    matrix = model.weight(Weight(f"W_{kind.upper()}", layer))[0]
    return Add(Site(_PROJECTED[kind], layer), vector=(change @ matrix)[:, :, None])


@torch.no_grad()
def accuracy_without(model: Model, examples: Examples) -> tuple[float, dict[tuple[str, str, str], float]]:
    """Share of the places asked that are answered right: with nothing cut, and with each edge cut."""
    heads = {f"z.{n}.h0": Site("attn_out", n) for n in range(model.n_layers)}
    read = [Site("embed"), Site("pos_embed"), *heads.values()]
    run = model.run(examples.tokens, read)
    written = {"embed": run[read[0]], "pos_embed": run[read[1]].expand_as(run[read[0]])}
    written |= {name: run[site] for name, site in heads.items()}
    asked = examples.targets != UNASKED

    def accuracy(edits: list[Edit]) -> float:
        logits = model.run(examples.tokens, edit=edits, logits=True).logits
        assert logits is not None
        return float((logits[asked].argmax(-1) == examples.targets[asked]).double().mean())

    return accuracy([]), {edge: accuracy([cut(model, written, edge)]) for edge in candidate_edges(model)}


def circuit(accuracies: dict[tuple[str, str, str], float], whole: float, lost: float) -> Circuit:
    """The edges without which more than `lost` of the accuracy is lost; an edge weighs what is lost with it."""
    needed = [(edge, whole - rest) for edge, rest in accuracies.items() if whole - rest > lost]
    nodes = {end for (source, target, _), _ in needed for end in (source, target)}
    return Circuit.of(sorted(nodes), [Edge(*edge, weight) for edge, weight in needed])
