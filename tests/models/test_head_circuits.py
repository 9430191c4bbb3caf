"""The circuits are what the heads compute: scores and writing of the model itself, taken apart, in every family."""

import pytest
import torch

from microtome.core.edits import Set
from microtome.models import head_circuits as circuits
from microtome.models.random_twin import random_twin
from microtome.models.readout import readout
from models import families

NAMES = (
    "gpt2",
    "llama",
    "gpt_neox",
    "gptj",
    "gemma2",
    "olmo2",
    "opt",
    "bloom",
    "phi",
    "phi3",
    "qwen3",
    "mixtral",
)


@pytest.mark.parametrize("name", NAMES)
def test_ov_moves_what_the_head_writes(name: str) -> None:
    """A change of the stream at one token, read with the norm's own divisor, comes out of each head as OV says."""
    model, ids = families.model(name), families.ids(1, 1)
    layer = 1
    where = f"resid_pre.{layer}"
    norm = circuits.norm_before(model, layer)
    base = model.run(ids, [where, f"result.{layer}"])
    other = base[where] + 0.5 * torch.randn_like(base[where])
    moved = model.run(ids, [f"result.{layer}"], [Set(where, value=other)])
    # A single token attends to itself alone, so the pattern is one.
    read = other / norm.scale(other) - base[where] / norm.scale(base[where])
    after = circuits.behind(model.anatomy, layer, "attn")
    told = torch.einsum("bpm,hmn->bphn", read, circuits.ov(model, layer).dense())
    written = moved[f"result.{layer}"] - base[f"result.{layer}"]
    if after is not None:
        written = after.push(written, torch.ones(1, 1, 1, 1))
    torch.testing.assert_close(told, written, rtol=1e-3, atol=1e-4 * float(written.abs().max()))


@pytest.mark.parametrize("name", ["gpt2", "opt", "bloom"])
def test_qk_moves_the_scores(name: str) -> None:
    """Without rotations, the second difference of scores in query and key stream is QK between the two changes."""
    model, ids = families.model(name), families.ids(1, 2)
    norm = circuits.norm_before(model, 0)
    base = model.run(ids, ["resid_pre.0"])["resid_pre.0"]
    change = torch.randn_like(base)
    scores = {}
    for q in (0, 1):
        for k in (0, 1):
            value = base + torch.tensor([float(k), float(q)])[None, :, None] * change
            run = model.run(ids, ["scores.0", "attn_in.0"], [Set("resid_pre.0", value=value)])
            scores[q, k] = run["scores.0"][0, :, 1, 0]
    read = (base + change) / norm.scale(base + change) - base / norm.scale(base)
    told = torch.einsum("m,hmn,n->h", read[0, 1], circuits.qk(model, 0).dense(), read[0, 0])
    second = scores[1, 1] - scores[1, 0] - scores[0, 1] + scores[0, 0]
    torch.testing.assert_close(told * model.sizes["d_head"] ** -0.5, second, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_are_what_enters_the_first_block(name: str) -> None:
    model, ids = families.model(name), families.ids(2)
    found = circuits.token_embeddings(model, block=17)[ids]
    run = model.run(ids, ["resid_pre.0", *(["pos_embed"] if model.has("pos_embed") else [])])
    positions = run["pos_embed"] if model.has("pos_embed") else 0.0
    torch.testing.assert_close(found + positions, run["resid_pre.0"], rtol=1e-5, atol=1e-5)


def test_token_circuits_are_the_dense_products() -> None:
    model = families.model("gemma2")
    embeddings, head = circuits.token_embeddings(model), readout(model)
    out = head.directions(torch.arange(families.VOCABULARY)).T
    for h, one in enumerate(circuits.token_ov(model, 2, head, embeddings)):
        dense = embeddings @ circuits.ov(model, 2)[h].dense() @ out
        torch.testing.assert_close(one.dense(), dense, rtol=1e-3, atol=1e-3)
    for h, one in enumerate(circuits.token_qk(model, 2, embeddings)):
        dense = embeddings @ circuits.qk(model, 2)[h].dense() @ embeddings.T
        torch.testing.assert_close(one.dense(), dense, rtol=1e-3, atol=1e-2)


def test_a_twin_has_the_same_numbers_in_other_places_and_leaves_the_model_alone() -> None:
    model = families.model("gpt2")
    check = families.snapshot(model.module)
    twin, again = random_twin(model, 3), random_twin(model, 3)
    check()
    for (name, own), (_, shuffled), (_, same) in zip(
        *(m.module.named_parameters() for m in (model, twin, again)), strict=True
    ):
        assert torch.equal(own.flatten().sort().values, shuffled.flatten().sort().values), name
        assert torch.equal(shuffled, same)
        assert torch.equal(own, shuffled) == (own.dim() < 2)
    ids = families.ids()
    mine, theirs = model.run(ids).logits, twin.run(ids).logits
    assert mine is not None
    assert theirs is not None
    assert not torch.allclose(mine, theirs)
