"""Tiny random models of every family with a map, built from their configurations: no download, a few milliseconds each.

Three blocks, four heads that share two key–value heads where the family can, windows shorter than the texts, caps low
enough to bite, and biases and norms that are nowhere trivial, so that a forgotten term shows.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from microtome.models import transformer
from microtome.models.load import load
from microtome.models.model import Model

VOCABULARY = 61
COLUMNS = 9
WINDOW = 4

_SPECIAL: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_OLD: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48,
}  # fmt: skip
_FULL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 32,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_GROUPED: dict[str, Any] = _FULL | {"num_key_value_heads": 2}
_OPT: dict[str, Any] = {k: v for k, v in _FULL.items() if k != "intermediate_size"} | {"ffn_dim": 48}
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 3, "d_ff": 48,
    "decoder_start_token_id": 0,
}  # fmt: skip
_OURS: dict[str, Any] = _FULL | {"head_dim": 8}
_GEMMA: dict[str, Any] = _GROUPED | {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}

# name: (configuration, model, what differs)
_BUILDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", _OLD),
    "gpt2_scaled": ("GPT2Config", "GPT2LMHeadModel", _OLD | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neo": (
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 32,
            "hidden_size": 32,
            "num_layers": 3,
            "num_heads": 4,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": WINDOW,
        },
    ),
    "gptj": ("GPTJConfig", "GPTJForCausalLM", _OLD | {"rotary_dim": 4}),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _FULL),
    "gpt_neox_sequential": ("GPTNeoXConfig", "GPTNeoXForCausalLM", _FULL | {"use_parallel_residual": False}),
    "llama": ("LlamaConfig", "LlamaForCausalLM", _GROUPED),
    "llama_biased": (
        "LlamaConfig",
        "LlamaForCausalLM",
        _GROUPED | {"attention_bias": True, "mlp_bias": True},
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", _GROUPED | {"sliding_window": WINDOW}),
    "qwen2": (
        "Qwen2Config",
        "Qwen2ForCausalLM",
        _GROUPED | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _GROUPED | {"head_dim": 16}),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _GROUPED | {"head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        "Gemma2ForCausalLM",
        _GEMMA | {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 1.0},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        _GEMMA | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "phi": ("PhiConfig", "PhiForCausalLM", _FULL),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", _GROUPED),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM", _GROUPED),
    "opt": ("OPTConfig", "OPTForCausalLM", _OPT | {"word_embed_proj_dim": 32}),
    "opt_projected": ("OPTConfig", "OPTForCausalLM", _OPT | {"word_embed_proj_dim": 16}),
    "opt_post_norm": (
        "OPTConfig",
        "OPTForCausalLM",
        _OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 3, "n_head": 4},
    ),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "microtome": ("TransformerConfig", "Transformer", _OURS),
    "microtome_rotary": (
        "TransformerConfig",
        "Transformer",
        _OURS | {"positions": "rotary", "norm": "rms", "hidden_act": "silu", "bias": False},
    ),
    "microtome_attention_only": (
        "TransformerConfig",
        "Transformer",
        _OURS | {"intermediate_size": 0, "norm": "none", "positions": "rotary"},
    ),
    "bert": ("BertConfig", "BertForMaskedLM", _FULL),
    "roberta": ("RobertaConfig", "RobertaForMaskedLM", _FULL | {"max_position_embeddings": 40}),
    "t5": ("T5Config", "T5ForConditionalGeneration", _T5),
    "t5_gated": ("T5Config", "T5ForConditionalGeneration", _T5 | {"feed_forward_proj": "gated-gelu"}),
}

ALL = tuple(_BUILDS)
ENCODERS = ("bert", "roberta")
ENCODER_DECODERS = ("t5", "t5_gated")
DECODERS = tuple(name for name in ALL if name not in (*ENCODERS, *ENCODER_DECODERS))
# One of each kind of wiring, for what need not be shown on all.
FEW = ("gpt2", "gptj", "gpt_neox", "llama", "gemma2", "opt_post_norm", "bloom", "mixtral")


def make(name: str, *, seed: int = 0, attention: str = "sdpa", **changes: Any) -> nn.Module:
    """A fresh tiny model. `changes` go to its configuration."""
    config, model, fields = _BUILDS[name]
    special = {"pad_token_id": 1, "bos_token_id": 3} if name == "roberta" else {}
    return random_model(config, model, fields | _SPECIAL | special | changes, seed=seed, attention=attention)


def random_model(
    config: str, model: str, fields: dict[str, Any], *, seed: int = 0, attention: str = "sdpa"
) -> nn.Module:
    """Any architecture of Transformers with weights, biases and norms drawn anew."""
    home = transformers if hasattr(transformers, config) else transformer
    settings = getattr(home, config)(**fields)
    if attention != "sdpa":
        settings._attn_implementation = attention
    torch.manual_seed(seed)
    module: nn.Module = getattr(home, model)(settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise * 1.2 * parameter.shape[-1] ** -0.5)
    return module.eval()


@cache
def model(name: str) -> Model:
    """A loaded tiny model, shared by the tests that only use it as it is meant to be used."""
    return load(make(name))


def ids(rows: int = 2, columns: int = COLUMNS, seed: int = 0) -> Tensor:
    """Random token ids, none of them special."""
    return torch.randint(4, VOCABULARY, (rows, columns), generator=torch.Generator().manual_seed(seed))


def inputs(name: str, rows: int = 2, columns: int = COLUMNS, seed: int = 0) -> Any:
    """What `run` takes for this family: ids, or both ends of an encoder–decoder."""
    if name not in ENCODER_DECODERS:
        return ids(rows, columns, seed)
    return {
        "input_ids": ids(rows, columns, seed),
        "decoder_input_ids": ids(rows, columns - 2, seed + 1000),
    }


def untouched(module: nn.Module, given: Any) -> Tensor:
    """The module's own logits, from the call that `run` makes too: without a key/value cache."""
    with torch.no_grad():
        given = given if isinstance(given, dict) else {"input_ids": given}
        keeps = "use_cache" in inspect.signature(module.forward).parameters
        found = module(**given, **({"use_cache": False} if keeps else {}))
    logits: Tensor = found.logits
    return logits


def snapshot(module: nn.Module) -> Callable[[], None]:
    """Remember all that must not change; the answer asserts that it did not."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

    parameters = dict(module.named_parameters())
    state = {key: value.clone() for key, value in module.state_dict().items()}
    modules = list(module.modules())
    attributes = [set(vars(m)) for m in modules]
    forwards = [(vars(m).get("forward"), vars(m).get("_attn")) for m in modules]
    hooks = [[dict(vars(m)[name]) for name in _HOOKS] for m in modules]
    settings = [getattr(getattr(m, "config", None), "_attn_implementation", None) for m in modules]
    kernels, local = dict(registry), dict(registry._local_mapping)
    training = [m.training for m in modules]

    def check() -> None:
        assert list(module.modules()) == modules
        assert {k: id(v) for k, v in module.named_parameters()} == {k: id(v) for k, v in parameters.items()}
        now = module.state_dict()
        assert now.keys() == state.keys()
        assert all(torch.equal(now[key], state[key]) for key in state)
        assert all(p.grad is None for p in parameters.values())
        assert [set(vars(m)) for m in modules] == attributes
        assert [(vars(m).get("forward"), vars(m).get("_attn")) for m in modules] == forwards
        assert [[dict(vars(m)[name]) for name in _HOOKS] for m in modules] == hooks
        assert [
            getattr(getattr(m, "config", None), "_attn_implementation", None) for m in modules
        ] == settings
        assert dict(registry) == kernels
        assert dict(registry._local_mapping) == local
        assert [m.training for m in modules] == training

    return check


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
