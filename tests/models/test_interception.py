"""The module stays the user's: after every call, also one that raised, in every thread, it is what it was."""

import threading
from collections.abc import Iterator

import pytest
import torch
from tests.models import families
from torch import Tensor, nn

from microtome.core.edits import Add, Edit, Function, Noise, Scale, Set, Zero
from microtome.core.errors import EditError, InputError, MicrotomeError, NotFiniteError, SiteError
from microtome.core.logits import LogitSelection
from microtome.core.site import Site
from microtome.models.load import load
from microtome.models.model import Model


class Total:
    """A metric that depends on every logit of the last position, differently."""

    name = "total"
    needs = LogitSelection((-1,))

    def __call__(self, logits: Tensor) -> Tensor:
        weights = torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype)
        return (torch.tanh(logits) * weights).sum(dim=(1, 2))

    def for_rows(self, rows: list[int]) -> "Total":
        return self


def boom(value: Tensor) -> Tensor:
    raise RuntimeError("boom")


@pytest.fixture(params=families.FEW)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def calls(model: Model) -> Iterator[None]:
    """Calls of every kind, those that raise included."""
    ids = families.ids()
    last = model.n_layers - 1
    yield model.run(ids) and None
    yield model.run(ids, read=model.sites(), logits=True) and None
    yield model.run(ids, read=["q.0", "resid_post.0"]) and None
    yield (
        model.run(ids, edit=[Zero("z.1.h0"), Zero("pattern.0.h1@2"), Scale("resid_post.0", factor=2.0)])
        and None
    )
    gradients = [f"grad:{part}.1" for part in ("resid_pre", "q", "pattern", "z", "resid_post")]
    yield model.run(ids, read=gradients, metric=Total()) and None
    for site in ("resid_pre.1", "q.0", "scores.1", "z.1", "resid_post.0"):
        with pytest.raises(RuntimeError, match="boom"):
            model.run(ids, edit=[Function(site, function=boom)])
        yield None
    for bad in ("resid_post.9", "z.0.h9", "mlp_out.0.u99", "resid_pre.0@99", "encoder/z.0", "path:nowhere"):
        with pytest.raises(SiteError):
            model.run(ids, read=[bad])
        yield None
    with pytest.raises(EditError):
        model.run(ids, edit=[Set(f"z.{last}", value=torch.zeros(5, 5, 5))])
    yield None
    with pytest.raises(NotFiniteError):
        model.run(ids, edit=[Function("resid_post.0", function=lambda v: v * float("nan"))])
    yield None
    with pytest.raises(InputError):
        model.run(ids + 1000)
    yield None


def test_after_every_call_the_module_is_as_it_was(name: str) -> None:
    module = families.make(name)
    unchanged = families.snapshot(module)
    before = families.untouched(module, families.ids())
    model = load(module)
    unchanged()
    for _ in calls(model):
        unchanged()
        assert torch.equal(families.untouched(module, families.ids()), before)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_attention_implementation_is_restored_when_it_was_the_users_own(attention: str) -> None:
    """A kernel that the user put in the registry under a known name is back after the call."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

    module = families.make("llama", attention=attention)
    kernel = registry["sdpa"]
    seen = []

    def mine(*args: object, **kwargs: object) -> object:
        seen.append(1)
        return kernel(*args, **kwargs)

    registry[attention] = mine
    try:
        model = load(module)
        model.run(families.ids(), read=["z.0", "pattern.1"], edit=[Zero("q.0.h0")])
        assert registry[attention] is mine
        assert seen or attention == "eager"
    finally:
        del registry[attention]


def test_a_read_stops_the_pass_at_the_last_value_needed(name: str) -> None:
    module = families.make(name)
    model = load(module)
    entered: list[int] = []
    handles = [
        block.register_forward_pre_hook(lambda *_, layer=layer: entered.append(layer))
        for layer, block in enumerate(model.anatomy.blocks)
    ]
    ids = families.ids()
    for read, blocks in (("resid_pre.0", [0]), ("z.1", [0, 1]), ("resid_post.0", [0]), ("q.2", [0, 1, 2])):
        entered.clear()
        model.run(ids, read=[read])
        assert entered == blocks, read
    entered.clear()
    model.run(ids, read=["resid_pre.0"], logits=True)
    assert entered == [0, 1, 2]
    for handle in handles:
        handle.remove()


def test_only_the_logits_asked_for_are_computed() -> None:
    module = families.make("llama")
    model = load(module)
    shapes: list[list[int]] = []
    handle = module.lm_head.register_forward_pre_hook(lambda _, args: shapes.append(list(args[0].shape)))
    whole = model.run(families.ids()).logits
    assert shapes == [[2, families.COLUMNS, 32]]
    shapes.clear()
    chosen = model.run(families.ids(), logits=LogitSelection((-1, 0))).logits
    assert shapes == [[2, 2, 32]]
    handle.remove()
    assert torch.allclose(chosen, whole[:, [-1, 0]], atol=1e-6)
    tokens = model.run(families.ids(), logits=LogitSelection((-1,), ((3, 4), (5, 6)))).logits
    assert torch.allclose(tokens[1, 0], whole[1, -1, [5, 6]], atol=1e-6)


def test_other_threads_see_the_untouched_model(name: str) -> None:
    """While one thread edits, another uses the same module plainly, and a third edits it otherwise."""
    module = families.make(name)
    model = load(module)
    ids = families.ids()
    plain = families.untouched(module, ids)
    mine = model.run(
        ids, edit=[Zero("z.1"), Zero("resid_mid.0" if model.has("resid_mid.0") else "attn_out.0")]
    ).logits
    theirs = model.run(ids, edit=[Scale("q.0", factor=3.0)]).logits
    inside, go_on = threading.Event(), threading.Event()
    found: dict[str, Tensor] = {}

    def wait(value: Tensor) -> Tensor:
        inside.set()
        assert go_on.wait(20)
        return value

    def edit() -> None:
        first = "resid_mid.0" if model.has("resid_mid.0") else "attn_out.0"
        edits = [Function("q.0", function=wait), Zero("z.1"), Zero(first)]
        found["edited"] = model.run(ids, edit=edits).logits

    thread = threading.Thread(target=edit)
    thread.start()
    assert inside.wait(20)
    found["plain"] = families.untouched(module, ids)
    found["other"] = model.run(ids, edit=[Scale("q.0", factor=3.0)]).logits
    found["read"] = model.run(ids, read=["pattern.0"])["pattern.0"]
    go_on.set()
    thread.join(20)
    assert torch.equal(found["plain"], plain)
    assert torch.equal(found["other"], theirs)
    assert torch.equal(found["read"], model.run(ids, read=["pattern.0"])["pattern.0"])
    assert torch.allclose(found["edited"], mine, atol=1e-5)
    assert torch.equal(families.untouched(module, ids), plain)


def test_other_models_of_the_same_class_are_untouched(name: str) -> None:
    mine, other = families.make(name), families.make(name, seed=5)
    model = load(mine)
    ids = families.ids()
    before = families.untouched(other, ids)
    inside: list[Tensor] = []

    def peek(value: Tensor) -> Tensor:
        inside.append(families.untouched(other, ids))
        return value

    model.run(ids, read=["pattern.1"], edit=[Function("z.0", function=peek), Zero("q.1")])
    assert torch.equal(inside[0], before)


def test_a_run_inside_an_edit_sees_none_of_the_outer_edits(name: str) -> None:
    model = load(families.make(name))
    ids = families.ids()
    alone = model.run(ids, read=["resid_post.2", "pattern.2"])
    inside = []

    def run_again(value: Tensor) -> Tensor:
        inside.append(model.run(ids, read=["resid_post.2", "pattern.2"]))
        return value

    outer = model.run(ids, edit=[Function("attn_in.2", function=run_again), Zero("pattern.1"), Zero("q.2")])
    assert torch.equal(inside[0]["resid_post.2"], alone["resid_post.2"])
    assert torch.equal(inside[0]["pattern.2"], alone["pattern.2"])
    assert torch.equal(outer.logits, model.run(ids, edit=[Zero("pattern.1"), Zero("q.2")]).logits)


def test_hooks_of_the_users_own_keep_working() -> None:
    module = families.make("gpt2")
    seen = []
    handle = module.transformer.h[1].register_forward_hook(lambda *_: seen.append(1))
    load(module).run(families.ids(), edit=[Zero("z.1")])
    assert seen
    assert len(module.transformer.h[1]._forward_hooks) == 1
    handle.remove()


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", families.ALL)
def test_the_gradient_at_every_site_is_that_of_an_added_vector(name: str) -> None:
    """`grad:SITE` against autograd through an explicit addition there, at every site of every family."""
    model = families.model(name)
    given = families.inputs(name)
    sites = [site for site in model.sites() if site.part not in ("scores", "logits")]
    together = model.run(given, read=[site.grad for site in sites], metric=Total())
    wholes = model.run(given, read=sites)
    for site in sites:
        added = torch.zeros_like(wholes[site]).requires_grad_()
        run = model.run(given, edit=[Add(site, vector=added)], metric=Total())
        (expected,) = torch.autograd.grad(run.metric.sum(), added)
        found = together[site.grad]
        assert found.shape == expected.shape, site
        assert not found.requires_grad
        assert torch.allclose(found, expected, atol=2e-5, rtol=1e-3), site
        if site.depth[0] < model.n_layers - 1:
            assert found.abs().max() > 0, site


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt_post_norm"])
def test_gradients_are_finite_differences(name: str) -> None:
    """In double precision, along a random direction, at every kind of site; families that compute none in float32."""
    model = load(families.make(name).double())
    ids = families.ids()
    for site in model.sites():
        if site.layer not in (None, 1) or site.part == "logits":
            continue
        value = model.run(ids, read=[site], check_finite=False)[site]
        direction = torch.randn(value.shape, dtype=torch.float64)
        if site.part == "scores":
            direction = direction.masked_fill(torch.isinf(value), 0.0)
        step = 1e-6
        plus, minus = (
            model.run(ids, edit=[Add(site, vector=direction, coefficient=c)], metric=Total()).metric.sum()
            for c in (step, -step)
        )
        found = model.run(ids, read=[site.grad], metric=Total())[site.grad]
        expected = float(plus - minus) / (2 * step)
        assert float((found * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-7), site


def test_gradients_at_a_selection_and_with_an_edit_there() -> None:
    model = families.model("llama")
    ids = families.ids()
    whole = model.run(ids, read=["grad:resid_pre.1"], metric=Total())["grad:resid_pre.1"]
    chosen = model.run(ids, read=["grad:resid_pre.1.u3,5@-1"], metric=Total())["grad:resid_pre.1.u3,5@-1"]
    assert torch.equal(chosen, whole[:, -1:, [3, 5]])
    vector = torch.randn(32)
    edited = model.run(
        ids, read=["grad:attn_norm_scale.1"], edit=[Scale("attn_norm_scale.1", factor=2.0)], metric=Total()
    )
    value = model.run(ids, read=["attn_norm_scale.1"])["attn_norm_scale.1"]
    free = (2 * value).requires_grad_()
    (expected,) = torch.autograd.grad(
        model.run(ids, edit=[Set("attn_norm_scale.1", value=free)], metric=Total()).metric.sum(), free
    )
    assert torch.allclose(edited["grad:attn_norm_scale.1"], expected, atol=1e-6)
    assert vector.grad is None


@pytest.mark.parametrize("name", families.FEW)
def test_an_edit_that_changes_nothing_changes_no_gradient(name: str) -> None:
    """The last stream too, where the pass ends and the logits are computed from what was kept."""
    model, ids = families.model(name), families.inputs(name)
    sites = [
        site for site in ("z.1", "q_proj.1", "mlp_out.1", "resid_pre.1", "resid_post.2") if model.has(site)
    ]
    read = [*sites, *(f"grad:{site}" for site in sites)]
    plain = model.run(ids, read, metric=Total())
    same = model.run(ids, read, [Scale(site, factor=1.0) for site in sites], metric=Total())
    for name in read:
        assert torch.equal(plain[name], same[name]), name
    assert plain["grad:resid_post.2"].abs().max() > 0


def test_an_edit_may_call_modules_of_the_model() -> None:
    """They are called for the edit, not for the pass: nothing is read or edited inside."""
    model, ids = families.model("gpt2"), families.ids()
    norm = model.anatomy.role("mlp_norm", 1)
    assert norm is not None
    edits = [Function("attn_out.1", function=lambda value: norm(value[:, :1]).expand_as(value))]
    plain = model.run(ids, ["resid_mid.1", "mlp_in.1"], edits)
    hooked = model.run(ids, ["resid_mid.1", "mlp_norm_scale.1", "mlp_in.1"], edits)
    assert plain["resid_mid.1"].shape == (*ids.shape, model.sizes["d_model"])
    assert torch.equal(plain["resid_mid.1"], hooked["resid_mid.1"])


def test_a_trained_edit_gets_its_gradient_and_values_keep_the_graph() -> None:
    model = families.model("gpt2")
    vector = torch.zeros(32, requires_grad=True)
    run = model.run(
        families.ids(),
        read=["resid_post.2", "grad:z.1"],
        edit=[Add("resid_post.0@-1", vector=vector)],
        metric=Total(),
    )
    assert run["resid_post.2"].requires_grad
    run.metric.sum().backward()
    assert vector.grad is not None
    assert vector.grad.abs().max() > 0
    for parameter in model.module.parameters():
        parameter.grad = None


def test_a_frozen_model_gives_the_same_gradients() -> None:
    free, frozen = families.make("llama"), families.make("llama")
    frozen.requires_grad_(False)
    reads = [
        f"grad:{part}.1"
        for part in ("resid_pre", "q", "k", "v", "scores", "z", "result", "resid_mid", "mlp_post")
    ]
    one = load(free).run(families.ids(), read=reads, metric=Total())
    two = load(frozen).run(families.ids(), read=reads, metric=Total())
    for read in reads:
        assert torch.allclose(one[read], two[read], atol=1e-6), read
        assert two[read].abs().max() > 0


def test_a_gradient_needs_a_metric() -> None:
    with pytest.raises(InputError, match="metric"):
        families.model("gpt2").run(families.ids(), read=["grad:z.0"])


# What models may be like ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", families.ALL)
def test_half_precision(name: str) -> None:
    module = families.make(name).to(torch.bfloat16)
    unchanged = families.snapshot(module)
    model = load(module)
    before = families.untouched(module, families.inputs(name))
    run = model.run(families.inputs(name), read=model.sites(), logits=True)
    assert torch.equal(run.logits, before)
    assert run["resid_post.1"].dtype == torch.bfloat16
    edited = model.run(families.inputs(name), edit=[Zero("z.1"), Zero("pattern.0.h0")]).logits
    assert edited.dtype == before.dtype
    assert not torch.equal(edited, before)
    unchanged()


@pytest.mark.parametrize("name", [*families.FEW, "t5"])
@pytest.mark.parametrize("offload", [False, True])
def test_a_model_wrapped_by_accelerate(name: str, offload: bool) -> None:
    """Dispatched over devices, or its weights kept elsewhere until a module runs."""
    from accelerate import cpu_offload
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    plain = load(families.make(name))
    module = families.make(name)
    if offload:
        cpu_offload(module, execution_device=torch.device("cpu"))
    else:
        for child in module.modules():
            add_hook_to_module(child, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    model = load(module)
    given = families.inputs(name)
    sites = model.sites()
    assert sites == plain.sites()
    one, two = (m.run(given, read=sites, logits=True) for m in (model, plain))
    assert torch.equal(one.logits, two.logits)
    for site in sites:
        assert torch.equal(one[site], two[site]), site
    edits: list[Edit] = [Zero("result.1.h0"), Scale("attn_norm_scale.1", factor=2.0)]
    edits = [edit for edit in edits if model.has(edit.site)]
    assert torch.allclose(model.run(given, edit=edits).logits, plain.run(given, edit=edits).logits, atol=1e-6)
    assert torch.equal(model.weight("W_V.1"), plain.weight("W_V.1"))
    chosen = LogitSelection((-1,), (3, 4))
    assert torch.allclose(
        model.run(given, logits=chosen).logits, plain.run(given, logits=chosen).logits, atol=1e-6
    )
    assert torch.equal(families.untouched(module, given), one.logits)


def test_a_model_in_training_mode_with_dropout_is_refused() -> None:
    module = families.make("gpt2").train()
    with pytest.raises(InputError, match=r"eval\(\)"):
        load(module)
    module.eval()
    model = load(module)
    module.transformer.h[0].mlp.dropout.train()
    with pytest.raises(InputError, match=r"eval\(\)"):
        model.run(families.ids())
    module.eval()
    model.run(families.ids())
    attention = families.make("llama", attention_dropout=0.1).train()
    with pytest.raises(InputError, match=r"eval\(\)"):
        load(attention)
    assert load(families.make("llama").train()).run(families.ids()).logits is not None


# Requests that cannot be met ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "says"),
    [
        ("resid_post.3", "layer 3 is out of range"),
        ("z.0.h4", "head 4 is out of range"),
        ("k.0.h2", "head 2 is out of range"),
        ("mlp_post.0.u48", "unit 48 is out of range"),
        ("resid_pre.0.u32", "unit 32 is out of range"),
        ("resid_pre.0@9", "position 9 is out of range"),
        ("resid_pre.0@-10", "position -10 is out of range"),
        ("pos_embed", "no such part"),
        ("router.0", "no such part"),
        ("encoder/z.0", "has no encoder"),
        ("path:model.nowhere", "no module"),
    ],
)
def test_a_site_that_is_not_there_is_refused_for_reads_and_edits(site: str, says: str) -> None:
    model = families.model("llama")
    before = model.run(families.ids()).logits
    with pytest.raises(SiteError, match=says):
        model.run(families.ids(), read=[site])
    with pytest.raises(SiteError, match=says):
        model.run(families.ids(), edit=[Zero(site)])
    assert torch.equal(model.run(families.ids()).logits, before)


def test_parts_that_a_wiring_lacks() -> None:
    with pytest.raises(SiteError, match="parallel"):
        families.model("gpt_neox").run(families.ids(), read=["resid_mid.0"])
    with pytest.raises(SiteError, match="no such part"):
        families.model("mixtral").run(families.ids(), read=["mlp_post.0"])


@pytest.mark.parametrize(
    "edit",
    [
        Set("z.0", value=torch.zeros(3, 9, 4, 8)),
        Set("resid_pre.0@-1", value=torch.zeros(2, 9, 32)),
        Add("resid_pre.0", vector=torch.zeros(31)),
        Function("z.0", function=lambda value: value[:, :2]),
        Zero("z.0", rows=(2,)),
        Set("z.0.h1", rows=(0,), value=torch.zeros(2, 9, 1, 8)),
    ],
    ids=repr,
)
def test_an_edit_that_does_not_fit_is_refused(edit: Edit) -> None:
    model = families.model("llama")
    with pytest.raises(EditError):
        model.run(families.ids(), edit=[edit])
    model.run(families.ids())


def test_an_edit_that_is_never_reached_is_an_error_and_not_silence() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.used(x)
            return found

    model = load(Lazy())
    with pytest.raises(EditError, match="never reached"):
        model.run(torch.ones(1, 3), edit=[Zero("path:unused")])
    with pytest.raises(SiteError, match="never reached"):
        model.run(torch.ones(1, 3), read=["path:unused"])


def test_every_refusal_is_a_value_error() -> None:
    assert issubclass(MicrotomeError, ValueError)
    with pytest.raises(ValueError, match="out of range"):
        families.model("gpt2").run(families.ids(), read=[Site("z", 7)])


def test_noise_is_fixed_by_seed_and_row() -> None:
    model = families.model("gpt2")
    ids = families.ids()
    both = model.run(ids, edit=[Noise("embed", scale=0.5, seed=3)]).logits
    assert torch.equal(both, model.run(ids, edit=[Noise("embed", scale=0.5, seed=3)]).logits)
    assert not torch.equal(both, model.run(ids, edit=[Noise("embed", scale=0.5, seed=4)]).logits)
    second = Noise("embed", scale=0.5, seed=3).moved([1], [0])
    alone = model.run(ids[1:], edit=[second]).logits
    assert torch.allclose(alone, both[1:], atol=1e-5)
