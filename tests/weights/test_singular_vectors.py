"""Singular vectors against dense decompositions, and tokens against all of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models import families

from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.models.head_circuits import ov, token_embeddings
from microtome.models.low_rank import LowRank
from microtome.models.readout import readout
from microtome.weights import singular_vectors
from microtome.weights.singular_vectors import Config


def test_thin_factors_have_the_vectors_of_their_product() -> None:
    draw = torch.Generator().manual_seed(0)
    product = LowRank(torch.randn(3, 9, 4, generator=draw), torch.randn(3, 4, 7, generator=draw))
    left, values, right = product.svd()
    torch.testing.assert_close(left * values[:, None] @ right, product.dense(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values, torch.linalg.svdvals(product.dense())[:, :4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_tokens_listed_are_those_furthest_along(name: str, tmp_path: Path) -> None:
    model = families.model(name)
    found = singular_vectors.run(model, None, Config(layers=(1,), vectors=2, tokens=3))
    assert found.data.sizes["matrix"] == 4 + 4 + 2
    circuit = ov(model, 1)[2]
    left, values, right = torch.linalg.svd(circuit.dense())
    here = found.data.sel(matrix="OV.1.h2")
    np.testing.assert_allclose(here["value"].values, values[:2], rtol=1e-4)
    ids = torch.arange(families.VOCABULARY)
    read = token_embeddings(model) @ left[:, 0]
    written = readout(model).directions(ids) @ right[0]
    told = [
        {end: set(map(int, here[side].sel(end=end).values[0])) for end in "+-"} for side in ("left", "right")
    ]
    expected = [
        {sign: set((factor * scores).topk(3).indices.tolist()) for sign, factor in (("+", 1), ("-", -1))}
        for scores in (read, written)
    ]
    swapped = [{"+": side["-"], "-": side["+"]} for side in expected]
    assert told in (expected, swapped)  # a vector and its partner turn round together
    assert Result.load(found.save(tmp_path / "r")) == found


def test_of_an_mlp_both_norms_count() -> None:
    model = families.model("gemma2")
    found = singular_vectors.run(model, None, Config(kinds=("W_in", "W_out"), layers=(0,), vectors=1))
    plain = [
        float(torch.linalg.svdvals(model.weight(f"{kind}.0").detach().float())[0])
        for kind in ("W_in", "W_out")
    ]
    assert found.data["value"].values[:, 0] != pytest.approx(plain, rel=0.01)
    assert found.data["left"].sel(matrix="W_out.0").values[0, 0, 0].startswith("u")


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="layer 3 is out of range"):
        singular_vectors.run(families.model("gpt2"), None, Config(layers=(3,)))
    with pytest.raises(InputError, match="has none of W_in"):
        singular_vectors.run(families.model("microtome_attention_only"), None, Config(kinds=("W_in",)))
