"""Composition scores: the dense definition, random matrices at chance, a planted pair, GPT-2 as published."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from microtome.core.errors import InputError
from microtome.models.head_circuits import ov, qk
from microtome.models.load import load
from microtome.models.low_rank import LowRank
from microtome.models.random_twin import random_twin
from microtome.weights import composition
from models import families


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_scores_are_the_dense_definition(name: str) -> None:
    model = families.model(name)
    found = composition.run(model, None, composition.Config(draws=2)).data["score"]
    a, b = ov(model, 0).dense(), ov(model, 2).dense()
    keys = qk(model, 2).dense()
    for kind, product, target in (
        ("q", a[1] @ keys[3], keys[3]),
        ("k", a[1] @ keys[3].T, keys[3]),
        ("v", a[1] @ b[3], b[3]),
    ):
        told = found.sel(kind=kind, source="0.1", target="2.3").item()
        assert told == pytest.approx((product.norm() / a[1].norm() / target.norm()).item(), rel=1e-4)
    assert np.isnan(found.sel(source="1.0", target="1.1")).all()
    assert np.isnan(found.sel(source="2.0", target="0.1")).all()


def test_random_matrices_score_one_over_root_d() -> None:
    mean, spread = composition.baseline(64, 16, 40, 0)
    assert mean == pytest.approx(1 / 8, rel=0.02)
    assert spread < 0.02


def test_a_zero_head_composes_with_nothing() -> None:
    zero = LowRank(torch.zeros(1, 6, 2), torch.zeros(1, 2, 6))
    other = LowRank(torch.randn(1, 6, 2), torch.randn(1, 2, 6))
    assert composition.score(zero, other).item() == 0
    assert composition.score(other, zero).item() == 0


def test_a_planted_pair_is_the_strongest_and_its_twin_has_none() -> None:
    module = families.make("gpt2")
    d, d_head = 32, 8
    with torch.no_grad():  # head 0.2 writes exactly into what the keys of head 2.1 read
        module.transformer.h[2].ln_1.weight.fill_(1.0)
        keys = module.transformer.h[2].attn.c_attn.weight[:, d + d_head : d + 2 * d_head]
        module.transformer.h[0].attn.c_proj.weight[2 * d_head : 3 * d_head] = keys.T - keys.T.mean(
            1, keepdim=True
        )
    model = load(module)

    def distance(one: composition.Result) -> np.ndarray:
        chance, spread = one.data["baseline"].values[1], one.data["spread"].values[1]
        return (one.data["score"].sel(kind="k").values - chance) / spread

    found = composition.run(model)
    planted = distance(found)
    best = np.unravel_index(np.nanargmax(planted), planted.shape)
    names = found.data["source"].values
    assert (names[best[0]], names[best[1]]) == ("0.2", "2.1")
    others = planted.copy()
    others[best] = np.nan
    # Nothing else in the model, and nothing at all in the twin, stands out as the planted pair does.
    assert planted[best] > 2 * np.nanmax(others)
    assert planted[best] > 2 * np.nanmax(distance(composition.run(random_twin(model))))


def test_it_draws_pairs_against_chance() -> None:
    grid, table, graph = composition.run(families.model("llama")).shapes()
    assert grid.values.shape == (3, 12, 12)
    assert "standard deviations" in grid.caption
    assert len(table.rows) == 20
    assert all(arc.source.split(".")[0] < arc.target.split(".")[0] for arc in graph.arcs)


def test_one_layer_has_no_pairs() -> None:
    model = load(
        GPT2LMHeadModel(GPT2Config(**families._OLD | {"n_layer": 1}, bos_token_id=1, eos_token_id=1)).eval()
    )
    with pytest.raises(InputError, match="one layer"):
        composition.run(model)


@pytest.mark.truth
def test_gpt2_heads_compose_as_published(shared_models: Path) -> None:
    """The previous-token head 4.11 K-composes most with known induction heads: 6.9, 5.1, 5.5, 7.10."""
    weights = load_file(shared_models / "gpt2-attention-4-7" / "attention.safetensors")
    config = GPT2Config(vocab_size=8, n_positions=8, n_layer=4, n_inner=4, bos_token_id=1, eos_token_id=1)
    module = GPT2LMHeadModel(config).eval()
    moved = {
        name.replace(f".h.{n}.", f".h.{n - 4}."): value.float()
        for n in range(4, 8)
        for name, value in weights.items()
        if f".h.{n}." in name
    }
    assert not module.load_state_dict(moved, strict=False).unexpected_keys
    model = load(module, check=False)
    found = composition.run(model, None, composition.Config(centre=False, draws=4)).data
    scores = found["score"].sel(kind="k", source="0.11").dropna("target")
    order = scores.sortby(scores, ascending=False)
    assert [str(name) for name in order["target"].values[:4]] == ["2.9", "1.1", "1.5", "3.10"]
    np.testing.assert_allclose(order.values[:4], [0.1025, 0.1015, 0.0968, 0.0892], atol=1e-4)
    assert float(scores.median()) == pytest.approx(0.034, abs=1e-3)
    # Chance for these shapes is what the median head shows.
    assert float(found["baseline"][1]) == pytest.approx(768**-0.5, rel=0.01)
