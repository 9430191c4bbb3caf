"""The best constant is never worse than the mean, is the analytic one where that is known, and tells who matters."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tests.circuits.planted import planted

from microtome.core.cost import Recorder
from microtome.core.edits import Set
from microtome.core.errors import InputError, SiteError
from microtome.core.logits import LogitSelection
from microtome.core.result import Result
from microtome.core.site import Site
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.models.random_twin import random_twin
from microtome.patching import optimal_ablation as method
from microtome.patching.contrast import Contrast

SAMPLE = ("z.0.h1", "mlp_out.1")


@dataclass(frozen=True)
class Squares:
    """Squared distance of two logits from targets."""

    targets: torch.Tensor
    name = "squares"
    needs = LogitSelection((-1,))

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits[:, -1, 3:5] - self.targets).square().sum(-1)

    def for_rows(self, rows: list[int]) -> "Squares":
        return Squares(self.targets[rows])


@pytest.fixture(scope="module", params=["gpt2", "gemma2"])
def model(request: pytest.FixtureRequest, models: Callable[[str], Model]) -> Model:
    return models(request.param)


@pytest.fixture(scope="module")
def found(model: Model, pairs: Pairs) -> method.Result:
    return method.run(model, pairs, method.Config(components=SAMPLE, steps=3))


def test_never_above_the_mean_where_it_was_learned(found: method.Result) -> None:
    optimal, mean = (found.data["fitted"].sel(kind=kind).values for kind in ("optimal", "mean"))
    assert (optimal <= mean + 1e-5).all()
    assert (optimal < mean - 1e-3).any()


def test_it_starts_at_the_mean_and_the_constant_does_what_is_told(
    found: method.Result, model: Model, pairs: Pairs
) -> None:
    still = method.run(model, pairs, method.Config(components=SAMPLE, steps=0)).data
    optimal, mean = (still["effect"].sel(kind=kind).values for kind in ("optimal", "mean"))
    np.testing.assert_allclose(optimal, mean, atol=1e-5)
    for name in SAMPLE:
        plain, moved = (
            model.run(pairs.clean, edit=edit, logits=LogitSelection((-1,))).logits
            for edit in ([], [found.edit(name)])
        )
        assert plain is not None
        assert moved is not None
        one, other = plain[:, -1].log_softmax(-1), moved[:, -1].log_softmax(-1)
        expected = (one.exp() * (one - other)).sum(-1)
        effect = found.data["effect"].sel(kind="optimal", component=name).values
        np.testing.assert_allclose(effect, expected, atol=1e-5)


def test_on_a_linear_network_it_is_the_least_squares_solution(linear: Model, pairs: Pairs) -> None:
    """Logits are affine in the constant, so the least of the squares is known without any descent."""
    targets = torch.randn(len(pairs), 2, generator=torch.Generator().manual_seed(0))
    contrast = replace(Contrast.of(linear, pairs, "kl", [Site.parse("z.1.h2")]), metric=Squares(targets))
    site = Site.parse("z.1.h2")
    start = method.mean(contrast, site)
    best = method.learned(contrast, site, start, range(len(pairs)), 60, Recorder())

    def logits(value: torch.Tensor) -> torch.Tensor:
        run = linear.run(pairs.clean, edit=[Set(site, value=value)], logits=LogitSelection((-1,)))
        assert run.logits is not None
        return run.logits[:, -1, 3:5].double()

    at_zero = logits(torch.zeros_like(start))
    basis = torch.eye(start.shape[-1])[:, None, None, None]
    slope = torch.stack([logits(one) - at_zero for one in basis], dim=-1)
    # One constant moves all rows alike, anywhere in the plane of the two logits: their spread is what is left.
    torch.testing.assert_close(slope, slope[:1].expand_as(slope), rtol=0, atol=1e-4)
    assert torch.linalg.svdvals(slope[0])[-1] > 1e-2
    least = float((at_zero - targets).var(dim=0, correction=0).sum())
    reached, before = (float((logits(value) - targets).square().sum(-1).mean()) for value in (best, start))
    assert reached == pytest.approx(least, rel=1e-4)
    assert before > 1.01 * reached


def test_planted_heads_matter_and_no_other_and_none_of_the_twin() -> None:
    """Head 1.2 gives out a token that no constant can know; head 0.1 brings it there."""
    model, pairs = planted()
    config = method.Config(steps=4, components=("z.0.h0", "z.0.h1", "z.1.h1", "z.1.h2"))
    lost = method.run(model, pairs, config).data["importance"].sel(kind="optimal")
    assert float(lost.sel(component=["z.0.h1", "z.1.h2"]).min()) > 1
    assert float(abs(lost.sel(component=["z.0.h0", "z.1.h1"])).max()) < 0.05
    twin = method.run(random_twin(model), pairs, config).data["importance"].sel(kind="optimal")
    assert float(abs(twin).max()) < 1


def test_a_component_that_only_adds_its_mean_is_idle(fresh: Callable[[str], Model], pairs: Pairs) -> None:
    """Taken away by zero it is missed; a constant gives back all that it does."""
    model = fresh("gpt2")
    with torch.no_grad():
        model.weight("W_V.1")[2] = 0
        model.weight("b_V.1")[2] += 3
    config = method.Config(components=("z.1.h2",), steps=2)
    lost = method.run(model, pairs, config).data["importance"][:, 0]
    assert float(lost.sel(kind="zero")) > 1e-2
    assert float(abs(lost.sel(kind=["mean", "resample", "optimal"])).max()) < 1e-5


def test_the_result_replays_and_comes_back_equal(
    models: Callable[[str], Model], pairs: Pairs, tmp_path: object
) -> None:
    config = method.Config(components=SAMPLE[:1], steps=2, unseen=0.5)
    one = method.run(models("llama"), pairs, config)
    assert one == method.run(models("llama"), pairs, config)
    assert Result.load(one.save(str(tmp_path) + "/r")) == one
    assert int(one.data["unseen"].sum()) == 3
    assert "3 prompts kept back, constants learned from 3" in one.shapes()[0].caption


def test_prompts_of_different_lengths(models: Callable[[str], Model], uneven: Pairs) -> None:
    config = method.Config(components=SAMPLE[1:], steps=2, reference="both", unseen=0)
    found = method.run(models("llama"), uneven, config).data
    assert (found["fitted"].sel(kind="optimal") <= found["fitted"].sel(kind="mean") + 1e-5).all()
    assert np.array_equal(found["fitted"], found["importance"])


def test_what_does_not_fit_is_refused(models: Callable[[str], Model], pairs: Pairs) -> None:
    with pytest.raises(InputError, match="none learned from"):
        method.run(models("gpt2"), pairs.rows([0]))
    with pytest.raises(SiteError, match=r"z\.7\.h0 is not a component"):
        method.run(models("gpt2"), pairs, method.Config(components=("z.7.h0",)))
    with pytest.raises(InputError, match="loss"):
        method.Config.read({"loss": "logit-difference"})
