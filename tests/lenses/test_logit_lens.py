"""The last stream is the model's answer; every measure is what its definition says; padding is left out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from golden import golden
from microtome.core.edits import Set
from microtome.lenses import logit_lens
from microtome.models.load import load
from models import families


@pytest.mark.parametrize("name", families.DECODERS)
def test_the_last_stream_gives_the_models_own_logits(name: str) -> None:
    model, ids = families.model(name), families.ids(2)
    found = logit_lens.run(model, ids)
    assert found.data.attrs["error"] < 1e-5
    assert found.data["divergence"].values[-1].max() < 1e-5
    assert found.data["divergence"].values[0].min() > 1e-3
    own = model.run(ids).logits
    assert own is not None
    top = found.data["top_token"].values[-1, :, :, 0].astype(int)
    assert np.array_equal(top, own.argmax(-1))


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_a_middle_stream_reads_as_if_the_later_blocks_wrote_nothing(name: str) -> None:
    """Skipping the rest of the model, by setting its last stream, is the intervention the lens stands for."""
    model, ids = families.model(name), families.ids(2)
    found = logit_lens.run(model, ids)
    early = model.run(ids, ["resid_post.0"])["resid_post.0"]
    skipped = model.run(ids, edit=[Set("resid_post.2", value=early)]).logits
    own = model.run(ids).logits
    assert skipped is not None
    assert own is not None
    lens, final = skipped.log_softmax(-1), own.log_softmax(-1)
    at = found.data.sel(site="resid_post.0")
    target = lens[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    np.testing.assert_allclose(at["log_probability"].values[:, :-1], target, rtol=1e-4, atol=1e-4)
    rank = 1 + (lens[:, :-1] > target[..., None]).sum(-1)
    assert np.array_equal(at["rank"].values[:, :-1], rank)
    divergence = (final.exp() * (final - lens)).sum(-1)
    np.testing.assert_allclose(at["divergence"].values, divergence, rtol=1e-3, atol=1e-5)
    entropy = -(lens.exp() * lens).sum(-1)
    np.testing.assert_allclose(at["entropy"].values, entropy, rtol=1e-3, atol=1e-4)


def test_the_target_is_the_next_token_or_the_models_own() -> None:
    model, ids = families.model("gpt2"), families.ids(2)
    own = model.run(ids).logits
    assert own is not None
    following = logit_lens.run(model, ids).data["target"].values.astype(int)
    assert np.array_equal(following[:, :-1], ids[:, 1:])
    assert np.array_equal(following[:, -1], own.argmax(-1)[:, -1])
    final = logit_lens.run(model, ids, logit_lens.Config(target="final")).data
    assert np.array_equal(final["target"].values.astype(int), own.argmax(-1))
    assert (final["rank"].values[-1] == 1).all()


def test_a_token_planted_early_is_seen_from_there_on_and_not_before() -> None:
    """The first MLP is made to write token 7's direction and nothing later writes: the lens finds it after that MLP."""
    module = families.make("llama_biased")
    with torch.no_grad():
        for block in module.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.self_attn.o_proj.bias.zero_()
            block.mlp.down_proj.weight.zero_()
            block.mlp.down_proj.bias.zero_()
        module.model.layers[1].mlp.down_proj.bias.copy_(100 * module.lm_head.weight[7])
        module.model.norm.weight.fill_(1.0)
        module.lm_head.weight.div_(module.lm_head.weight.norm(dim=1, keepdim=True))
    ids = families.ids(1)
    found = logit_lens.run(load(module), ids, logit_lens.Config(target="final")).data
    assert (found["target"].values == "7").all()
    assert (found["rank"].sel(site="resid_post.1").values == 1).all()
    assert (found["divergence"].sel(site="resid_mid.1").values > 0.5).all()
    assert found["rank"].sel(site="resid_mid.1").values.mean() > 3


def test_parallel_blocks_have_no_middle() -> None:
    parallel, sequential = (logit_lens.streams(families.model(name)) for name in ("gptj", "gpt2"))
    assert [str(site) for site in parallel] == ["resid_pre.0", "resid_post.0", "resid_post.1", "resid_post.2"]
    assert [str(site) for site in sequential[:3]] == ["resid_pre.0", "resid_mid.0", "resid_post.0"]


def test_padding_is_not_measured_and_changes_nothing(text_model: object) -> None:
    model = text_model
    both = logit_lens.run(model, ["a b c d", "b c"]).data
    alone = logit_lens.run(model, ["b c"]).data
    assert np.isnan(both["rank"].values[:, 1, 2:]).all()
    assert (both["top_token"].values[:, 1, 2:] == "").all()
    np.testing.assert_allclose(
        both["log_probability"].values[:, 1, :2], alone["log_probability"].values[:, 0], rtol=1e-4
    )


def test_it_draws_the_first_prompt_and_the_mean_over_all(text_model: object) -> None:
    shapes = logit_lens.run(text_model, ["a b c d", "b c"]).shapes()
    grid, curve = shapes[0], shapes[3]
    assert grid.values.shape == (7, 4)
    assert "2 prompts" in grid.caption
    assert "6 tokens of 2 prompts" in curve.caption
    assert [label.strip() for label in grid.column_labels] == ["a", "b", "c", "d"]


@pytest.mark.truth
def test_streams_and_answers_are_the_recorded_ones(shared_models: Path) -> None:
    """The lens of each recorded stream, by the recorded model's own norm and unembedding."""
    model, ids = load(shared_models / "nano-sort"), golden(shared_models, "idx").long()
    found = logit_lens.run(model, ids).data
    for layer in range(3):
        lens = model.unembed(golden(shared_models, f"block{layer}")).log_softmax(-1)
        following = lens[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].detach()
        told = found["log_probability"].sel(site=f"resid_post.{layer}").values[:, :-1]
        np.testing.assert_allclose(told, following, rtol=1e-3, atol=1e-4)
    recorded = golden(shared_models, "lm_head").log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    np.testing.assert_allclose(told, recorded, rtol=1e-3, atol=1e-4)
    assert found.sizes["choice"] == 3  # all there are, though five were asked for
