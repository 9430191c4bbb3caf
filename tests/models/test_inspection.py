"""An unknown decoder: its map is found by watching it run, and proved; or it is refused with what to write."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.models import families
from torch import nn

from microtome.core.edits import Zero
from microtome.core.errors import FamilyError
from microtome.models.check import check_map
from microtome.models.families import FAMILIES, family_of
from microtome.models.family import Family
from microtome.models.inspection import inspect_family
from microtome.models.load import load

SIZES: dict[str, Any] = {
    "vocab_size": families.VOCABULARY,
    "max_position_embeddings": 32,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Architectures without a map of their own here: configuration, model, residual, and whether a norm stands after a part.
FOUND = {
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", "sequential", False),
    "starcoder2": ("Starcoder2Config", "Starcoder2ForCausalLM", "sequential", False),
    "granite": ("GraniteConfig", "GraniteForCausalLM", "sequential", False),
    "cohere": ("CohereConfig", "CohereForCausalLM", "parallel", False),
    "cohere2": ("Cohere2Config", "Cohere2ForCausalLM", "parallel", False),
    "olmo": ("OlmoConfig", "OlmoForCausalLM", "sequential", False),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM", "sequential", True),
    "glm": ("GlmConfig", "GlmForCausalLM", "sequential", False),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", "sequential", True),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", "sequential", False),
    "ernie4_5": ("Ernie4_5Config", "Ernie4_5ForCausalLM", "sequential", False),
    "exaone4": ("Exaone4Config", "Exaone4ForCausalLM", "sequential", True),
    "nemotron": ("NemotronConfig", "NemotronForCausalLM", "sequential", False),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", "sequential", False),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", "sequential", False),
}
REFUSED = {
    "falcon": ("FalconConfig", "FalconForCausalLM", "attention interface"),
    "mpt": ("MptConfig", "MptForCausalLM", "attention interface"),
    "mamba": ("MambaConfig", "MambaForCausalLM", "attention interface"),
}


def unknown(name: str, **changes: Any) -> nn.Module:
    config, model, *_ = (FOUND | REFUSED)[name]
    return families.random_model(config, model, SIZES | changes)


@pytest.mark.parametrize("name", FOUND)
def test_an_unknown_decoder_gets_a_true_map(name: str) -> None:
    assert not any(name in family.model_types for family in FAMILIES)
    module = unknown(name)
    unchanged = families.snapshot(module)
    before = families.untouched(module, families.ids())
    model = load(module)
    unchanged()
    family = model.anatomy.family
    assert (family.residual, bool(family.attn_adds and family.mlp_adds)) == FOUND[name][2:]
    assert len(check_map(model, thorough=True)) > 20
    run = model.run(families.ids(), read=model.sites(), logits=True)
    assert torch.equal(run.logits, before)
    assert set(run.values) == set(model.sites())
    assert model.weight("W_Q.1").shape == (4, 32, model.sizes["d_head"])
    changed = model.run(families.ids(), edit=[Zero("z.1.h0")]).logits
    assert not torch.allclose(changed, before)
    unchanged()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_seen_is_refused_with_what_to_write(name: str) -> None:
    module = unknown(name)
    unchanged = families.snapshot(module)
    with pytest.raises(FamilyError, match=REFUSED[name][2]) as error:
        load(module)
    assert "Family(" in str(error.value)
    assert "family=None" in str(error.value)
    unchanged()
    assert load(module, family=None).run(families.ids(), read=["path:lm_head:in"]) is not None


def test_a_factor_that_no_map_expresses_is_refused() -> None:
    """Granite multiplies what is added to the stream: its parts do not sum to it."""
    with pytest.raises(FamilyError, match="a factor on what is added"):
        load(unknown("granite", residual_multiplier=0.22))


def test_the_wiring_is_that_of_the_configuration() -> None:
    assert load(unknown("stablelm", use_parallel_residual=True)).anatomy.family.residual == "parallel"


def test_scales_of_the_head_are_known() -> None:
    """Granite divides its logits, Cohere multiplies them: the head's own arithmetic is followed."""
    for name, changes in (("granite", {"logits_scaling": 3.0}), ("cohere", {"logit_scale": 0.25})):
        module = unknown(name, **changes)
        model = load(module)
        run = model.run(families.ids(), read=["resid_post.2"], logits=True)
        assert torch.allclose(model.unembed(run["resid_post.2"]), run.logits, atol=1e-5)


BY_HAND = (
    "gpt2 llama llama_biased mistral qwen2 qwen3 gemma gemma2 gemma3 phi phi3 olmo2 gpt_neox gpt_neox_sequential opt "
    "mixtral microtome microtome_rotary"
)


@pytest.mark.parametrize("name", BY_HAND.split())
def test_inspection_finds_what_was_written_by_hand(name: str) -> None:
    module = families.make(name)
    written = family_of(module.config)[""]
    found = inspect_family(module)
    same = replace(found, name=written.name, model_types=written.model_types, router=written.router)
    if name == "opt":  # the projection before its head is absent at this size
        same = replace(same, before_head=written.before_head)
    assert same == written


def test_a_written_map_is_taken_and_checked() -> None:
    module = unknown("granite")
    found = inspect_family(module)
    assert load(module, family=found).anatomy.family is found
    with pytest.raises(FamilyError, match="is not true of this"):
        load(module, family=replace(found, attn_norm=found.mlp_norm, mlp_norm=found.attn_norm))


def test_a_map_of_another_architecture_is_refused() -> None:
    gpt2 = family_of(families.make("gpt2").config)[""]
    with pytest.raises(FamilyError, match="expects the blocks at"):
        load(families.make("llama"), family=gpt2)


def test_what_is_no_decoder_at_all() -> None:
    with pytest.raises(FamilyError, match=r"attention interface|no list of equal modules|the search ended"):
        inspect_family(
            families.random_model("ViTConfig", "ViTModel", {"hidden_size": 32, "num_hidden_layers": 2})
        )
    assert isinstance(FAMILIES[0], Family)
