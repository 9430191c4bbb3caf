"""Weights in one layout are what the model computes with, and views of its own tensors."""

import pytest
import torch
from tests.models import families
from torch import Tensor

from microtome.core.errors import SiteError
from microtome.core.weight import WEIGHTS, Weight
from microtome.models.weights import find


def test_shapes_are_those_of_the_layout() -> None:
    unlayered = {"W_E", "W_pos", "W_U", "b_U"}
    for name in families.ALL:
        model = families.model(name)
        sizes = model.sizes
        lengths = {
            "head": sizes["n_heads"], "kv_head": sizes["n_kv_heads"], "d_head": sizes["d_head"],
            "d_model": sizes["d_model"], "neuron": sizes["d_mlp"], "token": sizes["d_vocab"],
        }  # fmt: skip
        held = 0
        for address, axes in WEIGHTS.items():
            found = find(model.anatomy, Weight(address, None if address in unlayered else 1))
            if found is None:
                continue
            held += 1
            for axis, length in zip(axes, found.shape, strict=True):
                projected = name.startswith("opt_p") and address in ("W_E", "W_U")
                if axis in lengths and not projected:
                    assert length == lengths[axis], (name, address, axis)
        assert held >= 5, name


@pytest.mark.parametrize("name", families.ALL)
def test_queries_keys_values_and_outputs_are_made_with_them(name: str) -> None:
    """At the first position, which no rotation moves, where queries and keys are not normed."""
    model = families.model(name)
    run = model.run(families.inputs(name), read=["attn_in.1", "q.1", "k.1", "v.1", "z.1", "result.1"])
    first = run["attn_in.1"][:, 0]
    normed = name in ("qwen3", "gemma3", "olmo2")
    for part in "QKV":
        made: Tensor = torch.einsum("bm,hmd->bhd", first, model.weight(f"W_{part}.1"))
        bias = find(model.anatomy, Weight(f"b_{part}", 1))
        made = made if bias is None else made + bias
        if name.startswith("opt") and part == "Q":  # scaled before the kernel
            made = made * model.sizes["d_head"] ** -0.5
        assert (normed and part != "V") or torch.allclose(made, run[f"{part.lower()}.1"][:, 0], atol=2e-5), (
            part
        )
    results = torch.einsum("bphd,hdm->bphm", run["z.1"], model.weight("W_O.1"))
    assert torch.allclose(results, run["result.1"], atol=1e-6)


def test_they_are_views_of_the_models_own_tensors() -> None:
    for name in ("gpt2", "gpt_neox", "llama", "phi3"):
        model = families.model(name)
        own = {p.untyped_storage().data_ptr() for p in model.module.parameters()}
        for address in ("W_E", "W_Q.0", "W_K.1", "W_V.2", "W_O.1", "W_in.0", "W_out.2", "W_U"):
            assert model.weight(address).untyped_storage().data_ptr() in own, (name, address)


def test_heads_are_chosen_and_what_is_not_there_is_refused() -> None:
    model = families.model("llama")
    assert torch.equal(model.weight("W_Q.1.h3,0"), model.weight("W_Q.1")[[3, 0]])
    for address in ("W_Q.3", "W_Q.0.h4", "W_K.0.h2", "b_Q.0", "W_pos", "b_U"):
        with pytest.raises(SiteError):
            model.weight(address)
    with pytest.raises(SiteError, match="no such parameter"):
        families.model("mixtral").weight("W_in.0")
