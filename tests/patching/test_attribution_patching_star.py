"""AtP*: keys and queries against taking each softmax anew, dropped gradients, its error, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.circuits.planted import pairs_of, planted, random_pairs
from tests.models import families

from microtome.core.answers import NodeScores
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.patching import attribution_patching_star as method
from microtome.testbeds.programs import testbed


@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([0.1, 3.0, 30.0, 400.0]), seed=st.integers(0, 2**31), sinks=st.booleans())
def test_the_keys_at_once_equal_each_softmax_taken_anew(scale: float, seed: int, sinks: bool) -> None:
    """Float32 against float64, relative to the largest gradient: rounding in scores of size s is s · 6e-8."""
    drawn = torch.Generator().manual_seed(seed)
    scores, moved = (scale * torch.randn(1, 2, 5, 5, generator=drawn) for _ in range(2))
    gradient = torch.randn(1, 2, 5, 5, generator=drawn)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    scores, moved = (one.masked_fill(future, float("-inf")) for one in (scores, moved))
    sink = scale * torch.randn(1, 2, 1, 1, generator=drawn).expand(1, 2, 5, 1) if sinks else None

    def softmax(given: torch.Tensor) -> torch.Tensor:
        columns = given.double() if sink is None else torch.cat([given, sink], dim=-1).double()
        return columns.softmax(dim=-1)[..., :5]

    pattern = softmax(scores)
    rows = ((softmax(moved) - pattern) * gradient).sum(dim=-1)
    columns = []
    for key in range(5):
        one = scores.clone()
        one[..., key] = moved[..., key]
        columns.append(((softmax(one) - pattern) * gradient).sum(dim=(-1, -2)))
    if sinks and bool(((1 - pattern.sum(dim=-1)) < 1e-4).any()):
        return  # a sink too small to be told from rounding
    allowed = 5 * 5 * float(gradient.abs().max()) * max(1e-5, 4 * scale * 6e-8)
    found = method.by_key(pattern.float(), scores, moved, gradient)
    torch.testing.assert_close(found.double(), torch.stack(columns, dim=-1), rtol=0, atol=allowed)
    found = method.by_query(pattern.float(), scores, moved, gradient)
    torch.testing.assert_close(found.double(), rows, rtol=0, atol=allowed)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "gptj", "bloom"])
def test_in_the_last_layer_of_a_nearly_linear_metric_it_is_nearly_exact(name: str) -> None:
    """On real kernels, with caps, groups and biases to positions: small steps, so that only the softmax bends."""
    model, pairs = families.model(name), random_pairs(2)
    found = method.run(model, pairs, method.Config(checked=40, drop=False))
    guess, exact = found.data["sample_estimated"].values, found.data["sample_exact"].values
    at_values = np.array([str(cell).startswith(("v.", "z.")) for cell in found.data["sample_cell"].values])
    assert np.corrcoef(guess[at_values], exact[at_values])[0, 1] > 0.8
    assert np.corrcoef(guess, exact)[0, 1] > 0.7


def test_where_patterns_are_saturated_only_the_corrections_see_queries_and_keys() -> None:
    """A compiled program's attention is as good as hard: its slope is nothing, though keys decide the answer."""
    case = testbed.build("sort")
    plain, fixed = (
        method.run(case.model, case.pairs, method.Config(queries=on, keys=on, drop=False, checked=0)).data[
            "size"
        ]
        for on in (False, True)
    )
    into = [str(name) for name in plain["node"].values if str(name).startswith(("q.", "k."))]
    assert float(plain.sel(node=into).max()) < 1e-3 < 0.1 < float(fixed.sel(node=into).max())


def test_what_cancels_shows_when_a_layer_is_left_out() -> None:
    """Never less than without, and of the last part exactly as much: nothing comes after it that could be left out."""
    model, pairs = families.model("gpt2"), random_pairs(2)
    kept, dropped = (method.run(model, pairs, method.Config(drop=on, checked=0)) for on in (False, True))
    np.testing.assert_allclose(kept.data["effect"], dropped.data["effect"], atol=1e-6)
    assert bool((dropped.data["size"] >= kept.data["size"] - 1e-7).all())
    assert bool((dropped.data["size"] > 1.01 * kept.data["size"] + 1e-4).any())
    last = [f"mlp_out.{model.n_layers - 1}"]
    np.testing.assert_allclose(
        dropped.data["size"].sel(node=last), kept.data["size"].sel(node=last), rtol=1e-4, atol=1e-7
    )


def test_planted_heads_lead_and_the_result_comes_back_equal(tmp_path: object) -> None:
    model, pairs = planted()
    found = method.run(model, pairs, method.Config(checked=6))
    (answer,) = found.answers()
    assert isinstance(answer, NodeScores)
    assert set(sorted(answer.scores, key=lambda name: -answer.scores[name])[:2]) == {"z.0.h1", "z.1.h2"}
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    assert found.errors().rows[0][0].startswith("6 of")


def test_what_cannot_be_attributed_is_refused() -> None:
    pairs = random_pairs()
    same = pairs_of(pairs.clean, pairs.clean, [3] * 4, [5] * 4)
    with pytest.raises(InputError, match="nothing to attribute"):
        method.run(families.model("gpt2"), same)
    with pytest.raises(InputError, match="no gradient"):
        method.run(families.model("gpt2"), pairs, method.Config(metric="rank"))
