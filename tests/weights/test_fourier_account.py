"""The account is right on a network built by hand and on trained ones, and empty on their twins."""

import math

import numpy as np
import pytest
import torch

import microtome
from microtome.core.answers import Quantities
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds.algorithmic import modular_addition
from microtome.testbeds.case import Case
from microtome.weights import fourier_account
from models import families


@pytest.fixture(scope="module", params=[0, 1])
def case(request: pytest.FixtureRequest) -> Case:
    return modular_addition.build("p53", request.param)


@pytest.fixture(scope="module")
def account(case: Case) -> fourier_account.Result:
    return fourier_account.run(case.model, case.tokens)


def test_its_shares_are_those_of_plain_sums(case: Case, account: fourier_account.Result) -> None:
    (answer,) = account.answers()
    assert isinstance(answer, Quantities)
    assert set(answer.values) == set(case.truth.quantities)
    # The same number by another road: transforms here, sums over a + b − c there.
    for name, value in case.truth.quantities.items():
        assert answer.values[name] == pytest.approx(value, rel=1e-5, abs=1e-9)


def test_a_network_that_adds_does_so_with_a_few_frequencies(account: fourier_account.Result) -> None:
    whole, restricted, excluded = account.data["loss"].values
    assert 1 <= len(account.keys) <= 6
    assert account.data["accuracy"].values.tolist() == [1, 1]
    # Kept alone the key waves still answer, better than the network on what it never saw; without them it knows less
    # than one who guesses.
    assert restricted[1] < whole[1]
    assert excluded.min() > math.log(53)
    frequencies = account.data["neuron_frequency"].values
    # The neurons have learned the same frequencies as the logits, and little else.
    assert np.isin(frequencies, account.keys).mean() > 0.9
    assert float(account.data["neuron_share"].mean()) > 0.7
    # So has the embedding: its largest waves are those of the key frequencies.
    norms = account.data["embedding_norm"].values[1:].reshape(-1, 2).max(1)
    assert set(account.keys) <= set((norms.argsort()[::-1][: len(account.keys) + 1] + 1).tolist())


def test_its_twin_has_no_frequency(case: Case, account: fourier_account.Result) -> None:
    # 26 of 53³ directions would hold 2e-4 of white noise; a hundred times as much is still nothing.
    assert float(account.data["twin_share"].sum()) < 0.02
    twin = fourier_account.run(case.control, case.tokens, fourier_account.Config(control=False))
    assert twin.keys == ()
    assert "no key frequency" in " ".join(twin.notes)
    assert np.isnan(twin.data["twin_share"]).all()
    whole, restricted, excluded = twin.data["loss"].values
    assert restricted == pytest.approx(math.log(53), abs=0.5)
    assert excluded == pytest.approx(whole)


def test_frequencies_belong_to_the_seed() -> None:
    first, second = (modular_addition.build("p53", seed) for seed in (0, 1))
    keys = [fourier_account.run(one.model, one.tokens).keys for one in (first, second)]
    assert keys[0] != keys[1]


def test_it_can_be_kept_and_drawn(account: fourier_account.Result, tmp_path) -> None:
    account.save(tmp_path)
    assert Result.load(tmp_path) == account
    shares, losses, norms, neurons = account.shapes()
    assert str(account.keys[0]) in shares.caption
    assert losses.values.shape == (3, 2)
    assert norms.y.shape == (1, 53)
    assert sum(row[1] for row in neurons.rows) == 256


def test_a_circle_built_by_hand_has_the_frequency_it_was_given() -> None:
    """An attention-only network cannot multiply, so its logits have waves of a and of b, and none of their sum."""
    p, k = 7, 2
    module = Transformer(
        TransformerConfig(
            vocab_size=p + 1,
            hidden_size=p,
            num_hidden_layers=1,
            num_attention_heads=1,
            head_dim=p,
            intermediate_size=0,
            max_position_embeddings=3,
            norm="none",
            bias=False,
        )
    ).eval()
    angle = 2 * math.pi * k * torch.arange(p) / p
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.embed.weight[:p, 0], module.embed.weight[:p, 1] = angle.cos(), angle.sin()
        attention = module.blocks[0].attn
        attention.v.weight.copy_(torch.eye(p))
        attention.o.weight.copy_(torch.eye(p))
        module.unembed.weight[:p, 0], module.unembed.weight[:p, 1] = angle.cos(), angle.sin()
    prompts = torch.cat(
        [torch.cartesian_prod(torch.arange(p), torch.arange(p)), torch.full((p * p, 1), p)], 1
    )
    found = fourier_account.run(microtome.load(module), prompts, fourier_account.Config(control=False))
    assert found.keys == ()
    assert float(found.data["share"].sum()) < 1e-9
    norms = found.data["embedding_norm"].values
    assert norms[[3, 4]] == pytest.approx([(p / 2) ** 0.5] * 2, rel=1e-5)
    assert np.delete(norms, [3, 4]).max() < 1e-5
    assert found.data.sizes["neuron"] == 0
    assert np.isnan(found.data["loss"].sel(part="others")).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_any_family_can_be_asked(name: str) -> None:
    model = families.model(name)
    found = fourier_account.run(model, torch.tensor([[3, 5, 1], [5, 8, 1], [9, 11, 1]]))
    assert found.data.attrs["p"] == 5
    assert found.data.sizes["neuron"] == model.n_layers * model.sizes["d_mlp"]
    assert float(found.data["share"].sum()) <= 1


def test_prompts_that_cannot_be_accounted_for_are_refused() -> None:
    model = families.model("gpt2")
    with pytest.raises(InputError, match="odd number of numbers"):
        fourier_account.run(model, torch.tensor([[3, 5, 1], [5, 8, 1], [9, 3, 1]]))
    with pytest.raises(InputError, match="columns of 3"):
        fourier_account.run(model, torch.tensor([[3, 5, 1]]), fourier_account.Config(second=3))
