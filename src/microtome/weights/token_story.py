"""What would a model say if its first layer saw tokens alone? The story of skip-trigrams, executable.

A skip-trigram is `source … destination → out`: the destination's query prefers the source's key (QK), and the source's
value raises the logit of `out` (OV). The story is all of them at once:

1. Each token becomes a stream: its embedding plus the mean position embedding. The model itself says which queries,
   keys and values its first layer makes of that stream, the token standing alone at position 0, where no rotation has
   turned anything. The factor between `q · k` and the score is asked of the model too.
2. A destination attends to the tokens up to itself by those scores alone, wherever they stand.
3. What the heads write is added to the destination's own stream, and goes through the model's own head. Later layers
   and MLPs say nothing.

With `top`, what each token makes a head write is cut down to the few logits that it moves most: a finite list of rules.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.edits import Set
from microtome.models.head_circuits import token_embeddings
from microtome.models.linear_norm import LinearNorm
from microtome.models.model import Model
from microtome.models.readout import Readout, readout
from microtome.models.stream_parts import behind


@dataclass(frozen=True)
class TokenStory:
    """The first layer by token. Of the `tokens` asked for, in their order; made by `token_story`.

    stream: of the token alone. q, k, v: `[token, head, d_head]`. factor: between `q · k` and the score. cap: of scores.
    written: `W_O` `[head, d_head, d_model]`. bias: of the output projection. after: the norm behind the attention.
    """

    tokens: Int[Tensor, " token"]
    stream: Float[Tensor, "token d_model"]
    q: Float[Tensor, "token head d_head"]
    k: Float[Tensor, "token head d_head"]
    v: Float[Tensor, "token head d_head"]
    factor: float
    cap: float | None
    written: Float[Tensor, "head d_head d_model"]
    bias: Float[Tensor, " d_model"]
    after: LinearNorm | None
    head: Readout

    def index(self, ids: Int[Tensor, " position"]) -> Int[Tensor, " position"]:
        """Where each id stands among `tokens`."""
        return torch.searchsorted(self.tokens, ids)

    def scores(self, head: int) -> Float[Tensor, "destination source"]:
        """How much each token, as a destination, prefers each as a source: attention scores without positions."""
        return self._capped(self.q[:, head] @ self.k[:, head].T * self.factor)

    def pattern(self, at: Int[Tensor, " position"]) -> Float[Tensor, "head query key"]:
        """Where each token of a text (by index) looks, positions unseen."""
        raw = self._capped(torch.einsum("qhd,khd->hqk", self.q[at], self.k[at]) * self.factor)
        ahead = torch.ones(len(at), len(at), dtype=torch.bool, device=raw.device).triu(1)
        return raw.masked_fill(ahead, float("-inf")).softmax(-1)

    def attention(
        self, at: Int[Tensor, " position"], pattern: Float[Tensor, "head query key"]
    ) -> Float[Tensor, "position d_model"]:
        """What the attention adds to the stream of each token of a text under a pattern."""
        mixed = torch.einsum("hqk,khd->qhd", pattern, self.v[at])
        whole = torch.einsum("qhd,hdm->qm", mixed, self.written) + self.bias
        return whole if self.after is None else self.after(whole)

    def tables(self, head: int, top: int) -> tuple[Float[Tensor, "token entry"], Int[Tensor, "token entry"]]:
        """For each token as a source, the `top` logits that a head moves most when it attends to nothing else, relative
        to their mean over the vocabulary: values before the divisors of norms, and the ids of the outs."""
        read = self.v[:, head] @ self.written[head]
        if self.after is not None:
            read = self.after.push(read, torch.ones_like(read[:, :1]))
        moved = read @ self._directions().T
        found = moved.abs().topk(min(top, moved.shape[1]), dim=1).indices
        return moved.gather(1, found), found

    def direct(self) -> Float[Tensor, "token out"]:
        """Logits of each token's own stream: the bigrams that the embeddings alone hold."""
        ids = torch.arange(self.head.n_tokens, device=self.stream.device)
        return self.logits(self.stream, ids)

    def logits(
        self, stream: Float[Tensor, "position d_model"], ids: Int[Tensor, " out"]
    ) -> Float[Tensor, "position out"]:
        """The model's head on a stream, before any cap."""
        made = stream / self.head.norm.scale(stream) @ self.head.directions(ids).T
        return made + self.head.norm_bias(ids) + self.head.bias(ids)

    def _capped(self, scores: Float[Tensor, "*stack query key"]) -> Float[Tensor, "*stack query key"]:
        return scores if self.cap is None else torch.tanh(scores / self.cap) * self.cap

    def _directions(self) -> Float[Tensor, "out d_model"]:
        ids = torch.arange(self.head.n_tokens, device=self.stream.device)
        directions = self.head.directions(ids)
        return directions - directions.mean(dim=0)


@torch.no_grad()
def token_story(model: Model, tokens: Sequence[int], columns: int) -> TokenStory:
    """The first layer by token, for these tokens.

    columns: how many positions the position embedding is averaged over.

    Three short passes and one for the embeddings. Raises `SiteError`, `FamilyError` for a model without a linear head.
    """
    ids = torch.tensor(sorted(set(tokens)), device=model.device)
    stream = token_embeddings(model)[ids]
    if model.has("pos_embed"):
        row = ids[:1].repeat(1, columns)
        stream = stream + model.run(row, ["pos_embed"])["pos_embed"][0].float().mean(dim=0)
    alone = Set("resid_pre.0", value=stream[:, None].to(model.dtype))
    one = torch.ones_like(ids[:, None])
    run = model.run(ids[:, None], ["q.0", "k.0", "v.0"], [alone], mask=one)
    q, k, v = (_by_query_head(model, run[f"{name}.0"][:, 0].float()) for name in "qkv")
    bias = getattr(model.anatomy.role("o", 0), "bias", None)
    cap = getattr(model.anatomy.module.config, "attn_logit_softcapping", None)
    return TokenStory(
        ids,
        stream,
        q,
        k,
        v,
        _factor(model, ids[:1], cap),
        cap,
        model.weight("W_O.0").detach().float(),
        torch.zeros_like(stream[0]) if bias is None else bias.detach().float(),
        behind(model.anatomy, 0, "attn"),
        readout(model),
    )


def _factor(model: Model, token: Int[Tensor, " one"], cap: float | None) -> float:
    """The score of a query and a key whose product is one, before any cap."""
    alike = torch.full((), model.sizes["d_head"] ** -0.5)
    seen = model.run(token[None], ["scores.0.h0"], [Set("q.0", value=alike), Set("k.0", value=alike)])
    score = float(seen["scores.0.h0"])
    return score if cap is None else cap * math.atanh(score / cap)


def _by_query_head(model: Model, value: Float[Tensor, "token heads d_head"]) -> Tensor:
    return value.repeat_interleave(model.n_heads // value.shape[1], dim=1)
