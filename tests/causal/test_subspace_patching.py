"""A variable moves with its subspace and stays with the rest; an illusion is told by the pathway that it takes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.causal import illusion
from tests.causal.cases import compiled, trained
from tests.models import families

from microtome.causal import subspace_patching as method
from microtome.causal.dormant_pathway import parts, readers
from microtome.core.edits import Add
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.core.site import Site


@pytest.mark.parametrize("name", ["sort", "fraction_of_previous"])
def test_compiled_variables_are_in_their_directions(name: str) -> None:
    case = compiled(name)
    found = method.run(case.model, case.hypothesis).data
    accuracy = found["accuracy"]
    assert accuracy.sel(taken="subspace").values.tolist() == [1.0, 1.0]
    assert accuracy.sel(taken="read").values.tolist() == [1.0, 1.0]
    assert accuracy.sel(taken="rest").values.max() < 0.1
    assert accuracy.sel(taken="random").values.max() < 0.2
    assert found["dormant"].values.tolist() == [0.0, 0.0]
    assert found["identity"].values.max() == 0.0


def test_an_illusion_works_and_is_told() -> None:
    model = illusion.network()
    found = {
        name: method.run(model, illusion.hypothesis(directions)).data.isel(variable=0)
        for name, directions in (("honest", illusion.HONEST), ("illusion", illusion.ILLUSION))
    }
    for one in found.values():
        assert float(one["accuracy"].sel(taken="subspace")) == 1.0
    assert float(found["honest"]["dormant"]) == 0.0
    assert float(found["illusion"]["dormant"]) == 1.0
    assert float(found["illusion"]["unread_share"]) == pytest.approx(0.5, abs=1e-6)
    for part in ("read", "unread"):
        assert float(found["illusion"]["accuracy"].sel(taken=part)) == 0.0


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 999))
def test_parts_are_orthonormal_and_apart(count: int, rank: int, seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(6, count, generator=source)).Q.T
    weights = torch.randn(8, rank, generator=source) @ torch.randn(rank, 6, generator=source)
    found = parts(directions, weights)
    for part in (found.read, found.unread):
        torch.testing.assert_close(part @ part.T, torch.eye(len(part)), atol=1e-4, rtol=0)
    assert _largest(found.read @ found.unread.T) < 1e-4
    assert _largest(found.unread @ weights.T) < 1e-2 * max(1.0, _largest(weights))
    assert 0 <= found.unread_share <= 1 + 1e-6
    assert len(found.read) <= min(count, rank)


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("site", ["z.0.h1", "mlp_post.0", "resid_pre.1", "resid_post.1"])
def test_what_is_not_read_does_nothing(family: str, site: str) -> None:
    """A value that all readers see as zero can be added without a trace, and a read one cannot."""
    model = families.model(family)
    place = Site.parse(site)
    rows = readers(model, place)
    assert rows is not None
    tokens = torch.randint(3, 40, (2, 4), generator=torch.Generator().manual_seed(0))
    value = model.run(tokens, [place])[place]
    assert rows.shape[1] == value.shape[-1]
    _, size, span = torch.linalg.svd(rows, full_matrices=True)
    plain = model.run(tokens).logits
    read = model.run(tokens, edit=[Add(place, vector=span[0])]).logits
    assert not torch.allclose(plain, read, atol=1e-4)
    rank = int((size > 1e-5 * size[0]).sum())
    if rank < rows.shape[1] and "resid" not in site:
        unread = model.run(tokens, edit=[Add(place, vector=span[-1])]).logits
        torch.testing.assert_close(plain, unread, atol=1e-4, rtol=1e-4)


def test_readers_that_are_not_known_are_none_and_several_heads_are_refused() -> None:
    assert readers(families.model("gpt2"), Site.parse("pattern.0.h1")) is None
    assert readers(families.model("bert"), Site.parse("resid_post.0")) is None
    with pytest.raises(InputError, match="several heads"):
        readers(families.model("gpt2"), Site.parse("z.0"))


def test_it_replays_and_comes_back_equal(tmp_path: object) -> None:
    model = illusion.network()
    data = illusion.hypothesis(illusion.HONEST)
    found = method.run(model, data, method.Config(pairs=4))
    assert found == method.run(model, data, method.Config(pairs=4))
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    assert np.isfinite(found.data["dormant"].values).all()
    assert found.shapes()[0].rows[0][0] == "large"


def test_a_hypothesis_without_directions_is_refused() -> None:
    case = trained("modular_sum")
    with pytest.raises(InputError, match="no variable of the hypothesis has directions"):
        method.run(case.model, case.hypothesis)
