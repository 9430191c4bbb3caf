"""Keeping some components and replacing the rest, against passes edited by hand."""

import numpy as np
import pytest
import torch
from tests.circuits.planted import pairs_of, random_pairs
from tests.models import families

from microtome.circuits.knockout import Knockout
from microtome.core.edits import Set
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs

NAMES = ["gpt2", "gptj", "llama", "gemma2", "microtome_attention_only"]


@pytest.mark.parametrize("name", NAMES)
def test_the_two_fixed_points_are_one_and_zero(name: str) -> None:
    knockout = Knockout(families.model(name), random_pairs())
    shares = knockout.shares([knockout.components, ()])
    np.testing.assert_allclose(shares, [1.0, 0.0], atol=1e-6)
    plain = knockout.model.run(knockout.pairs.clean, metric=knockout.metric).metric
    torch.testing.assert_close(knockout.whole, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["resample", "mean"])
def test_what_is_kept_is_a_pass_with_everything_else_set_by_hand(name: str, kind: str) -> None:
    model, pairs = families.model(name), random_pairs()
    knockout = Knockout(model, pairs, kind)
    kept = {Site("z", 0, heads=(1,)), Site("z", 2, heads=(0,))}
    rest = [site for site in knockout.components if site not in kept]
    there = model.run(pairs.corrupt, rest)
    edits = []
    for site in rest:
        value = (
            there[site]
            if kind == "resample"
            else there[site].mean(dim=0, keepdim=True).expand_as(there[site])
        )
        edits.append(Set(site, value=value))
    expected = model.run(pairs.clean, edit=edits, metric=metrics.build("logit-difference", pairs)).metric
    assert expected is not None
    torch.testing.assert_close(knockout.scores([kept])[0], expected, rtol=0, atol=1e-5)
    low, high = knockout.interval(expected)
    assert low <= float(knockout.share(expected)) <= high


def test_a_mean_over_prompts_of_unequal_length_is_over_real_tokens() -> None:
    pairs = random_pairs(3)
    mask = torch.ones_like(pairs.clean)
    mask[1, -3:] = 0
    padded = Pairs(
        pairs.clean,
        pairs.corrupt,
        mask,
        pairs.answers,
        pairs.wrong,
        pairs.slots,
        pairs.texts,
        pairs.corrupt_texts,
        {},
    )
    model = families.model("llama")
    knockout = Knockout(model, padded, "mean")
    whole = Site("mlp_out", 1)
    there = model.run(padded.corrupt, [whole], mask=mask)[whole]
    real = torch.cat([there[0], there[1, :-3], there[2]])
    torch.testing.assert_close(knockout.replacement(whole)[0, 0], real.mean(dim=0), rtol=0, atol=1e-6)


def test_without_a_difference_there_is_no_share() -> None:
    pairs = random_pairs()
    same = pairs_of(pairs.clean, pairs.clean, [3] * 4, [5] * 4)
    knockout = Knockout(families.model("gpt2"), same)
    assert knockout.gap == pytest.approx(0, abs=1e-6)
    assert torch.isnan(knockout.shares([()])).all()


def test_what_is_no_component_is_refused() -> None:
    knockout = Knockout(families.model("gpt2"), random_pairs())
    with pytest.raises(InputError, match=r"z\.7\.h0 is not a head or MLP"):
        knockout.edits([Site("z", 7, heads=(0,))])
