"""Where heads look: relations by definition, masses by hand, hand-set heads found, padding left out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from golden import golden
from heads.hand_set import hand_set
from microtome.core.errors import InputError
from microtome.data.prompts import Prompts
from microtome.heads import attention_patterns as patterns
from microtome.heads.relations import NAMES, allowed, mass, relations, uniform
from microtome.models.load import load
from models import families


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 3), st.booleans())
def test_relations_are_their_definitions(text: list[int], padding: int, left: bool) -> None:
    row = [0] * padding + text if left else text + [0] * padding
    start = padding if left else 0
    real = torch.zeros(1, len(row), dtype=torch.bool)
    real[0, start : start + len(text)] = True
    found = {name: places[0] for name, places in relations(torch.tensor([row]), real).items()}
    for i in range(len(row)):
        for j in range(len(row)):
            q, k = i - start, j - start
            inside = 0 <= k <= q < len(text)
            expected = {
                "previous": inside and k == q - 1,
                "first": inside and k == 0,
                "itself": inside and k == q,
                "duplicate": inside and k < q and text[k] == text[q],
                "induction": inside and k > 0 and k - 1 < q and text[k - 1] == text[q],
            }
            assert {name: bool(found[name][i, j]) for name in NAMES} == expected


def test_mass_counts_only_queries_that_have_such_a_place() -> None:
    pattern = torch.tensor([[[[1.0, 0.0], [0.25, 0.75]]]])
    places = torch.tensor([[[False, False], [True, False]]])
    assert mass(pattern, places).item() == 0.25
    assert mass(pattern, torch.zeros(1, 2, 2, dtype=torch.bool)).isnan().all()


def test_even_attention_has_entropy_one_and_a_single_place_none() -> None:
    may = allowed(torch.ones(1, 5, dtype=torch.bool), True)
    assert patterns.relative_entropy(uniform(may), may).item() == pytest.approx(1)
    assert patterns.relative_entropy(torch.eye(5)[None, None], may).item() == 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2", "bloom"])
def test_numbers_are_those_of_the_models_patterns(name: str) -> None:
    model, ids = families.model(name), families.ids(3)
    found = patterns.run(
        model, ids, patterns.Config(keep=2, rows_at_once=2, layers=(0, 2), heads=(1, 3))
    ).data
    whole = model.run(ids, ["pattern.2"])["pattern.2"]
    np.testing.assert_allclose(found["pattern"].values[:, 1], whole[:2, [1, 3]], rtol=1e-5, atol=1e-6)
    previous = torch.stack([whole[:, 3, q, q - 1] for q in range(1, ids.shape[1])]).mean()
    told = found["looks"].sel(relation="previous", layer=2, head=3).item()
    assert told == pytest.approx(previous.item(), rel=1e-5)
    assert found["evenly"].sel(relation="itself").item() == pytest.approx(np.mean(1 / np.arange(1, 10)))


def test_hand_set_heads_are_found_on_text() -> None:
    text = torch.tensor([[5, 9, 7, 5, 9, 7, 5, 9]])
    looks = patterns.run(hand_set(), text).data["looks"]
    assert looks.sel(relation="previous", layer=0, head=0).item() > 0.99
    assert looks.sel(relation="induction", layer=1, head=0).item() > 0.99
    assert looks.sel(relation="previous", layer=0, head=1).item() < 0.5


def test_padding_changes_nothing() -> None:
    model, ids = families.model("llama"), families.ids(1, 6)
    padded = Prompts(
        torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], 1),
        torch.tensor([[1] * 6 + [0] * 3]),
        ("text",),
        {i: str(i) for i in range(61)},
    )
    one, two = patterns.run(model, ids).data, patterns.run(model, padded).data
    for name in ("looks", "evenly", "entropy"):
        np.testing.assert_allclose(one[name].values, two[name].values, rtol=1e-4, atol=1e-6)


def test_it_draws_text_and_refuses_what_is_not_there() -> None:
    model, ids = families.model("gpt2"), families.ids(2)
    looks, entropy, strip, whole, table = patterns.run(model, ids).shapes()
    assert looks.values.shape == (5, 3, 4)
    assert entropy.values.shape == (3, 4)
    assert strip.values.shape == (12, 9)
    assert whole.values.shape == (12, 9, 9)
    assert "2 prompts" in looks.caption
    assert {row[0] for row in table.rows} <= set(NAMES)
    with pytest.raises(InputError, match="this model has 4"):
        patterns.run(model, ids, patterns.Config(heads=(0, 4)))


@pytest.mark.truth
def test_patterns_are_the_recorded_ones(shared_models: Path) -> None:
    ids = golden(shared_models, "idx").long()
    found = patterns.run(
        load(shared_models / "nano-sort"), ids, patterns.Config(layers=(0,), keep=len(ids))
    ).data
    np.testing.assert_allclose(found["pattern"].values[:, 0], golden(shared_models, "attSm"), atol=1e-5)
