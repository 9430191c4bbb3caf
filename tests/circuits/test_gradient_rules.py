"""Rules in the place of gradients: the values stay, relevance adds up, and each rule is what it says."""

import pytest
import torch
from tests.models import families
from torch import Tensor

from microtome.circuits.gradient_rules import GradientRules, scaled_back
from microtome.core.logits import LogitSelection
from microtome.core.site import Site
from microtome.models.model import Model

RELP = GradientRules(True, True, True, "frozen")
GIM = GradientRules(True, False, True, "tempered")


class Difference:
    name = "difference"
    needs = LogitSelection((-1,))

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, -1, 3].float() - logits[:, -1, 5].float()

    def for_rows(self, rows: list[int]) -> "Difference":
        return self


def gradients(model: Model, rules: GradientRules, *sites: str) -> tuple[Tensor, dict[str, Tensor]]:
    read = [Site.parse(site) for site in sites]
    found = model.run(
        families.ids(seed=0), [*read, *(s.grad for s in read)], rules.edits(model), metric=Difference()
    )
    assert found.metric is not None
    return found.metric, {str(site): value for site, value in found.values.items()}


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "phi3"])
@pytest.mark.parametrize("rules", [RELP, GIM])
def test_rules_change_no_value_and_leave_nothing_behind(name: str, rules: GradientRules) -> None:
    model = families.model(name)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    plain, found = gradients(model, GradientRules(), "embed"), gradients(model, rules, "embed")
    torch.testing.assert_close(found[0], plain[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[1]["grad:embed"], plain[1]["grad:embed"])
    after = gradients(model, GradientRules(), "embed")
    assert torch.equal(after[0], plain[0])
    assert torch.equal(after[1]["grad:embed"], plain[1]["grad:embed"])
    assert all(torch.equal(before[key], value) for key, value in model.module.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_without_biases_relevance_adds_up_to_the_metric(name: str) -> None:
    """With norms and patterns constant, activations proportional and products halved, the network is homogeneous of
    degree one in its embeddings; by the chain rule alone it is not."""
    model = families.model(name)
    for rules, complete in ((RELP, True), (GradientRules(), False)):
        metric, found = gradients(model, rules, "embed")
        total = (found["embed"] * found["grad:embed"]).sum(dim=(1, 2))
        scale = (found["embed"] * found["grad:embed"]).abs().sum(dim=(1, 2)).max()
        assert bool((total - metric).abs().max() < 1e-5 * scale) == complete


def test_of_a_product_each_factor_gets_its_share() -> None:
    """In the last parallel block attention stands behind nothing else that is multiplied."""
    model = families.model("gptj")
    last = model.n_layers - 1
    sites = [f"{part}_proj.{last}" for part in "qkv"]
    _, plain = gradients(model, GradientRules(), *sites)
    _, halved = gradients(model, GradientRules(halved_products=True), *sites)
    for site, share in zip(sites, (0.25, 0.25, 0.5), strict=True):
        torch.testing.assert_close(
            halved[f"grad:{site}"], share * plain[f"grad:{site}"], rtol=1e-4, atol=1e-7
        )


def test_neurons_pass_on_what_they_are_of_their_input() -> None:
    model = families.model("gpt2")
    layer = model.n_layers - 1
    values = model.run(families.ids(seed=0), [f"mlp_pre.{layer}", f"mlp_post.{layer}"]).values
    pre, post = (values[Site(part, layer)] for part in ("mlp_pre", "mlp_post"))
    _, found = gradients(
        model, GradientRules(proportional_neurons=True), f"mlp_in.{layer}", f"mlp_out.{layer}"
    )
    written = found[f"grad:mlp_out.{layer}"] @ model.weight(f"W_out.{layer}").T
    expected = (written * post / pre) @ model.weight(f"W_in.{layer}").T
    torch.testing.assert_close(found[f"grad:mlp_in.{layer}"], expected, rtol=1e-4, atol=1e-6)


def test_a_softmax_of_temperature_one_is_the_softmax() -> None:
    model = families.model("gemma2")
    _, plain = gradients(model, GradientRules(), "embed")
    _, same = gradients(model, GradientRules(attention="tempered", temperature=1.0), "embed")
    _, warmer = gradients(model, GradientRules(attention="tempered", temperature=3.0), "embed")
    torch.testing.assert_close(same["grad:embed"], plain["grad:embed"], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(warmer["grad:embed"], plain["grad:embed"], rtol=1e-2)


def test_frozen_patterns_and_norms_are_constants() -> None:
    model = families.model("gpt2")
    _, frozen = gradients(model, GradientRules(attention="frozen"), "q_proj.1", "k_proj.1", "v_proj.1")
    assert not frozen["grad:q_proj.1"].any()
    assert not frozen["grad:k_proj.1"].any()
    assert frozen["grad:v_proj.1"].any()
    # A norm whose divisor is a constant maps what is along its input to something, not to nothing.
    last = f"resid_post.{model.n_layers - 1}"
    for rules, radial in ((GradientRules(), False), (GradientRules(frozen_norms=True), True)):
        _, found = gradients(model, rules, last)
        centred = found[last] - found[last].mean(dim=-1, keepdim=True)
        along = (centred * found[f"grad:{last}"]).sum(dim=-1)[:, -1]
        size = (centred * found[f"grad:{last}"]).abs().sum(dim=-1)[:, -1]
        assert bool((along.abs() > 1e-2 * size).any()) == radial


def test_a_value_scaled_back_is_the_value_bit_for_bit() -> None:
    value = torch.randn(5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = scaled_back(value, 0.3)
    assert torch.equal(found, value)
    found.sum().backward()
    torch.testing.assert_close(value.grad, torch.full((5,), 0.3))
