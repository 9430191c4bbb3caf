"""Our own small transformer: every variant has a true map, learns, saves, and generates."""

import itertools
from pathlib import Path

import pytest
import torch
from tests.models import families
from torch import Tensor

from microtome.models.check import check_map
from microtome.models.load import load
from microtome.models.transformer import Transformer, TransformerConfig, rotate

SIZES = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 24,
}
VARIANTS = [
    *itertools.product(("learned", "rotary", "none"), ("layer", "rms", "none"), ("gelu",), (0, 24)),
    *itertools.product(("learned",), ("layer",), ("relu", "solu", "bilinear", "silu"), (24,)),
]


def build(positions: str, norm: str, activation: str, neurons: int) -> Transformer:
    config = TransformerConfig(
        **SIZES, intermediate_size=neurons, positions=positions, norm=norm, hidden_act=activation
    )
    module = Transformer(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return module


@pytest.mark.parametrize(("positions", "norm", "activation", "neurons"), VARIANTS)
def test_every_variant_has_a_true_map(positions: str, norm: str, activation: str, neurons: int) -> None:
    model = load(build(positions, norm, activation, neurons))
    assert len(check_map(model, thorough=True)) > 10
    assert model.has("pos_embed") == (positions == "learned")
    assert model.has("attn_norm_scale.0") == model.has("final_norm_scale") == (norm != "none")
    assert model.has("mlp_post.1") == bool(neurons)
    assert model.sizes["d_mlp"] == neurons


def test_the_activations_are_what_they_are_called() -> None:
    values = {}
    for activation in ("gelu", "relu", "solu", "bilinear", "silu"):
        model = load(build("none", "none", activation, 24))
        run = model.run(torch.tensor([[1, 2, 3]]), read=["mlp_in.0", "mlp_pre.0", "mlp_post.0"])
        pre, post = run["mlp_pre.0"], run["mlp_post.0"]
        values[activation] = post
        up = run["mlp_in.0"] @ model.weight("W_in.0") + model.weight("b_in.0")
        expected = {
            "gelu": torch.nn.functional.gelu(pre),
            "relu": pre.clamp_min(0),
            "solu": pre * pre.exp() / pre.exp().sum(-1, keepdim=True),
            "bilinear": pre * up,
            "silu": pre / (1 + (-pre).exp()) * up,
        }[activation]
        assert torch.allclose(post, expected, atol=1e-5)


def test_rotation_keeps_lengths_and_products_depend_on_distance_only() -> None:
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(query: int, key: int) -> float:
        turned = rotate(q, torch.tensor([[query]]), 100.0) * rotate(k, torch.tensor([[key]]), 100.0)
        return float(turned.sum())

    assert product(9, 5) == pytest.approx(product(4, 0), abs=1e-5)
    assert product(9, 5) != pytest.approx(product(9, 4), abs=1e-3)
    assert float(rotate(q, torch.tensor([[7]]), 100.0).norm()) == pytest.approx(float(q.norm()), rel=1e-5)


def test_without_positions_earlier_tokens_are_a_set() -> None:
    """One layer without positions cannot tell the order of what it looks back at; with positions it can."""
    one, two = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[4, 3, 5, 6]])
    for positions, same in (("none", True), ("learned", False), ("rotary", False)):
        config = TransformerConfig(**SIZES, num_hidden_layers=1, intermediate_size=0, positions=positions)
        module = Transformer(config).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.5 * torch.randn(parameter.shape))
        found = [module(ids).logits[0, -1] for ids in (one, two)]
        assert torch.allclose(*found, atol=1e-5) == same


@pytest.mark.parametrize("tied", [True, False])
def test_it_saves_loads_and_generates_like_any_model(tmp_path: Path, tied: bool) -> None:
    config = TransformerConfig(**SIZES, tie_word_embeddings=tied)
    module = Transformer(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    module.save_pretrained(tmp_path)
    again = load(str(tmp_path))
    ids = torch.randint(1, 20, (2, 6))  # 0 pads
    assert torch.equal(again.run(ids).logits, module(ids).logits)
    assert (again.module.unembed.weight is again.module.embed.weight) == tied
    made = module.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    step = ids
    for _ in range(5):
        step = torch.cat([step, module(step, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(made, step)


def test_the_attention_written_out_equals_the_fused_kernel() -> None:
    for name in ("microtome", "microtome_rotary"):
        plain, fused = families.make(name, attention="eager"), families.make(name)
        assert torch.allclose(plain(families.ids()).logits, fused(families.ids()).logits, atol=1e-5)


def test_labels_give_the_mean_loss_of_the_next_token() -> None:
    module = families.make("microtome")
    ids = families.ids()
    logits = module(ids).logits[:, :-1].log_softmax(-1)
    expected = -logits.gather(-1, ids[:, 1:, None]).mean()
    assert torch.allclose(module(ids, labels=ids).loss, expected, atol=1e-6)


def test_odd_heads_cannot_be_rotated() -> None:
    with pytest.raises(Exception, match="head_dim 7 is odd"):
        TransformerConfig(head_dim=7, positions="rotary")


def test_it_learns_to_copy_what_followed_a_token_before() -> None:
    """Two attention-only layers learn induction in seconds; one layer cannot.

    Each row repeats itself after a distance of its own, so that positions alone do not tell where to look.
    """

    def texts(rows: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(0, 32, (rows, 10), generator=generator)
        distance = torch.randint(4, 10, (rows, 1), generator=generator)
        return words.gather(1, torch.arange(20)[None] % distance)

    accuracies = {}
    for layers in (1, 2):
        torch.manual_seed(0)
        config = TransformerConfig(
            vocab_size=32,
            hidden_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            head_dim=16,
            intermediate_size=0,
            max_position_embeddings=20,
            initializer_range=0.1,
        )
        module = Transformer(config)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.0)
        for step in range(350):
            ids = texts(64, step)
            loss = module(ids, labels=torch.where(torch.arange(20) > 10, ids, -100), use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        held_out = texts(300, 10_000)
        with torch.no_grad():
            guess = module.eval()(held_out).logits[:, 10:-1].argmax(-1)
        accuracies[layers] = float((guess == held_out[:, 11:]).float().mean())
    assert accuracies[2] > 0.9
    assert accuracies[1] < 0.6


def test_without_causality_a_position_sees_later_ones() -> None:
    """The same weights, the mask apart; sweeps and checks know that every column may change."""
    from microtome.core.edits import Zero
    from microtome.models.sweep import Variant, sweep

    sizes = {
        "vocab_size": 11,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 8,
    }
    torch.manual_seed(0)
    both = Transformer(TransformerConfig(**sizes, causal=False)).eval()
    causal = Transformer(TransformerConfig(**sizes)).eval()
    causal.load_state_dict(both.state_dict())
    ids = torch.randint(11, (2, 6))
    changed = ids.clone()
    changed[:, -1] = (ids[:, -1] + 1) % 11
    with torch.no_grad():
        assert torch.equal(causal(ids).logits[:, 0], causal(changed).logits[:, 0])
        assert (both(ids).logits[:, 0] - both(changed).logits[:, 0]).abs().max() > 1e-6
    model = load(both)
    edit = Zero("z.1.h0@2")
    swept = sweep(model, ids, [Variant((edit,))], read=["resid_post.1"])
    torch.testing.assert_close(
        swept.values[next(iter(swept.values))][0], model.run(ids, ["resid_post.1"], [edit])["resid_post.1"]
    )
