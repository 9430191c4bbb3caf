"""Every family's map is true: the untouched model is the judge, then the identities of the residual stream."""

import pytest
import torch
from tests.models import families
from torch import Tensor

from microtome.core.edits import Function, Set
from microtome.core.errors import FamilyError
from microtome.core.site import PARTS, Site
from microtome.core.weight import Weight
from microtome.models.check import check_map
from microtome.models.families import family_of
from microtome.models.load import load
from microtome.models.model import Model
from microtome.models.run import Run
from microtome.models.weights import find

EXACT = 0.0
CLOSE = 1e-5


def everything(model: Model, name: str, seed: int = 0) -> Run:
    return model.run(families.inputs(name, seed=seed), read=model.sites(), logits=True)


def gap(one: Tensor, two: Tensor) -> float:
    """Largest difference relative to the largest value; nowhere (-inf) must agree."""
    assert one.shape == two.shape
    finite = torch.isfinite(two)
    assert torch.equal(torch.isfinite(one), finite)
    one, two = one.detach()[finite], two.detach()[finite]
    return float((one - two).abs().max() / two.abs().max().clamp_min(1e-6))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", families.ALL)
def test_reading_everything_leaves_the_logits_bit_for_bit(name: str, attention: str) -> None:
    module = families.make(name, attention=attention)
    given = families.inputs(name)
    before = families.untouched(module, given)
    model = load(module)
    assert torch.equal(everything(model, name).logits, before)
    assert torch.equal(model.run(given).logits, before)
    assert torch.equal(families.untouched(module, given), before)


@pytest.mark.parametrize("name", families.ALL)
def test_every_identity_of_the_map_holds_in_every_block(name: str) -> None:
    model = families.model(name)
    found = check_map(model, thorough=True)
    assert {i.layer for i in found if i.layer is not None} == set(range(model.n_layers))
    assert all(i.holds for i in found)
    # A check of many names: none may drop out of the list unnoticed.
    names = {i.name for i in found}
    assert {"logits against the untouched model", "unembedding of the last stream"} <= names
    assert {"attn_in W_V + b_V = v", "the heads' results and bias make attn_out"} <= names
    if name not in ("qwen3", "gemma3", "olmo2"):  # queries are normed there
        assert "attn_in W_Q + b_Q = q at the first position" in names
    if name not in ("mixtral", "microtome_attention_only"):  # neurons within experts, or none
        assert {"mlp_in W + b = mlp_pre", "mlp_post W_out + b_out make mlp_out"} <= names


@pytest.mark.parametrize("name", families.ALL)
def test_every_site_is_reached_and_has_the_axes_it_claims(name: str) -> None:
    model = families.model(name)
    run = everything(model, name)
    sizes = model.sizes
    lengths = {
        "batch": 2, "head": sizes["n_heads"], "kv_head": sizes["n_kv_heads"], "d_head": sizes["d_head"],
        "d_model": sizes["d_model"], "neuron": sizes["d_mlp"], "token": sizes["d_vocab"], "one": 1, "expert": 4,
    }  # fmt: skip
    assert set(run.values) == set(model.sites())
    for site, value in run.values.items():
        stack = site.stack or ("decoder" if name in families.ENCODER_DECODERS else "")
        columns = families.COLUMNS - 2 if stack == "decoder" else families.COLUMNS
        expected = lengths | dict.fromkeys(("position", "query", "key"), columns)
        if name == "opt_projected" or name == "opt_post_norm":
            expected["d_model"] = value.shape[-1] if site.part == "embed" else sizes["d_model"]
        assert list(value.shape) == [expected[axis] for axis in PARTS[site.part].axes], site


@pytest.mark.parametrize("name", families.ALL)
def test_the_stream_flows_from_block_to_block(name: str) -> None:
    model = families.model(name)
    run = everything(model, name)
    for stack, anatomy in model.anatomies.items():
        for layer in range(len(anatomy.blocks) - 1):
            after = run[Site("resid_post", layer, stack=stack)]
            assert torch.equal(after, run[Site("resid_pre", layer + 1, stack=stack)])


@pytest.mark.parametrize("name", families.ALL)
def test_pattern_is_the_softmax_of_scores_and_mixes_values_into_z(name: str) -> None:
    model = families.model(name)
    run = everything(model, name)
    for stack, anatomy in model.anatomies.items():
        for layer in range(len(anatomy.blocks)):
            at = {part: run[Site(part, layer, stack=stack)] for part in ("scores", "pattern", "v", "z")}
            assert gap(torch.softmax(at["scores"], dim=-1), at["pattern"]) <= CLOSE
            values = at["v"].repeat_interleave(at["z"].shape[2] // at["v"].shape[2], dim=2)
            assert gap(torch.einsum("bhqk,bkhd->bqhd", at["pattern"], values), at["z"]) <= CLOSE
            ahead = torch.ones(at["pattern"].shape[-2:], dtype=torch.bool).triu(1)
            if anatomy.family.causal:
                assert not at["pattern"][..., ahead].any()
            else:
                assert at["pattern"][..., ahead].all()


@pytest.mark.parametrize("name", ["gpt_neo", "mistral", "qwen2", "gemma2", "gemma3"])
def test_a_window_hides_what_lies_before_it(name: str) -> None:
    """Some layer looks back only over its window, the last layer or another over everything."""
    run = everything(families.model(name), name)
    distance = torch.arange(families.COLUMNS)[:, None] - torch.arange(families.COLUMNS)
    far = [bool(run[f"pattern.{n}"][..., distance >= families.WINDOW].any()) for n in range(3)]
    assert not all(far)
    assert any(far) or name == "mistral"


@pytest.mark.parametrize("name", families.DECODERS)
def test_direct_contributions_rebuild_the_last_stream(name: str) -> None:
    model = families.model(name)
    if model.anatomy.family.residual == "post_norm":
        pytest.skip("a norm stands after each addition, so the stream is not a sum")
    run = everything(model, name)
    total = run["resid_pre.0"].clone()
    for layer in range(model.n_layers):
        total += run[f"attn_out.{layer}"]
        total += run[f"mlp_out.{layer}"] if model.has(f"mlp_out.{layer}") else 0.0
    assert gap(total, run[f"resid_post.{model.n_layers - 1}"]) <= CLOSE


@pytest.mark.parametrize("name", families.DECODERS)
def test_heads_and_bias_rebuild_what_the_attention_adds(name: str) -> None:
    model = families.model(name)
    if model.anatomy.family.attn_adds:
        pytest.skip("a norm stands after the attention; check_map looks through it")
    run = everything(model, name)
    for layer in range(model.n_layers):
        bias = find(model.anatomy, Weight("b_O", layer))
        total = run[f"result.{layer}"].sum(dim=2)
        assert gap(total if bias is None else total + bias, run[f"attn_out.{layer}"]) <= CLOSE


@pytest.mark.parametrize("name", families.ALL)
def test_norm_scales_are_the_divisors_of_the_norms(name: str) -> None:
    model = families.model(name)
    run = everything(model, name)
    for layer in range(model.n_layers):
        norm = model.anatomy.role("attn_norm", layer)
        if norm is None:
            continue
        stream = run[f"resid_pre.{layer}"]
        if isinstance(norm, torch.nn.LayerNorm):
            scale = (stream.var(dim=-1, keepdim=True, unbiased=False) + norm.eps).sqrt()
        else:
            eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
            scale = (stream.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt()
        assert gap(run[f"attn_norm_scale.{layer}"], scale) <= CLOSE


@pytest.mark.parametrize("part", ["resid_pre", "z", "resid_post", "attn_out"])
@pytest.mark.parametrize("name", families.ALL)
def test_patching_everything_from_another_run_reproduces_it(name: str, part: str) -> None:
    """All streams, or all that is written into the stream besides the embedding, taken from another text."""
    model = families.model(name)
    other = everything(model, name, seed=7)
    parts = (
        [part] if part in ("resid_pre", "resid_post") else ["resid_pre", part, "mlp_out", "z", "pattern", "v"]
    )
    edits = [
        Set(site, value=value, origin="patch")
        for site, value in other.values.items()
        if site.part in parts and not (site.part == "resid_pre" and site.layer and len(parts) > 1)
    ]
    patched = model.run(families.inputs(name), edit=edits)
    assert gap(patched.logits, other.logits) <= CLOSE
    assert gap(patched.logits, model.run(families.inputs(name)).logits) > 1e-2


@pytest.mark.parametrize("name", families.ALL)
def test_an_edit_that_changes_nothing_changes_nothing(name: str) -> None:
    """Bit for bit where the value is a module's own; to rounding where it is recomputed (patterns, results, norms)."""
    model = families.model(name)
    plain = model.run(families.inputs(name)).logits
    rounding = {
        "scores",
        "pattern",
        "result",
        "attn_norm_scale",
        "attn_out_norm_scale",
        "mlp_norm_scale",
        "mlp_out_norm_scale",
        "final_norm_scale",
        "router",
    }
    for site in model.sites():
        edited = model.run(families.inputs(name), edit=[Function(site, function=torch.clone)]).logits
        if site.part in rounding:
            assert gap(edited, plain) <= CLOSE, site
        else:
            assert torch.equal(edited, plain), site


@pytest.mark.parametrize("name", families.FEW)
def test_an_empty_list_of_edits_changes_nothing(name: str) -> None:
    model = families.model(name)
    before = families.untouched(model.module, families.inputs(name))
    assert torch.equal(model.run(families.inputs(name), edit=[]).logits, before)
    assert torch.equal(model.run(families.inputs(name), read=["resid_post.1"], logits=True).logits, before)


def test_the_sdpa_path_equals_the_call_that_users_make() -> None:
    """With a cache, as `module(ids)` has it by default, SDPA computes the same bits."""
    for name in ("gpt2", "llama", "gpt_neox", "gemma2"):
        module = families.make(name)
        with torch.no_grad():
            plain = module(families.ids()).logits
        assert torch.equal(load(module).run(families.ids()).logits, plain)


def test_a_bare_base_model_is_read_without_a_head() -> None:
    base = families.make("gpt2").transformer
    model = load(base)
    run = model.run(families.ids(), read=["resid_post.2"])
    with torch.no_grad():
        assert torch.equal(base.ln_f(run["resid_post.2"]), base(families.ids()).last_hidden_state)
    assert not model.has("logits")


def test_a_wiring_that_the_map_does_not_cover_is_refused() -> None:
    module = families.make("bloom", apply_residual_connection_post_layernorm=True)
    with pytest.raises(FamilyError, match="apply_residual_connection_post_layernorm"):
        load(module)
    assert load(module, family=None).run(families.ids()).logits is not None


def test_families_are_found_by_the_name_of_the_architecture() -> None:
    assert family_of(families.make("gpt_neox").config)[""].residual == "parallel"
    assert family_of(families.make("gpt_neox_sequential").config)[""].residual == "sequential"
    assert set(family_of(families.make("t5").config)) == {"", "encoder"}
    assert family_of(torch.nn.Linear(2, 2)) == {}
