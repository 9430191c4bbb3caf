"""The named parts sum to the stream, and through the linear view of the head to the logits, in every decoder."""

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from microtome.core.errors import FamilyError, SiteError
from microtome.models.load import load
from microtome.models.readout import readout
from microtome.models.stream_parts import stream_parts
from models import families

ADDITIVE = tuple(name for name in families.DECODERS if name != "opt_post_norm")


@pytest.mark.parametrize("name", ADDITIVE)
def test_parts_sum_to_the_stream_and_to_the_logits(name: str) -> None:
    model, ids = families.model(name), families.ids(3)
    parts = stream_parts(model, ids, None)
    head = readout(model)
    tokens = torch.arange(families.VOCABULARY)
    whole = parts.vectors.sum(dim=2)
    torch.testing.assert_close(whole, parts.stream, rtol=1e-4, atol=1e-5)
    logits = whole / head.norm.scale(parts.stream) @ head.directions(tokens).T
    logits = head.capped(logits + head.norm_bias(tokens) + head.bias(tokens))
    own = model.run(ids).logits
    assert own is not None
    torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-4 * float(own.abs().max()))


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gpt_neox"])
def test_a_part_is_what_disappears_when_it_is_left_out(name: str) -> None:
    model, ids = families.model(name), families.ids(2)
    parts = stream_parts(model, ids, None)
    index = [part.name for part in parts.parts].index("mlp_out.2")
    edited = parts.stream - parts.vectors[:, :, index]
    from microtome.core.edits import Zero

    zeroed = model.run(ids, ["resid_post.2"], [Zero("mlp_out.2")])["resid_post.2"]
    bias = next(
        (v for p, v in zip(parts.parts, parts.vectors.unbind(2), strict=True) if p.name == "mlp_bias.2"), 0.0
    )
    torch.testing.assert_close(edited - bias, zeroed, rtol=1e-4, atol=1e-5)


def test_padding_on_either_side_changes_no_part() -> None:
    model, ids = families.model("gpt2"), families.ids(1, 5)
    alone = stream_parts(model, ids).vectors
    for side in ("left", "right"):
        padding = torch.zeros(1, 2, dtype=torch.long)
        real, none = torch.ones(1, 5, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long)
        both = [padding, ids] if side == "left" else [ids, padding]
        mask = [none, real] if side == "left" else [real, none]
        padded = stream_parts(model, torch.cat(both, 1), mask=torch.cat(mask, 1)).vectors
        torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["opt_post_norm", "bert"])
def test_a_stream_that_is_no_sum_is_refused(name: str) -> None:
    with pytest.raises(FamilyError, match="not the sum"):
        stream_parts(families.model(name), families.ids())


def test_an_encoder_decoder_is_refused() -> None:
    with pytest.raises(FamilyError, match="cross-attention"):
        stream_parts(families.model("t5"), families.ids())


def test_a_head_that_is_not_linear_or_not_there_is_refused() -> None:
    with pytest.raises(FamilyError, match="not one linear layer"):
        readout(families.model("bert"))
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bare = load(LlamaModel(LlamaConfig(vocab_size=11, **small)).eval())
    with pytest.raises(SiteError, match="no unembedding"):
        readout(bare)
