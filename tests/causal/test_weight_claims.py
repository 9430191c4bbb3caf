"""Cutting one weight's path takes from the target what the weight carries, and nothing else; false claims fail."""

import pytest
import torch
from tests.models import families

import microtome
from microtome.causal import weight_claims as method
from microtome.core.errors import FamilyError, InputError, SiteError
from microtome.core.result import Result
from microtome.models.model import Model
from microtome.models.transformer import Transformer, TransformerConfig

TOKENS = torch.randint(0, 12, (8, 5), generator=torch.Generator().manual_seed(0))
TRUE = "mlp_post.0.u3 drives mlp_pre.1.u7 through W_in.1"


def planted() -> Model:
    """No norms; neuron 3 of the first MLP drives neuron 7 of the second, by one direction of the stream of its own."""
    sizes = {
        "vocab_size": 12,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    config = TransformerConfig(
        **sizes, intermediate_size=10, max_position_embeddings=8, norm="none", hidden_act="relu"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Transformer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        if "down" in name:
            parameter.mul_(0.1)
    first, second = (block.mlp for block in module.blocks)
    first.down.weight[:, 3] = 0.0
    first.down.weight[15, 3] = 2.0
    second.up.weight[:, 15] = 0.0
    second.up.weight[7, 15] = 2.0
    return microtome.load(module)


def test_a_true_claim_holds_and_false_ones_fail() -> None:
    false = (
        "mlp_post.0.u3 silences mlp_pre.1.u7 through W_in.1",
        "mlp_post.0.u4 drives mlp_pre.1.u7 through W_in.1",
        "mlp_post.0.u3 drives mlp_pre.1.u6 through W_in.1",
    )
    found = method.run(planted(), TOKENS, method.Config(claims=(TRUE, *false)))
    holds = (found.data["holds_path"].values & found.data["holds_share"].values).tolist()
    assert holds[0]
    assert not any(holds[i] for i in (1, 3))
    assert found.data["path"].values[2] < 0.1 * found.data["path"].values[0]
    hits = [tested.hit for tested in found.tested()]
    assert hits == [
        bool(x)
        for row in zip(found.data["holds_path"].values, found.data["holds_share"].values, strict=True)
        for x in row
    ]


def test_without_norms_the_path_is_the_product_of_the_weights() -> None:
    model = planted()
    found = method.run(model, TOKENS, method.Config(claims=(TRUE,))).data
    value = model.run(TOKENS, ["mlp_post.0.u3"])["mlp_post.0.u3"][..., 0]
    over = value - value.mean()
    active = over.abs() >= over.abs().flatten().quantile(0.9)
    assert found["path"].values[0] == pytest.approx(4.0 * float(over[active].mean()), rel=1e-4)
    assert int(found["n"].values[0]) == int(active.sum())


def test_a_target_in_the_same_parallel_block_is_reached_by_the_path_alone() -> None:
    """Nothing stands between the first MLP and the second block's, so cutting the path is cutting the source."""
    model = families.model("gpt_neox")
    tokens = torch.randint(3, 40, (6, 5), generator=torch.Generator().manual_seed(0))
    found = method.run(
        model, tokens, method.Config(claims=("mlp_out.0 drives mlp_post.1.u2 through W_in.1",))
    ).data
    assert found["share"].values[0] == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_heads_and_embeddings_drive_neurons_and_tokens_in_any_family(family: str) -> None:
    model, tokens = (
        families.model(family),
        torch.randint(3, 40, (6, 5), generator=torch.Generator().manual_seed(0)),
    )
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    claims = ("z.0.h1 drives mlp_pre.1.u3 through W_in.1", "embed drives logits.u5 through W_U")
    found = method.run(model, tokens, method.Config(claims=claims))
    assert found.data["path"].notnull().all()
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())
    assert found == method.run(model, tokens, method.Config(claims=claims))


def test_the_result_comes_back_equal(tmp_path: object) -> None:
    found = method.run(planted(), TOKENS, method.Config(claims=(TRUE,)))
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    assert "places" in found.shapes()[0].columns
    assert str(method.WeightClaim.parse(TRUE)) == TRUE


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("neuron 3 drives neuron 7", "is no claim about a weight"),
        ("z.0 drives mlp_pre.1.u7 through W_in.1", "is no source"),
        ("mlp_post.0.u3 drives mlp_pre.1 through W_in.1", "is no target"),
        ("mlp_post.0.u3 drives mlp_pre.1.u7 through W_in.0", "not read with W_in.0"),
        ("mlp_post.0.u3 drives mlp_pre.1.u7 through W_Q.1", "not read with W_Q.1"),
        ("mlp_post.1.u3 drives mlp_pre.0.u7 through W_in.0", "turn the claim around"),
    ],
)
def test_what_is_no_claim_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        method.WeightClaim.parse(text)


def test_what_cannot_be_tested_is_refused() -> None:
    with pytest.raises(InputError, match="no claim is made"):
        method.run(planted(), TOKENS)
    same = TOKENS[:1, :1].repeat(3, 1)
    with pytest.raises(InputError, match="the same at every place"):
        method.run(planted(), same, method.Config(claims=(TRUE,)))
    with pytest.raises(FamilyError, match="a norm stands behind"):
        method.run(families.model("gemma2"), TOKENS + 3, method.Config(claims=(TRUE,)))
    with pytest.raises(SiteError):
        method.run(
            planted(), TOKENS, method.Config(claims=("mlp_post.0.u99 drives mlp_pre.1.u7 through W_in.1",))
        )
