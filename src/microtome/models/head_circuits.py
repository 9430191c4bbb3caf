"""What does a head look for, and what does it do with what it finds? Its QK and OV circuits, as low-rank factors.

    QK = W_Q W_Kᵀ   from the stream at the query to the stream at the key      `[d_model, d_model]`, rank d_head
    OV = W_V W_O    from the stream at the key to the stream at the query      `[d_model, d_model]`, rank d_head

Weights are the user's, untouched. The gain and the centring of the norm that a head reads through, and of a norm that
stands behind it (Gemma 2, OLMo 2), are multiplied into the factors, which are new tensors; divisors, which depend on
the token, are left out. Left out of QK as well: biases, rotations by position, and norms of queries and keys.
Query heads that share keys and values (grouped queries) each get a copy.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.models.linear_norm import LinearNorm, read_norm
from microtome.models.low_rank import LowRank
from microtome.models.model import Model
from microtome.models.readout import Readout
from microtome.models.stream_parts import behind

QK_LEAVES_OUT = (
    "QK is read without biases, rotations by position and norms of queries and keys: it says which tokens attract "
    "each other, not where they stand."
)


def norm_before(model: Model, layer: int) -> LinearNorm:
    """The norm that the heads of a layer read through; none where they read the stream as it is."""
    return read_norm(model.anatomy.role("attn_norm", layer), model.sizes["d_model"], model.device)


@torch.no_grad()
def qk(model: Model, layer: int, centre: bool = True) -> LowRank:
    """QK of every head of a layer: `[head, d_model, d_head] @ [head, d_head, d_model]`, rows are queries.

    centre: whether what the norm's centring removes counts as not read.
    """
    norm = norm_before(model, layer)
    return LowRank(
        _read(norm, model.weight(f"W_Q.{layer}"), centre),
        _read(norm, _by_query_head(model, model.weight(f"W_K.{layer}")), centre).mT,
    )


@torch.no_grad()
def ov(model: Model, layer: int, centre: bool = True) -> LowRank:
    """OV of every head of a layer: `[head, d_model, d_head] @ [head, d_head, d_model]`, rows are what is read."""
    written = model.weight(f"W_O.{layer}").detach().float()
    after = behind(model.anatomy, layer, "attn")
    if after is not None:
        written = after.push(written, torch.ones_like(written[..., :1]))
    values = _by_query_head(model, model.weight(f"W_V.{layer}"))
    return LowRank(_read(norm_before(model, layer), values, centre), written)


@torch.no_grad()
def token_embeddings(model: Model, block: int = 4096) -> Float[Tensor, "token d_model"]:
    """What each token alone brings into the first block, position embeddings taken off.

    Asked of the model itself, so that scaled and normed embeddings are as they are. One short pass for each block.
    """
    learned = model.has("pos_embed")
    found = []
    for ids in torch.arange(model.sizes["d_vocab"], device=model.device).split(block):
        reads = ["resid_pre.0", *(["pos_embed"] if learned else [])]
        # With a mask, since one of these tokens is the one for padding.
        run = model.run(ids[:, None], reads, mask=torch.ones_like(ids[:, None]))
        entering = run["resid_pre.0"][:, 0].float()
        found.append(entering - run["pos_embed"][:, 0].float() if learned else entering)
    return torch.cat(found)


@torch.no_grad()
def token_ov(
    model: Model, layer: int, head: Readout, embeddings: Float[Tensor, "token d_model"]
) -> Iterator[LowRank]:
    """Head by head, OV from the token attended to the logits: `[token, d_head] @ [d_head, token]`.

    Rows are the tokens attended, columns the tokens written. Of embeddings alone: what earlier layers have made of a
    token in the stream is not in it.
    """
    circuit = ov(model, layer)
    ids = torch.arange(model.sizes["d_vocab"], device=model.device)
    for index in range(model.n_heads):
        one = circuit[index]
        out = torch.cat([one.right @ head.directions(part).T for part in ids.split(4096)], dim=1)
        yield LowRank(embeddings @ one.left, out)


@torch.no_grad()
def token_qk(model: Model, layer: int, embeddings: Float[Tensor, "token d_model"]) -> Iterator[LowRank]:
    """Head by head, QK between tokens: `[token, d_head] @ [d_head, token]`, rows are queries, columns keys."""
    circuit = qk(model, layer)
    for index in range(model.n_heads):
        one = circuit[index]
        yield LowRank(embeddings @ one.left, one.right @ embeddings.T)


def _read(norm: LinearNorm, weight: Tensor, centre: bool) -> Float[Tensor, "head d_model d_head"]:
    turned = weight.detach().float().mT
    return (norm.pull(turned) if centre else turned * norm.gain).mT


def _by_query_head(model: Model, weight: Tensor) -> Tensor:
    return weight.repeat_interleave(model.n_heads // weight.shape[0], dim=0)
