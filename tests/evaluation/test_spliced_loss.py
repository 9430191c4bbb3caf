"""The identity loses nothing, nothing recovers nothing, and losses are those of running by hand."""

import math

import pytest
import torch
from jaxtyping import Int
from torch import Tensor

from microtome.bases.linear import LinearBasis
from microtome.core.edits import Zero
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries.activations import ReLU
from microtome.dictionaries.dictionary import Dictionary
from microtome.evaluation.spliced_loss import SplicedLoss, spliced_loss
from microtome.models.load import load
from microtome.models.model import Model
from models import families

IDS = torch.randint(0, 50, (6, 9), generator=torch.Generator().manual_seed(0))


def model(name: str) -> Model:
    return load(families.make(name))


def likely(there: Model) -> Int[Tensor, "row column"]:
    """What the model itself goes on with, so that it loses by being ablated."""
    ids = IDS[:, :1]
    for _ in range(8):
        said = there.run(ids, logits=True).logits
        assert said is not None
        ids = torch.cat([ids, said[:, -1:].argmax(-1)], 1)
    return ids


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_the_identity_recovers_everything(name: str) -> None:
    there = model(name)
    d = there.sizes["d_model"]
    ids = likely(there)
    found = spliced_loss(there, ids, LinearBasis("resid_post.0", torch.eye(d)), rows=4)
    assert found.recovered == pytest.approx(1.0, abs=1e-4)
    assert found.divergence == pytest.approx(0.0, abs=1e-6)
    assert found.divergence_recovered == pytest.approx(1.0, abs=1e-4)
    assert (found.tokens, found.predicted) == (54, 48)
    plain = there.run(ids, logits=True).logits
    assert plain is not None
    loss = torch.nn.functional.cross_entropy(plain[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert found.plain == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize("part", ["resid_post", "z"])
def test_a_crosscoder_is_spliced_in_two_passes(part: str) -> None:
    there = model("gpt2")
    sites = (Site(part, 0), Site(part, 1))
    ids = likely(there)
    values = there.run(ids, sites).values
    d = values[sites[0]][0, 0].numel()
    keep = torch.eye(2 * d)
    keep[d:] = 0  # the first site is kept, the second becomes zero

    def crosscoder(decoder: Tensor) -> Dictionary:
        zeros = torch.zeros(2 * d)
        signed = torch.cat([torch.eye(2 * d), -torch.eye(2 * d)])
        both = torch.cat([decoder, -decoder])
        return Dictionary(
            "cross", sites, sites, (d, d), (d, d), ReLU(), signed, torch.zeros(4 * d), both, zeros, zeros
        )

    whole = spliced_loss(there, ids, crosscoder(torch.eye(2 * d)), rows=4)
    assert whole.recovered == pytest.approx(1.0, abs=1e-4)
    assert whole.divergence == pytest.approx(0.0, abs=1e-6)
    half = spliced_loss(there, ids, crosscoder(keep), rows=4)
    assert half.spliced == pytest.approx(spliced_loss(there, ids, blank(sites[1], d)).spliced, abs=1e-5)
    begun = spliced_loss(there, ids, crosscoder(keep), rows=4, positions=range(1, 9))
    assert 0 < begun.divergence < half.divergence


def blank(site: Site, d: int) -> LinearBasis:
    return LinearBasis(site, torch.eye(d)[:1], readers=torch.zeros(1, d))


def test_a_basis_that_says_nothing_is_the_ablation() -> None:
    there = model("gpt2")
    d = there.sizes["d_model"]
    nothing = LinearBasis("mlp_out.0", torch.eye(d)[:1], readers=torch.zeros(1, d))
    found = spliced_loss(there, IDS, nothing)
    assert found.recovered == pytest.approx(0.0, abs=1e-5)
    assert found.spliced == pytest.approx(found.ablated, abs=1e-6)
    ablated = there.run(IDS, edit=[Zero(Site.parse("mlp_out.0"))], logits=True).logits
    assert ablated is not None
    loss = torch.nn.functional.cross_entropy(ablated[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    assert found.ablated == pytest.approx(float(loss), abs=1e-5)


def test_where_the_ablation_does_not_hurt_there_is_nothing_to_recover() -> None:
    harmless = SplicedLoss(3.0, 2.8, 2.5, 0.1, 0.4, tokens=9, predicted=8)
    assert math.isnan(harmless.recovered)
    assert harmless.divergence_recovered == pytest.approx(0.75)
    assert SplicedLoss(3.0, 3.1, 3.4, 0.1, 0.4, tokens=9, predicted=8).recovered == pytest.approx(0.75)


def test_more_components_recover_more() -> None:
    there = model("gpt2")
    values = there.run(IDS, read=["resid_post.0"])[Site.parse("resid_post.0")].flatten(0, 1)
    vectors = torch.linalg.svd(values - values.mean(0), full_matrices=False).Vh
    found = [
        spliced_loss(
            there, IDS, LinearBasis("resid_post.0", vectors[:k], readers=vectors[:k], centre=values.mean(0))
        ).divergence
        for k in (1, 8, len(vectors))
    ]
    assert found[0] > found[1] > found[2]


def test_single_tokens_have_nothing_to_predict() -> None:
    there = model("gpt2")
    basis = LinearBasis("resid_post.0", torch.eye(there.sizes["d_model"]))
    with pytest.raises(InputError, match="no token has a next one"):
        spliced_loss(there, IDS[:, :1], basis)
