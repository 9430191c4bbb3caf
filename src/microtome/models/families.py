"""The architectures with a map of their own. Each map is checked against the untouched model when a model is loaded.

`family_of(module)` finds the maps of a model: one for a decoder or an encoder, two for an encoder–decoder.
"""

from dataclasses import replace
from typing import Any

from microtome.core.errors import FamilyError
from microtome.models.family import Family

_GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    layers="transformer.h",
    embed="transformer.wte",
    pos_embed="transformer.wpe",
    final_norm="transformer.ln_f",
    head="lm_head",
    attn="attn",
    attn_norm="ln_1",
    qkv="attn.c_attn",
    o="attn.c_proj",
    mlp="mlp",
    mlp_norm="ln_2",
    mlp_up="mlp.c_fc",
    mlp_down="mlp.c_proj",
)

_LLAMA = Family(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3", "gemma"),
    layers="model.layers",
    embed="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    attn="self_attn",
    attn_norm="input_layernorm",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.o_proj",
    mlp="mlp",
    mlp_norm="post_attention_layernorm",
    mlp_up="mlp.up_proj",
    mlp_gate="mlp.gate_proj",
    mlp_down="mlp.down_proj",
)

_BERT = Family(
    name="bert",
    model_types=("bert",),
    layers="bert.encoder.layer",
    embed="bert.embeddings.word_embeddings",
    pos_embed="bert.embeddings.position_embeddings",
    head="cls",
    attn="attention.self",
    q="attention.self.query",
    k="attention.self.key",
    v="attention.self.value",
    o="attention.output.dense",
    mid="attention.output",
    mlp_up="intermediate.dense",
    mlp_down="output.dense",
    residual="post_norm",
    causal=False,
)

_T5_ENCODER = Family(
    name="t5-encoder",
    model_types=("t5",),
    layers="encoder.block",
    embed="encoder.embed_tokens",
    final_norm="encoder.final_layer_norm",
    attn="layer.0.SelfAttention",
    attn_norm="layer.0.layer_norm",
    q="layer.0.SelfAttention.q",
    k="layer.0.SelfAttention.k",
    v="layer.0.SelfAttention.v",
    o="layer.0.SelfAttention.o",
    mlp="layer.1.DenseReluDense",
    mlp_norm="layer.1.layer_norm",
    mlp_up="layer.1.DenseReluDense.wi",
    mlp_down="layer.1.DenseReluDense.wo",
    causal=False,
)
_T5_DECODER = replace(
    _T5_ENCODER,
    name="t5-decoder",
    layers="decoder.block",
    embed="decoder.embed_tokens",
    final_norm="decoder.final_layer_norm",
    head="lm_head",
    cross="layer.1.EncDecAttention.o",
    mlp="layer.2.DenseReluDense",
    mlp_norm="layer.2.layer_norm",
    mlp_up="layer.2.DenseReluDense.wi",
    mlp_down="layer.2.DenseReluDense.wo",
    causal=True,
)

FAMILIES: tuple[Family, ...] = (
    Family(
        name="microtome",
        model_types=("microtome",),
        layers="blocks",
        embed="embed",
        pos_embed="pos_embed",
        final_norm="final_norm",
        head="unembed",
        attn="attn",
        attn_norm="attn_norm",
        q="attn.q",
        k="attn.k",
        v="attn.v",
        o="attn.o",
        mlp="mlp",
        mlp_norm="mlp_norm",
        mlp_up="mlp.up",
        mlp_gate="mlp.gate",
        mlp_down="mlp.down",
    ),
    _GPT2,
    _LLAMA,
    Family(
        name="gpt_neo",
        model_types=("gpt_neo",),
        layers="transformer.h",
        embed="transformer.wte",
        pos_embed="transformer.wpe",
        final_norm="transformer.ln_f",
        head="lm_head",
        attn="attn.attention",
        attn_norm="ln_1",
        q="attn.attention.q_proj",
        k="attn.attention.k_proj",
        v="attn.attention.v_proj",
        o="attn.attention.out_proj",
        mlp="mlp",
        mlp_norm="ln_2",
        mlp_up="mlp.c_fc",
        mlp_down="mlp.c_proj",
        door="method",
    ),
    Family(
        name="gptj",
        model_types=("gptj",),
        layers="transformer.h",
        embed="transformer.wte",
        final_norm="transformer.ln_f",
        head="lm_head",
        attn="attn",
        attn_norm="ln_1",
        q="attn.q_proj",
        k="attn.k_proj",
        v="attn.v_proj",
        o="attn.out_proj",
        mlp="mlp",
        mlp_up="mlp.fc_in",
        mlp_down="mlp.fc_out",
        residual="parallel",
        door="method",
    ),
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        layers="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        head="lm_head",
        attn="attention",
        attn_norm="input_layernorm",
        qkv="attention.query_key_value",
        interleaved=True,
        o="attention.dense",
        mlp="mlp",
        mlp_norm="post_attention_layernorm",
        mlp_up="mlp.dense_h_to_4h",
        mlp_down="mlp.dense_4h_to_h",
        residual="parallel",
    ),
    replace(
        _LLAMA,
        name="gemma2",
        model_types=("gemma2", "gemma3", "gemma3_text"),
        attn_adds="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
        mlp_adds="post_feedforward_layernorm",
    ),
    Family(
        name="phi",
        model_types=("phi",),
        layers="model.layers",
        embed="model.embed_tokens",
        final_norm="model.final_layernorm",
        head="lm_head",
        attn="self_attn",
        attn_norm="input_layernorm",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        o="self_attn.dense",
        mlp="mlp",
        mlp_up="mlp.fc1",
        mlp_down="mlp.fc2",
        residual="parallel",
    ),
    replace(
        _LLAMA,
        name="phi3",
        model_types=("phi3",),
        q="",
        k="",
        v="",
        qkv="self_attn.qkv_proj",
        mlp_up="",
        mlp_gate="",
        gate_up="mlp.gate_up_proj",
    ),
    replace(
        _LLAMA,
        name="olmo2",
        model_types=("olmo2",),
        attn_norm="",
        attn_adds="post_attention_layernorm",
        mlp_norm="",
        mlp_adds="post_feedforward_layernorm",
    ),
    Family(
        name="opt",
        model_types=("opt",),
        layers="model.decoder.layers",
        embed="model.decoder.embed_tokens",
        pos_embed="model.decoder.embed_positions",
        final_norm="model.decoder.final_layer_norm",
        before_head="model.decoder.project_out",
        head="lm_head",
        attn="self_attn",
        attn_norm="self_attn_layer_norm",
        q="self_attn.q_proj",
        k="self_attn.k_proj",
        v="self_attn.v_proj",
        o="self_attn.out_proj",
        mlp_norm="final_layer_norm",
        mlp_up="fc1",
        mlp_down="fc2",
    ),
    Family(
        name="bloom",
        model_types=("bloom",),
        layers="transformer.h",
        embed="transformer.word_embeddings",
        final_norm="transformer.ln_f",
        head="lm_head",
        attn="self_attention",
        attn_norm="input_layernorm",
        qkv="self_attention.query_key_value",
        interleaved=True,
        o="self_attention.dense",
        mlp="mlp",
        mlp_norm="post_attention_layernorm",
        mlp_up="mlp.dense_h_to_4h",
        mlp_down="mlp.dense_4h_to_h",
        mlp_adds="mlp.dense_4h_to_h",
        door="bloom",
    ),
    replace(
        _LLAMA,
        name="mixtral",
        model_types=("mixtral",),
        mlp_up="",
        mlp_gate="",
        mlp_down="",
        router="mlp.gate",
    ),
    _BERT,
    replace(
        _BERT,
        name="roberta",
        model_types=("roberta",),
        layers="roberta.encoder.layer",
        embed="roberta.embeddings.word_embeddings",
        pos_embed="roberta.embeddings.position_embeddings",
        head="lm_head",
    ),
    _T5_DECODER,
    _T5_ENCODER,
)


def family_of(config: Any) -> dict[str, Family]:
    """The maps of a model by its configuration: `{"": map}`, and for an encoder–decoder `{"": …, "encoder": …}`.

    Empty if no map is known. Raises `FamilyError` for a wiring that the map does not cover.
    """
    kind = getattr(config, "model_type", "")
    found = [family for family in FAMILIES if kind in family.model_types]
    if kind == "t5":
        return {"": _gated(_T5_DECODER, config), "encoder": _gated(_T5_ENCODER, config)}
    if not found:
        return {}
    return {"": _wired(found[0], config)}


def _gated(family: Family, config: Any) -> Family:
    if not getattr(config, "is_gated_act", False):
        return family
    return replace(family, mlp_gate=f"{family.mlp}.wi_0", mlp_up=f"{family.mlp}.wi_1")


def _without(family: Family, config: Any) -> Family:
    """Our own transformer without what this one leaves out."""
    absent: dict[str, str] = {}
    if config.norm == "none":
        absent |= dict.fromkeys(("attn_norm", "mlp_norm", "final_norm"), "")
    if not config.intermediate_size:
        absent |= dict.fromkeys(("mlp", "mlp_norm", "mlp_up", "mlp_gate", "mlp_down"), "")
    if config.hidden_act not in ("bilinear", "silu"):
        absent["mlp_gate"] = ""
    if config.positions != "learned":
        absent["pos_embed"] = ""
    return replace(family, **absent, causal=config.causal)  # type: ignore[arg-type]


def _wired(family: Family, config: Any) -> Family:
    """The family as this configuration wires it."""
    if family.name == "microtome":
        return _without(family, config)
    if family.name == "gpt_neox" and not config.use_parallel_residual:
        return replace(family, residual="sequential")
    if family.name == "opt" and not config.do_layer_norm_before:
        return replace(
            family, residual="post_norm", attn_norm="", mlp_norm="", mid="self_attn_layer_norm", final_norm=""
        )
    if family.name == "bloom" and config.apply_residual_connection_post_layernorm:
        raise FamilyError(
            "this BLOOM adds the output of its norm to the stream (apply_residual_connection_post_layernorm); "
            "its parts do not sum to the stream. Address its modules by path: load(module, family=None)"
        )
    if family.name == "bert" and getattr(config, "is_decoder", False):
        return replace(family, causal=True)
    return family
