"""Networks written by hand: alike for one seed, right as their evidence says, and wrong once they are touched."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microtome.core.edits import Edit, Zero
from microtome.core.errors import InputError, TruthError
from microtome.core.site import Site
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds.case import Case
from microtome.testbeds.hand_set import planted_heads, planted_rules, rotated_stream, testbed, wired_heads
from microtome.testbeds.hand_set.arithmetic import account
from microtome.testbeds.hand_set.writing import Network, beside
from microtome.testbeds.training import seeded


@pytest.mark.parametrize("name", testbed.cases())
@pytest.mark.parametrize("seed", [0, 1])
def test_every_case_is_served_for_every_seed(name: str, seed: int) -> None:
    case = testbed.build(name, seed)
    assert case.name == f"hand_set/{name}"
    assert set(case.truth.kinds) <= set(testbed.card.kinds)
    same, other = testbed.build(name, seed), testbed.build(name, seed + 2)
    for one, again in zip(case.model.module.parameters(), same.model.module.parameters(), strict=True):
        assert torch.equal(one, again)
    assert not torch.equal(case.model.module.unembed.weight, other.model.module.unembed.weight)


def test_other_names_are_refused() -> None:
    with pytest.raises(InputError, match="has no case 'heads'"):
        testbed.build("heads")


@settings(max_examples=15, deadline=None)
@given(
    layers=st.integers(1, 2),
    heads=st.integers(1, 3),
    d_mlp=st.sampled_from([0, 5]),
    positions=st.sampled_from(["learned", "none"]),
    act=st.sampled_from(["relu", "gelu"]),
    bias=st.booleans(),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_arithmetic_is_the_networks_own(
    layers: int, heads: int, d_mlp: int, positions: str, act: str, bias: bool, causal: bool, seed: int
) -> None:
    with seeded(seed):
        module = Transformer(
            TransformerConfig(
                vocab_size=7, hidden_size=10, num_hidden_layers=layers, num_attention_heads=heads, head_dim=4,
                intermediate_size=d_mlp, positions=positions, norm="none", hidden_act=act, bias=bias,
                causal=causal, initializer_range=0.5,
            )
        ).eval()  # fmt: skip
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        tokens = torch.randint(7, (3, 5))
    seen = account(module, tokens)
    with torch.no_grad():
        assert torch.allclose(seen.logits, module(tokens).logits.double(), atol=1e-4)
    for head in {name for _, name in seen.through}:
        paths = [path for (_, name), path in seen.through.items() if name == head]
        if not bias:
            assert torch.allclose(torch.stack(paths).sum(0), seen.writes[head])


@pytest.mark.parametrize("change", [{"norm": "layer"}, {"positions": "rotary"}, {"hidden_act": "silu"}])
def test_what_is_not_written_out_is_refused(change: dict[str, str]) -> None:
    module = Transformer(TransformerConfig(vocab_size=5, hidden_size=8, **({"norm": "none"} | change)))
    with pytest.raises(InputError, match="written out"):
        account(module, torch.zeros(1, 2, dtype=torch.long))


def accuracy(case: Case, edit: list[Edit]) -> float:
    logits = case.model.run(case.tokens, edit=edit, logits=True).logits
    assert logits is not None
    place = slice(planted_heads.PERIOD, -1)
    right = logits[:, place].argmax(-1) == case.tokens[:, planted_heads.PERIOD + 1 :]
    return float(right.double().mean())


def test_the_planted_heads_do_what_they_are_called_for() -> None:
    case = testbed.build("planted_heads")

    def without(*heads: str) -> float:
        return accuracy(case, [Zero(Site.parse(head)) for head in heads])

    roles = case.truth.roles
    named = {head for heads in roles.values() for head in heads}
    idle = [f"z.{n}.h{h}" for n in range(2) for h in range(12) if f"z.{n}.h{h}" not in named]
    assert len(idle) == 16
    assert without() == without(*idle) == 1.0
    assert without(*roles["duplicate_token"]) == 1.0
    assert without(*roles["previous_token"]) < 0.3
    assert without(*roles["induction"]) < 0.1
    assert without(roles["induction"][0]) > 0.5  # the other one still says it


def test_a_spoilt_network_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted_heads, "SHARP", 1.0)
    with pytest.raises(TruthError, match="attention of z"):
        testbed.build("planted_heads")


def test_the_turned_network_says_the_same_in_another_basis() -> None:
    straight, turned = testbed.build("straight"), testbed.build("rotated")
    one, two = (case.model.run(case.tokens, logits=True).logits for case in (straight, turned))
    assert one is not None
    assert two is not None
    assert torch.allclose(one, two, atol=1e-3)
    turn = rotated_stream.rotation(straight.model.sizes["d_model"], 0).float()
    for name in rotated_stream.TURNED:
        site = Site.parse(name)
        here, there = (case.model.run(case.tokens, [site])[site] for case in (straight, turned))
        assert torch.allclose(here @ turn, there, atol=1e-4)
        assert not torch.allclose(here, there, atol=0.1)


def test_unread_heads_are_busy_and_matter_to_nothing() -> None:
    case = wired_heads.build("hand_set/wired_heads", 0)
    whole = case.model.run(case.tokens, logits=True).logits
    assert whole is not None
    for head in ("z.0.h3", "z.1.h1"):
        site = Site.parse(head)
        assert float(case.model.run(case.tokens, [site])[site].abs().mean()) > 0.1
        logits = case.model.run(case.tokens, edit=[Zero(site)], logits=True).logits
        assert logits is not None
        assert torch.allclose(logits, whole, atol=1e-4)


def test_blocks_beside_each_other_do_not_meet() -> None:
    one, two = beside([torch.ones(2, 3), torch.ones(4, 2)], 6)
    assert (one.shape, two.shape) == ((2, 6), (4, 6))
    assert float((one[:1] * two[:1]).sum()) == 0.0
    assert float(one.sum()) == 6.0


def test_a_linear_mlp_adds_a_linear_map() -> None:
    made = Network({"a": 3, "b": 2}, vocab_size=4, num_hidden_layers=1, num_attention_heads=1, head_dim=2,
                   intermediate_size=10, max_position_embeddings=3)  # fmt: skip
    matrix = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    made.embed({"a": torch.eye(4, 3)}, {"b": torch.eye(3, 2)})
    made.linear_mlp(0, matrix)
    seen = account(made.module, torch.tensor([[0, 1, 3]]))
    stream = seen.streams["resid_pre.0"]
    assert torch.allclose(seen.streams["resid_post.0"], stream + stream @ matrix.double())


def test_planted_rules_are_said_by_what_was_planted() -> None:
    case = testbed.build("ngram_facts")
    first, second, out = min(case.truth.rules["ngram"])
    rows = torch.tensor([[0, first, second]])
    heads = [Zero(Site.parse("z.0.h0"))]
    for edit, said in (([], True), (heads, False)):
        logits = case.model.run(rows, edit=edit, logits=True).logits
        assert logits is not None
        assert (int(logits[0, -1].argmax()) == out) is said


def test_a_weak_rule_is_not_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planted_rules, "LOUD", 0.5)
    with pytest.raises(TruthError, match="least rise"):
        testbed.build("skip_trigrams")
