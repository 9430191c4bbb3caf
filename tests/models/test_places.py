"""An edit at a site does what it says, held against the same thing done by hand with hooks of one's own."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models import families
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.edits import Add, Edit, Function, Project, Scale, Set, Swap, Zero
from microtome.core.errors import SiteError
from microtome.core.site import Site
from microtome.models.load import load
from microtome.models.stream_parts import behind

Change = Callable[[Tensor], Tensor]


def by_hand(module: nn.Module, ids: Tensor, hooks: Sequence[tuple[nn.Module, str, Change]]) -> Tensor:
    """Logits with plain hooks: on a module's first input ("in") or output ("out")."""

    def before(change: Change) -> Any:
        return lambda _, args: (change(args[0]), *args[1:])

    def after(change: Change) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        return hook

    with ExitStack() as stack:
        for target, side, change in hooks:
            handle = (
                target.register_forward_pre_hook(before(change))
                if side == "in"
                else target.register_forward_hook(after(change))
            )
            stack.callback(handle.remove)
        return families.untouched(module, ids)


def run(name: str, *edits: Edit) -> Tensor:
    logits = families.model(name).run(families.ids(), edit=list(edits)).logits
    assert logits is not None
    return logits


def close(one: Tensor, two: Tensor) -> bool:
    return torch.allclose(one, two, atol=2e-5, rtol=1e-4)


VECTOR = torch.randn(32, generator=torch.Generator().manual_seed(3))

# part: (module of block 1 by role, side), for what is a module's own input or output everywhere.
PLAIN = {
    "resid_pre": ("", "in"),
    "resid_post": ("", "out"),
    "z": ("o", "in"),
    "mlp_post": ("mlp_down", "in"),
    "mlp_pre": ("mlp_up", "out"),
}


@pytest.mark.parametrize("part", PLAIN)
@pytest.mark.parametrize("name", families.ALL)
def test_parts_that_are_a_modules_input_or_output(name: str, part: str) -> None:
    model = families.model(name)
    if name in families.ENCODER_DECODERS or not model.has(f"{part}.1"):
        pytest.skip("shown on single stacks that have the part")
    anatomy = model.anatomy
    role, side = PLAIN[part]
    if part == "mlp_pre":
        role = "gate_up" if anatomy.family.gate_up else "mlp_gate" if anatomy.family.mlp_gate else "mlp_up"
    target = anatomy.role(role, 1) if role else anatomy.blocks[1]
    assert target is not None
    width = anatomy.sizes["d_mlp"] if part.startswith("mlp") else 32
    width = anatomy.sizes["n_heads"] * anatomy.sizes["d_head"] if part == "z" else width
    vector = torch.randn(width, generator=torch.Generator().manual_seed(5))

    def change(value: Tensor) -> Tensor:
        padded = functional.pad(vector, (0, value.shape[-1] - width))
        return value + padded

    expected = by_hand(model.module, families.ids(), [(target, side, change)])
    added = vector.view(anatomy.sizes["n_heads"], -1) if part == "z" else vector
    found = run(name, Add(f"{part}.1", vector=added))
    assert close(found, expected)
    assert not close(found, run(name))


@pytest.mark.parametrize("name", families.DECODERS)
def test_what_is_added_to_the_stream(name: str) -> None:
    """Adding to attn_out, resid_mid or mlp_out moves the stream by it, wherever no norm stands after the addition."""
    model = families.model(name)
    if model.anatomy.family.residual == "post_norm":
        pytest.skip("the stream is normed after each addition")
    for part in ("attn_out", "mlp_out", "resid_mid"):
        if model.has(f"{part}.1"):
            plain = model.run(
                families.ids(), read=["resid_pre.1", "attn_out.1", "mlp_in.1", "resid_post.1"][:2]
            )
            edited = model.run(
                families.ids(),
                read=["resid_mid.1"] if model.has("resid_mid.1") and part != "mlp_out" else ["resid_post.1"],
                edit=[Add(f"{part}.1", vector=VECTOR)],
            )
            if model.has("resid_mid.1") and part != "mlp_out":
                expected = plain["resid_pre.1"] + plain["attn_out.1"] + VECTOR
                assert close(edited["resid_mid.1"], expected)
            else:
                whole = model.run(families.ids(), read=["resid_post.1"])["resid_post.1"]
                assert close(edited["resid_post.1"], whole + VECTOR)


@pytest.mark.parametrize("name", families.DECODERS)
def test_an_edit_of_the_stream_between_attention_and_mlp_reaches_both_its_readers(name: str) -> None:
    model = families.model(name)
    if not model.has("resid_mid.1") or model.anatomy.family.residual == "post_norm":
        pytest.skip("no stream between attention and MLP")
    run = model.run(
        families.ids(),
        read=["resid_mid.1", "mlp_in.1", "mlp_out.1", "resid_post.1"],
        edit=[Add("resid_mid.1", vector=VECTOR)],
    )
    again = model.run(
        families.ids(), read=["resid_post.1"], edit=[Set("resid_mid.1", value=run["resid_mid.1"])]
    )
    assert close(run["resid_mid.1"] + run["mlp_out.1"], run["resid_post.1"])
    assert close(again["resid_post.1"], run["resid_post.1"])
    norm = model.anatomy.role("mlp_norm", 1)
    if norm is not None:
        assert close(norm(run["resid_mid.1"]), run["mlp_in.1"])


@pytest.mark.parametrize("name", families.ALL)
def test_queries_keys_values_and_patterns_make_the_z_they_should(name: str) -> None:
    """After edits of q, k, v, scores and pattern, z is what attention written out makes of them."""
    model = families.model(name)
    given_inputs = families.inputs(name)
    parts = ["q", "k", "v", "scores", "pattern", "z"]
    plain = model.run(given_inputs, read=[f"{part}.1" for part in parts])
    groups = plain["q.1"].shape[2] // plain["k.1"].shape[2]
    masked = torch.isneginf(plain["scores.1"])

    def mixed(pattern: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bhqk,bkhd->bqhd", pattern, v.repeat_interleave(groups, dim=2))

    def z(*edits: Edit) -> Tensor:
        return model.run(given_inputs, read=["z.1"], edit=list(edits))["z.1"]

    assert close(z(Scale("v.1", factor=2.0)), 2 * plain["z.1"])
    assert close(z(Zero("v.1")), torch.zeros_like(plain["z.1"]))
    for part in ("q", "k"):
        flat = masked.logical_not().float()
        uniform = z(Zero(f"{part}.1"))
        if name not in ("t5", "t5_gated", "bloom"):  # whose scores have more in them than a product
            assert close(uniform, mixed(flat / flat.sum(-1, keepdim=True), plain["v.1"]))
        assert not close(uniform, plain["z.1"])
    halved = torch.softmax(plain["scores.1"] * 0.5, dim=-1)
    assert close(z(Scale("scores.1", factor=0.5)), mixed(halved, plain["v.1"]))
    squared = plain["pattern.1"] ** 2
    assert close(z(Function("pattern.1", function=torch.square)), mixed(squared, plain["v.1"]))
    patched = Set("pattern.1", value=plain["pattern.1"], origin="patch")
    assert close(z(patched), plain["z.1"])
    one = z(Zero("pattern.1.h1@2"))
    assert close(one[:, [0, 1, 3]], plain["z.1"][:, [0, 1, 3]])
    assert not one[:, 2, 1].any()
    assert close(one[:, 2, [0, 2, 3]], plain["z.1"][:, 2, [0, 2, 3]])
    doubled = z(Scale("q.1", factor=2.0))
    if name not in ("gemma2", "t5", "t5_gated", "bloom"):  # capped, or biased
        assert close(doubled, mixed(torch.softmax(plain["scores.1"] * 2, dim=-1), plain["v.1"]))


def test_a_square_pattern_is_patched_as_it_was_read() -> None:
    """As many heads as columns: heads and queries must not be mistaken for each other."""
    model = families.model("gpt2")
    ids = families.ids(columns=4)
    other = model.run(families.ids(columns=4, seed=9), read=["pattern.1"])["pattern.1"]
    run = model.run(ids, read=["pattern.1", "v.1", "z.1"], edit=[Set("pattern.1", value=other)])
    assert torch.equal(run["pattern.1"], other)
    assert close(run["z.1"], torch.einsum("bhqk,bkhd->bqhd", other, run["v.1"]))


@pytest.mark.parametrize("name", families.ALL)
def test_results_of_heads_are_edited_as_if_the_projection_did(name: str) -> None:
    model = families.model(name)
    given_inputs = families.inputs(name)
    assert close(
        model.run(given_inputs, edit=[Zero("result.1.h2")]).logits,
        model.run(given_inputs, edit=[Zero("z.1.h2")]).logits,
    )
    moved = model.run(given_inputs, read=["result.1"], edit=[Add("result.1.h1", vector=VECTOR)])["result.1"]
    plain = model.run(given_inputs, read=["result.1"])["result.1"]
    assert close(moved[:, :, 1], plain[:, :, 1] + VECTOR)
    assert torch.equal(moved[:, :, [0, 2, 3]], plain[:, :, [0, 2, 3]])


@pytest.mark.parametrize("name", families.ALL)
def test_norm_scales_freeze_and_stretch_the_norm(name: str) -> None:
    model = families.model(name)
    given_inputs = families.inputs(name)
    for scale, reader in (("attn_norm_scale.1", "attn_in.1"), ("mlp_norm_scale.1", "mlp_in.1")):
        if not model.has(scale):
            continue
        role = scale.partition("_scale")[0]
        norm = model.anatomy.role(role, 1)
        bias = getattr(norm, "bias", None)
        bias = torch.zeros(32) if bias is None else bias.detach()
        plain = model.run(given_inputs, read=[scale, reader])
        halved = model.run(given_inputs, read=[scale, reader], edit=[Scale(scale, factor=2.0)])
        assert close(halved[reader] - bias, (plain[reader] - bias) / 2)
        assert close(halved[scale], 2 * plain[scale])
        frozen = [Set(scale, value=plain[scale]), Scale("embed", factor=1.0)]
        assert close(model.run(given_inputs, edit=frozen).logits, model.run(given_inputs).logits)
    for part, which in (("attn_out", "attn"), ("mlp_out", "mlp")):
        norm = behind(model.anatomy, 1, which) if model.has(f"{part}_norm_scale.1") else None
        assert (norm is not None) == (name.startswith(("gemma2", "gemma3", "olmo2")))
        if norm is None:
            continue
        scale = f"{part}_norm_scale.1"
        plain = model.run(given_inputs, read=[scale, f"{part}.1"])
        halved = model.run(given_inputs, read=[scale, f"{part}.1"], edit=[Scale(scale, factor=2.0)])
        assert close(halved[f"{part}.1"] - norm.bias, (plain[f"{part}.1"] - norm.bias) / 2)
        assert close(halved[scale], 2 * plain[scale])
    if model.has("final_norm_scale"):
        plain = model.run(given_inputs, read=["final_norm_scale"], logits=True)
        moved = model.run(given_inputs, edit=[Scale("final_norm_scale", factor=3.0)]).logits
        last = model.run(given_inputs, read=[f"resid_post.{model.n_layers - 1}"])[
            f"resid_post.{model.n_layers - 1}"
        ]
        norm = model.anatomy.role("final_norm")
        assert norm is not None
        bias = getattr(norm, "bias", None)
        bias = torch.zeros(32) if bias is None else bias.detach()
        third = (norm(last).detach() - bias) / 3 + bias
        expected = (
            by_hand(model.module, families.ids(), [(norm, "out", lambda _: third)])
            if not isinstance(given_inputs, dict)
            else None
        )
        assert expected is None or close(moved, expected)


def test_routing_logits_choose_the_experts_anew() -> None:
    """Forced to one pair of experts, the block computes those two, weighed by the softmax of their logits."""
    model = families.model("mixtral")
    logits = torch.tensor([3.0, -50.0, 2.0, -50.0])
    run = model.run(
        families.ids(), read=["mlp_in.1", "mlp_out.1", "router.1"], edit=[Set("router.1", value=logits)]
    )
    assert torch.equal(run["router.1"], logits.expand(2, families.COLUMNS, 4))
    experts = model.anatomy.blocks[1].mlp.experts
    weights = torch.softmax(torch.tensor([3.0, 2.0]), dim=-1)
    total = torch.zeros_like(run["mlp_out.1"])
    for weight, expert in zip(weights, (0, 2), strict=True):
        gate, up = functional.linear(run["mlp_in.1"], experts.gate_up_proj[expert]).chunk(2, dim=-1)
        total += weight * functional.linear(functional.silu(gate) * up, experts.down_proj[expert]).detach()
    assert close(run["mlp_out.1"], total)


@pytest.mark.parametrize("name", families.ALL)
def test_logits_are_edited_as_they_leave(name: str) -> None:
    model = families.model(name)
    plain = model.run(families.inputs(name)).logits
    moved = model.run(families.inputs(name), edit=[Add("logits.u7@-1", vector=torch.tensor(5.0))]).logits
    expected = plain.clone()
    expected[:, -1, 7] += 5
    assert torch.equal(moved, expected)


@pytest.mark.parametrize("name", families.FEW)
def test_any_module_by_its_path(name: str) -> None:
    model = families.model(name)
    path = next(p for p, m in model.module.named_modules() if m is model.anatomy.role("o", 1))
    edits = [Scale(Site.module(path, "in"), factor=0.5), Add(Site.module(path), vector=VECTOR)]
    target = model.anatomy.role("o", 1)
    assert target is not None
    expected = by_hand(
        model.module,
        families.ids(),
        [(target, "in", lambda v: 0.5 * v), (target, "out", lambda v: v + VECTOR)],
    )
    run = model.run(families.ids(), read=[f"path:{path}:in", f"path:{path}"], edit=edits, logits=True)
    assert torch.equal(run.logits, expected)
    plain = model.run(families.ids(), read=[f"path:{path}:in"])[f"path:{path}:in"]
    assert torch.equal(run[f"path:{path}:in"], 0.5 * plain)


def test_a_module_without_a_map_is_read_edited_and_differentiated_by_path() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    model = load(module)
    image = torch.randn(2, 3, 8, 8)
    run = model.run(image, read=["path:0", "path:1", "path:3:in.u0,2"], logits=True)
    assert torch.equal(run["path:0"], module[0](image))
    assert torch.equal(run["path:1"], module[0](image).relu())
    assert torch.equal(run["path:3:in.u0,2"], module[:3](image)[:, [0, 2]])
    assert torch.equal(run.logits, module(image))
    silenced = model.run(image, edit=[Zero("path:1")]).logits
    assert torch.allclose(silenced, module[3].bias.expand(2, 5))
    with pytest.raises(SiteError, match="no map"):
        model.run(image, read=["resid_post.0"])
    with pytest.raises(SiteError, match="has 0, 1, 2, 3"):
        model.run(image, read=["path:4"])


# Rows, positions and padding --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", families.FEW)
def test_an_edit_of_some_rows_leaves_the_others(name: str) -> None:
    model = families.model(name)
    ids = families.ids(rows=3)
    plain = model.run(ids).logits
    value = torch.randn(2, families.COLUMNS, 4, 8)
    edits = [
        Set("z.1", rows=(2, 0), value=value),
        Scale("q.0", rows=(0,), factor=2.0),
        Zero("pattern.2.h1@-1", rows=(2,)),
    ]
    edited = model.run(ids, edit=edits).logits
    assert torch.equal(edited[1], plain[1]) or torch.allclose(edited[1], plain[1], atol=1e-5)
    for place, row in ((1, 0), (0, 2)):
        alone = [Set("z.1", value=value[place : place + 1])]
        alone += [Scale("q.0", factor=2.0)] if row == 0 else [Zero("pattern.2.h1@-1")]
        assert close(edited[row : row + 1], model.run(ids[row : row + 1], edit=alone).logits)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", families.ALL)
def test_positions_count_real_tokens_whatever_the_padding(name: str, side: str) -> None:
    """A padded row gives at each position what it gives alone, with edits at positions too."""
    if name in families.ENCODER_DECODERS:
        pytest.skip("shown on single stacks")
    model = families.model(name)
    ids = families.ids(rows=2)
    short = ids[1:, 4:]
    real = slice(4, None) if side == "left" else slice(0, -4)
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[1] = model.module.config.pad_token_id
    padded[1, real] = short[0]
    mask[1] = 0
    mask[1, real] = 1
    parts = [s for s in model.sites() if s.part not in ("scores", "pattern", "k", "v", "logits", "router")]
    reads = [site.at(0, 2, -1) for site in parts]
    edits = [
        Add("resid_post.0@2", vector=VECTOR),
        Zero("z.1.h0@-1"),
        Scale("v.1@0", factor=3.0),
        Scale("pattern.2.h1@-2", factor=0.5),
    ]
    for chosen in ([], edits):
        alone = model.run(short, read=reads, edit=chosen, logits=True)
        both = model.run(padded, read=reads, edit=chosen, logits=True, mask=mask)
        for read in reads:
            assert torch.allclose(both[read][1:], alone[read], atol=5e-5, rtol=1e-3), read
        assert torch.allclose(both.logits[1:, real], alone.logits, atol=5e-5, rtol=1e-3)
        whole = model.run(ids[:1], read=reads, edit=chosen)
        for read in reads:
            assert torch.allclose(both[read][:1], whole[read], atol=5e-5, rtol=1e-3), read


def test_keys_count_real_tokens_too() -> None:
    model = families.model("llama")
    ids = families.ids()
    whole = model.run(ids, read=["pattern.1"])["pattern.1"]
    assert torch.equal(
        model.run(ids, read=["pattern.1.h1.u0,3@-1"])["pattern.1.h1.u0,3@-1"], whole[:, 1:2, -1:, [0, 3]]
    )
    mask = torch.ones_like(ids)
    mask[:, :2] = 0
    alone = model.run(ids[:, 2:], read=["pattern.1.u0"])["pattern.1.u0"]
    both = model.run(ids, read=["pattern.1.u0"], mask=mask)["pattern.1.u0"]
    assert close(both[:, :, 2:], alone)
    mask[0] = 1
    with pytest.raises(SiteError, match="padded differently"):
        model.run(ids, read=["pattern.1.u0"], mask=mask)
    edited = model.run(ids, read=["pattern.1"], edit=[Zero("pattern.1.u0", rows=(1,))], mask=mask)[
        "pattern.1"
    ]
    assert not edited[1, :, :, 2].any()
    assert edited[0, :, :, 0].any()


# Any edits at all -------------------------------------------------------------------------------------------

_PARTS = {"resid_pre": 32, "resid_post": 32, "mlp_post": 48, "mlp_out": 32, "attn_out": 32}


@st.composite
def random_edits(draw: st.DrawFn) -> list[tuple[Edit, int]]:
    """Edits of parts that are a module's own input or output, and the seed of their numbers."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        part = draw(st.sampled_from(sorted(_PARTS)))
        width = _PARTS[part]
        positions = draw(st.none() | st.lists(st.integers(-9, 8), min_size=1, max_size=3))
        if positions is not None:
            positions = tuple({p % 9: p for p in positions}.values())
        units = draw(
            st.none() | st.lists(st.integers(0, width - 1), min_size=1, max_size=4, unique=True).map(tuple)
        )
        rows = draw(st.none() | st.lists(st.integers(0, 1), min_size=1, max_size=2, unique=True).map(tuple))
        site = Site(part, draw(st.integers(0, 2)), positions=positions, units=units)
        seed = draw(st.integers(0, 99))
        n = width if units is None else len(units)
        numbers = torch.Generator().manual_seed(seed)
        vector, frame = torch.randn(n, generator=numbers), torch.randn(2, n, generator=numbers)
        kind = draw(st.sampled_from(("set", "zero", "add", "scale", "project", "swap")))
        edit: Edit = {
            "set": Set(site, rows, value=vector),
            "zero": Zero(site, rows),
            "add": Add(site, rows, vector=vector, coefficient=0.5),
            "scale": Scale(site, rows, factor=-1.5),
            "project": Project(site, rows, directions=frame, keep=bool(seed % 2)),
            "swap": Swap(site, rows, directions=frame, value=vector),
        }[kind]
        found.append((edit, seed))
    return found


def arithmetic(edit: Edit, value: Tensor) -> Tensor:
    """What an edit says, written out on one vector."""
    match edit:
        case Set():
            return edit.value
        case Zero():
            return value * 0
        case Add():
            return value + edit.coefficient * edit.vector
        case Scale():
            return value * edit.factor
        case Project() | Swap():
            frame, _ = torch.linalg.qr(edit.directions.T)
            if isinstance(edit, Swap):
                return value + frame @ (frame.T @ (edit.value - value))
            inside = frame @ (frame.T @ value)
            return inside if edit.keep else value - inside
    raise AssertionError(edit)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
@given(drawn=random_edits())
def test_random_edits_equal_loops_over_rows_positions_and_units(
    name: str, drawn: list[tuple[Edit, int]]
) -> None:
    model = families.model(name)
    anatomy = model.anatomy

    def hook(edit: Edit) -> Change:
        def change(value: Tensor) -> Tensor:
            value = value.clone()
            for row in range(2) if edit.rows is None else edit.rows:
                for position in range(9) if edit.site.positions is None else edit.site.positions:
                    units = slice(None) if edit.site.units is None else list(edit.site.units)
                    value[row, position, units] = arithmetic(edit, value[row, position, units])
            return value

        return change

    def target(site: Site) -> tuple[nn.Module, str]:
        role, side = {
            "mlp_post": ("mlp_down", "in"),
            "mlp_out": ("mlp", "out"),
            "attn_out": ("o", "out"),
        }.get(site.part, ("", "in" if site.part == "resid_pre" else "out"))
        found = anatomy.role(role, site.layer) if role else anatomy.blocks[site.layer or 0]
        assert found is not None
        return found, side

    hooks = [(*target(edit.site), hook(edit)) for edit, _ in drawn]
    expected = by_hand(model.module, families.ids(), hooks)
    found = run(name, *(edit for edit, _ in drawn))
    assert torch.allclose(found, expected, atol=1e-4, rtol=1e-3)
