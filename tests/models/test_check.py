"""A map that is not true is refused when the model is loaded, whatever is wrong with it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.models import families

from microtome.core.errors import FamilyError
from microtome.models.check import check_map, identities
from microtome.models.families import family_of
from microtome.models.load import load

# What is wrong: family, the fields changed.
BROKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "norms swapped": ("gpt2", {"attn_norm": "ln_2", "mlp_norm": "ln_1"}),
    "norms swapped in a parallel block": (
        "gpt_neox",
        {"attn_norm": "post_attention_layernorm", "mlp_norm": "input_layernorm"},
    ),
    "norm before attention is the one after it": ("gemma2", {"attn_norm": "post_attention_layernorm"}),
    "no norm after the attention": ("gemma2", {"attn_adds": ""}),
    "norms after the parts swapped": (
        "olmo2",
        {"attn_adds": "post_feedforward_layernorm", "mlp_adds": "post_attention_layernorm"},
    ),
    "wrong output projection, same shape": ("llama", {"o": "self_attn.q_proj"}),
    "wrong output projection, another shape": ("llama", {"o": "mlp.down_proj"}),
    "keys and values swapped": ("llama", {"k": "self_attn.v_proj", "v": "self_attn.k_proj"}),
    "queries and keys swapped": ("opt", {"q": "self_attn.k_proj", "k": "self_attn.q_proj"}),
    "gate and partner swapped": ("llama", {"mlp_gate": "mlp.up_proj", "mlp_up": "mlp.gate_proj"}),
    "layout of the fused projection": ("gpt_neox", {"interleaved": False}),
    "layout of the fused projection, the other way": ("gpt2", {"interleaved": True}),
    "sequential called parallel": ("gpt2", {"residual": "parallel"}),
    "parallel called sequential": ("gpt_neox", {"residual": "sequential"}),
    "post-norm called sequential": ("bert", {"residual": "sequential"}),
    "pre-norm called post-norm": ("llama", {"residual": "post_norm", "mid": "post_attention_layernorm"}),
    "no final norm": ("gpt2", {"final_norm": ""}),
    "another final norm": ("opt", {"final_norm": "model.decoder.layers.0.final_layer_norm"}),
    "another head": ("opt", {"head": "model.decoder.embed_tokens"}),
    "blocks that are none": ("gpt2", {"layers": "transformer.wte"}),
    "a path that leads nowhere": ("gpt2", {"mlp_down": "mlp.nowhere"}),
    "the wrong MLP": ("llama", {"mlp": "self_attn"}),
    "attention that is not the one": ("llama", {"attn": "mlp"}),
    "neurons of the attention": ("opt", {"mlp_up": "self_attn.q_proj"}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_map_is_refused_at_load(what: str) -> None:
    name, changes = BROKEN[what]
    module = families.make(name)
    unchanged = families.snapshot(module)
    true = family_of(module.config)[""]
    load(module, family=true)
    with pytest.raises(FamilyError):
        load(module, family=replace(true, **changes))
    unchanged()
    assert torch.equal(families.untouched(module, families.ids()), load(module).run(families.ids()).logits)


def test_the_short_check_names_the_identity_and_the_layer() -> None:
    module = families.make("llama")
    swapped = replace(family_of(module.config)[""], mlp_gate="mlp.up_proj", mlp_up="mlp.gate_proj")
    with pytest.raises(FamilyError, match=r"mlp_post in layer \d is off by .* load\(module, family=None\)"):
        load(module, family=swapped)
    assert load(module, family=swapped, check=False).anatomy.family is swapped


def test_a_model_that_is_not_what_it_says_is_caught() -> None:
    """A layer that also adds a constant to the stream breaks the sum."""
    module = families.make("gpt2")
    block = module.transformer.h[2]
    handle = block.register_forward_hook(
        lambda *args: args[-1] + 1e-3 if isinstance(args[-1], torch.Tensor) else None
    )
    with pytest.raises(FamilyError, match="resid_mid \\+ mlp_out = resid_post"):
        load(module)
    handle.remove()
    load(module)


def test_the_short_check_looks_at_both_ends_and_the_thorough_one_at_all() -> None:
    model = families.model("gpt2")
    assert {i.layer for i in identities(model)} == {None, 0, 2}
    assert {i.layer for i in identities(model, thorough=True)} == {None, 0, 1, 2}
    assert all(i.holds for i in check_map(model, columns=3))
