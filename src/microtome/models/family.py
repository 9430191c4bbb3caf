"""A family is a map: from the standard part names to the modules of an architecture, and how each lays out its values.

Paths are relative: `layers`, `embed`, `final_norm`, `head` to the model; the rest to a block. A path may be absent
(empty) where the architecture has no such part. A family holds no code of the model and changes nothing in it; its
truth is tested against the untouched model by `microtome.models.check`.
"""

from dataclasses import dataclass
from typing import Any, Literal

Residual = Literal["sequential", "parallel", "post_norm"]
Door = Literal["interface", "method", "bloom"]


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps its parts.

    residual: `sequential` (attention, then MLP), `parallel` (both read the block's input), `post_norm` (the norm
        stands after each addition, as in BERT).
    door: how attention is reached: through Transformers' attention interface, by the module's own `_attn` method, or
        by the modules of BLOOM.
    q, k, v or qkv: separate or fused projections; `interleaved` when q, k, v of a head lie together.
    mlp_up, mlp_gate, or gate_up: the projections into the neurons; `gate_up` holds gate and partner one after another.
    attn_adds, mlp_adds: the module whose output is added to the stream, where that is not the output projection or
        the MLP (a norm that stands after it, for instance).
    mid: the module whose output is the stream between attention and MLP, where the norm stands after the addition.
    cross: the output projection of cross-attention, which also adds to the stream before `resid_mid`.
    before_head: a projection between the final norm and the unembedding.
    """

    name: str
    model_types: tuple[str, ...]
    layers: str
    embed: str
    attn: str
    o: str
    final_norm: str = ""
    before_head: str = ""
    head: str = ""
    pos_embed: str = ""
    attn_norm: str = ""
    q: str = ""
    k: str = ""
    v: str = ""
    qkv: str = ""
    interleaved: bool = False
    mlp: str = ""
    mlp_norm: str = ""
    mlp_up: str = ""
    mlp_gate: str = ""
    gate_up: str = ""
    mlp_down: str = ""
    router: str = ""
    attn_adds: str = ""
    mlp_adds: str = ""
    mid: str = ""
    cross: str = ""
    residual: Residual = "sequential"
    door: Door = "interface"
    causal: bool = True


def sizes(config: Any) -> dict[str, int]:
    """Sizes of a Hugging Face text configuration under the names used here; 0 where there is none."""

    def first(*names: str, otherwise: int = 0) -> int:
        for name in names:
            found = getattr(config, name, None)
            if isinstance(found, int):
                return found
        return otherwise

    d_model = first("hidden_size", "n_embd", "d_model")
    heads = first("num_attention_heads", "n_head", "num_heads", "encoder_attention_heads")
    d_head = first("head_dim", "d_kv") or (d_model // heads if heads else 0)
    return {
        "n_layers": first("num_hidden_layers", "n_layer", "num_layers"),
        "n_heads": heads,
        "n_kv_heads": first("num_key_value_heads", "num_kv_heads") or heads,
        "d_model": d_model,
        "d_head": d_head,
        "d_mlp": first("intermediate_size", "n_inner", "ffn_dim", "d_ff", otherwise=4 * d_model),
        "d_vocab": first("vocab_size"),
        "n_positions": first("max_position_embeddings", "n_positions"),
    }
