"""A splice that changes nothing changes nothing; one that changes units does what the same edit by hand does."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.bases.random_bases import RandomUnits, random_units
from tests.models import families
from torch import Tensor, nn

import microtome
from microtome.bases import unit_edits
from microtome.bases.linear import LinearBasis
from microtome.bases.neurons import Neurons
from microtome.bases.splice import splice
from microtome.core import edits
from microtome.core.edits import Scale, Set
from microtome.core.errors import EditError, InputError, NotFiniteError
from microtome.core.logits import LogitSelection
from microtome.core.site import Site
from microtome.dictionaries.activations import ReLU, TopK
from microtome.dictionaries.dictionary import Dictionary
from microtome.models.model import Model
from microtome.models.sweep import Variant, sweep

FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2")
IN_PLACE = ("resid_pre.1", "z.1", "mlp_post.1", "resid_post.2", "v.1", "mlp_in.0")
ROUNDING = 2e-5  # of the largest logit: a sum taken apart and put together again in float32


@dataclass(frozen=True)
class Token:
    """The logit of a token at the last position."""

    token: int = 7
    name: str = "token"

    @property
    def needs(self) -> LogitSelection:
        return LogitSelection((-1,), (self.token,))

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, 0, 0].float()

    def for_rows(self, rows: list[int]) -> "Token":
        return self


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits(model: Model, edit: list[edits.Edit], tokens: Tensor | None = None) -> Tensor:
    found = model.run(families.ids() if tokens is None else tokens, edit=edit).logits
    assert found is not None
    return found


def near(one: Tensor, two: Tensor) -> bool:
    return float((one - two).abs().max()) <= ROUNDING * float(two.abs().max())


def bases_of(model: Model) -> list[RandomUnits]:
    return [
        *(random_units(model, [site], [site]) for site in IN_PLACE),
        random_units(model, ["mlp_in.1"], ["mlp_out.1"]),
        random_units(model, ["resid_pre.0", "mlp_in.1"], ["mlp_out.1", "mlp_out.2"]),
    ]


def test_a_function_that_writes_into_the_codes_does_what_one_that_returns_others_does() -> None:
    def inside(codes: Tensor) -> Tensor:
        codes[..., 0] = 3.0
        return codes

    def anew(codes: Tensor) -> Tensor:
        return inside(codes.clone())

    model = families.model("gpt2")
    width = model.run(families.ids(), read=["mlp_post.1"])["mlp_post.1"].shape[-1]
    for basis in (Neurons("mlp_post.1", width), random_units(model, ["mlp_post.1"], ["mlp_post.1"])):
        written = logits(model, splice(basis, change=inside))
        assert torch.equal(written, logits(model, splice(basis, change=anew)))
        assert not near(written, logits(model, []))


@pytest.mark.parametrize("name", FAMILIES)
def test_untouched_it_leaves_the_logits_and_dropping_the_error_does_not(name: str) -> None:
    model = families.model(name)
    plain = logits(model, [])
    for basis in bases_of(model):
        assert torch.equal(logits(model, splice(basis)), plain)
        assert torch.equal(logits(model, splice(basis, change=[unit_edits.scale(None, 1.0)])), plain)
        assert near(logits(model, splice(basis, "freeze")), plain)
        assert not near(logits(model, splice(basis, "drop")), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_all_units_and_the_error_of_another_run_are_that_run(name: str) -> None:
    """Patching them is patching the sites."""
    model, other = families.model(name), families.ids(seed=3)
    for basis in bases_of(model):
        run = model.run(other, read=[*basis.reads, *basis.writes])
        codes = basis.encode(basis.rows_of(run.values))
        made = dict(zip(basis.writes, basis.decode(codes).split(list(basis.write_widths), -1), strict=True))
        rest = [run[site] - made[site].reshape(run[site].shape) for site in basis.writes]
        spliced = logits(model, splice(basis, rest, unit_edits.patch(None, codes)))
        assert near(spliced, logits(model, [Set(site, value=run[site]) for site in basis.writes]))


@pytest.mark.parametrize("name", FAMILIES)
def test_dropping_is_setting_what_the_codes_of_this_very_pass_make(name: str) -> None:
    """An edit before the site that is read shows in the codes."""
    model = families.model(name)
    before = Scale("embed", factor=0.5)
    for basis in bases_of(model):
        run = model.run(families.ids(), read=basis.reads, edit=[before])
        made = basis.decode(basis.encode(basis.rows_of(run.values))).split(list(basis.write_widths), -1)
        shapes = model.run(families.ids(), read=basis.writes)
        by_hand = [
            Set(site, value=part.reshape(shapes[site].shape))
            for site, part in zip(basis.writes, made, strict=True)
        ]
        assert near(logits(model, [before, *splice(basis, "drop")]), logits(model, [before, *by_hand]))


@pytest.mark.parametrize("name", ["bert", "t5", "mixtral", "opt_post_norm"])
def test_other_wirings_too(name: str) -> None:
    """Encoders, both stacks of an encoder–decoder, mixtures of experts, norms behind the sum."""
    model, tokens = families.model(name), families.inputs(name)
    plain = model.run(tokens).logits
    assert plain is not None
    stack = "encoder/" if name == "t5" else ""
    for site in (f"{stack}resid_post.1", "mlp_out.0"):
        held = model.run(tokens, read=[site])[site].flatten(2).shape[-1]
        basis = RandomUnits({site: held}, {site: held})
        kept, frozen, dropped = (
            model.run(tokens, edit=splice(basis, how)).logits for how in ("keep", "freeze", "drop")
        )
        assert kept is not None
        assert frozen is not None
        assert dropped is not None
        assert torch.equal(kept, plain)
        assert near(frozen, plain)
        assert not near(dropped, plain)
    if name == "t5":
        across = RandomUnits({"encoder/mlp_out.0": 32}, {"mlp_out.0": 32})
        with pytest.raises(InputError, match="positions are not the same"):
            splice(across)


def test_a_full_orthonormal_basis_says_everything() -> None:
    model = families.model("llama")
    rotation = torch.linalg.qr(torch.randn(32, 32, generator=draw()))[0]
    for site in ("resid_post.1", "z.1"):
        basis = LinearBasis(site, rotation)
        values = model.run(families.ids(), read=[site]).values
        rows = basis.rows_of(values)
        torch.testing.assert_close(basis.decode(basis.encode(rows)), rows, atol=1e-5, rtol=1e-5)
        assert near(logits(model, splice(basis, "drop")), logits(model, []))


@pytest.mark.parametrize(
    ("change", "by_hand"),
    [
        (unit_edits.zero((2, 5)), lambda site: edits.Zero(site.unit(2, 5))),
        (unit_edits.clamp(4, 3.0), lambda site: Set(site.unit(4), value=torch.tensor(3.0))),
        (unit_edits.scale((1, 7), -2.0), lambda site: Scale(site.unit(1, 7), factor=-2.0)),
        (unit_edits.add(3, 1.5), lambda site: edits.Add(site.unit(3), vector=torch.tensor(1.5))),
    ],
)
def test_in_the_basis_of_neurons_unit_edits_are_edits_of_neurons(change: object, by_hand: object) -> None:
    model = families.model("gpt2")
    basis = LinearBasis("mlp_post.1", torch.eye(48))
    expected = logits(model, [by_hand(basis.reads[0])])  # type: ignore[operator]
    assert near(logits(model, splice(basis, change=[change])), expected)  # type: ignore[list-item]


def test_units_are_named_by_whole_numbers_of_any_kind_and_none_may_be_named() -> None:
    model = families.model("gpt2")
    basis = random_units(model, ["mlp_in.1"], ["mlp_out.1"])
    for units in (np.int64(4), torch.tensor(4), [np.int64(4)], torch.tensor([4]), range(4, 5)):
        assert unit_edits.zero(units) == unit_edits.zero(4)
        assert "units [4]" in repr(unit_edits.zero(units))
    for change in (
        unit_edits.zero(()),
        unit_edits.clamp([], 3.0),
        unit_edits.patch((), torch.rand(2, 9, 11)),
    ):
        assert torch.equal(logits(model, splice(basis, "drop", change)), logits(model, splice(basis, "drop")))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_basis_goes_into_models_of_other_precision(dtype: torch.dtype) -> None:
    model = microtome.load(families.make("gpt2").to(dtype))
    plain = logits(model, [])
    rotation = LinearBasis("mlp_in.1", torch.linalg.qr(torch.randn(32, 32, generator=draw(1)))[0])
    for basis in (rotation, random_units(model, ["mlp_in.1"], ["mlp_out.1"]), Neurons("mlp_in.1", 32)):
        assert torch.equal(logits(model, splice(basis)), plain)
        dropped = logits(model, splice(basis, "drop"))
        assert dropped.dtype == dtype
        # What a basis in single precision says of a value is right to single precision, and then to the model's.
        exact = basis.n_units == 32
        bound = max(2 * torch.finfo(dtype).eps, 2e-5) * float(plain.abs().max())
        assert (float((dropped - plain).abs().max()) <= bound) == exact


def test_patch_mean_and_resample_take_their_values_from_codes() -> None:
    model = families.model("gpt2")
    basis = random_units(model, ["mlp_in.1"], ["mlp_out.1"])
    tokens = families.ids(rows=3)
    codes = basis.encode(model.run(tokens, read=basis.reads)[basis.reads[0]])
    here = torch.rand(3, 9, 11)
    assert torch.equal(unit_edits.patch((1, 4), codes)(here)[..., [1, 4]], codes[..., [1, 4]])
    kept = [unit for unit in range(11) if unit not in (1, 4)]
    assert torch.equal(unit_edits.patch((1, 4), codes)(here)[..., kept], here[..., kept])
    mean = unit_edits.mean(2, codes)(here)[..., 2]
    torch.testing.assert_close(mean, codes[..., 2].mean().expand_as(mean))
    drawn = unit_edits.resample(None, codes)(here)
    assert all(
        any(torch.equal(drawn[row], codes[other]) for other in range(3) if other != row) for row in range(3)
    )


@settings(max_examples=12)
@given(
    family=st.sampled_from(FAMILIES),
    site=st.sampled_from(IN_PLACE),
    error=st.sampled_from(["keep", "freeze", "drop"]),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["clamp", "scale", "add"]),
            st.lists(st.integers(0, 10), min_size=1, max_size=4, unique=True),
            st.floats(-4, 4, width=16),
        ),
        max_size=4,
    ),
)
def test_changes_are_made_in_their_order_beside_other_edits(
    family: str, site: str, error: str, steps: list[tuple[str, list[int], float]]
) -> None:
    model = families.model(family)
    basis = random_units(model, [site], [site])
    before, after = Scale(site, factor=0.5), Scale(site, factor=-2.0)
    value = model.run(families.ids(), [site], [before])[site]
    codes = basis.encode(value.flatten(2))
    changed = codes.clone()
    for kind, units, amount in steps:
        old = changed[..., units]
        changed[..., units] = {"clamp": 0 * old + amount, "scale": old * amount, "add": old + amount}[kind]
    made = basis.decode(changed)
    if error != "drop":
        made = made + value.flatten(2) - basis.decode(codes)
    changes = [getattr(unit_edits, kind)(units, amount) for kind, units, amount in steps]
    found = model.run(families.ids(), [site], [before, *splice(basis, error, changes), after])[site]
    torch.testing.assert_close(found, -2 * made.view_as(found), atol=1e-4, rtol=1e-4)


@settings(max_examples=15)
@given(rows=st.sets(st.integers(0, 2), min_size=1), positions=st.sets(st.integers(-4, 3), min_size=1))
def test_rows_and_positions_are_those_named(rows: set[int], positions: set[int]) -> None:
    model = families.model("llama")
    tokens = families.ids(rows=3)
    basis = random_units(model, ["mlp_in.0"], ["mlp_out.0"])
    named = splice(basis, change=unit_edits.zero((1, 2, 3)), rows=sorted(rows), positions=sorted(positions))
    plain, changed, everywhere = (
        model.run(tokens, read=["mlp_out.0"], edit=edit)["mlp_out.0"]
        for edit in ([], named, splice(basis, change=unit_edits.zero((1, 2, 3))))
    )
    inside = torch.zeros(3, 9, dtype=torch.bool)
    inside[torch.tensor(sorted(rows))[:, None], torch.tensor(sorted(positions))] = True
    assert torch.equal(changed[~inside], plain[~inside])
    torch.testing.assert_close(changed[inside], everywhere[inside], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_sweeps_equal_plain_passes(name: str) -> None:
    """Also where a lane enters between what a base splice reads and what it writes."""
    model, tokens = families.model(name), families.ids(rows=3)
    wide = random_units(model, ["mlp_in.0"], ["mlp_out.0", "mlp_out.2"])
    codes = torch.rand(3, 9, 11, generator=draw(1))
    variants = [
        Variant(tuple(splice(wide, change=unit_edits.patch((1, 5), codes)))),
        Variant(tuple(splice(wide, change=unit_edits.zero(2), positions=[-1])), rows=(2, 0)),
        Variant((Scale("resid_post.0", factor=0.5),)),
        Variant((Scale("attn_out.2", (1,), factor=0.5),), rows=(1, 2)),
        Variant(tuple(splice(random_units(model, ["resid_post.0"], ["mlp_out.1"]), "drop"))),
    ]
    for base in ([], splice(wide, change=unit_edits.zero((0, 3)))):
        fast, slow = (
            sweep(model, tokens, variants, Token(), edit=base, incremental=incremental)
            for incremental in (True, False)
        )
        assert not fast.cost.notes
        torch.testing.assert_close(fast.metric, slow.metric, equal_nan=True, atol=2e-5, rtol=2e-5)
        assert float((slow.metric - slow.base).nan_to_num().abs().max()) > 1e-3


def test_generation_with_a_splice_is_running_the_growing_text() -> None:
    model = families.model("llama")
    basis = random_units(model, ["mlp_in.1"], ["mlp_out.1"])
    edit = splice(basis, "drop", unit_edits.clamp(3, 4.0))
    grown = tokens = families.ids()
    for _ in range(4):
        grown = torch.cat([grown, logits(model, edit, grown)[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(model.generate(tokens, 4, edit), grown)
    assert not torch.equal(model.generate(tokens, 4), grown)


def test_gradients_reach_a_basis_in_training_through_its_codes() -> None:
    model = families.model("gpt2")
    basis = random_units(model, ["mlp_in.1"], ["mlp_out.1"])
    basis.encoder.requires_grad_()
    found = model.run(families.ids(), edit=splice(basis, "drop"), metric=Token()).metric
    assert found is not None
    (slope,) = torch.autograd.grad(found.sum(), basis.encoder)
    step = 1e-3 * torch.randn(slope.shape, generator=draw())
    ends = []
    for sign in (-1, 1):
        moved = random_units(model, ["mlp_in.1"], ["mlp_out.1"])
        moved.encoder = basis.encoder.detach() + sign * step
        run = model.run(families.ids(), edit=splice(moved, "drop"), metric=Token())
        assert run.metric is not None
        ends.append(float(run.metric.sum()))
    assert (slope * step).sum() == pytest.approx((ends[1] - ends[0]) / 2, rel=2e-2, abs=1e-5)


def test_keeping_the_error_keeps_the_models_gradients_and_freezing_it_leaves_those_of_codes() -> None:
    model = families.model("gpt2")
    basis = random_units(model, ["resid_post.0"], ["resid_post.0"])
    slope = [
        model.run(families.ids(), read=["grad:resid_mid.0"], edit=edit, metric=Token())["grad:resid_mid.0"]
        for edit in ([], splice(basis, "keep"), splice(basis, "freeze"))
    ]
    torch.testing.assert_close(slope[1], slope[0], atol=1e-6, rtol=1e-4)
    assert float((slope[2] - slope[0]).abs().max()) > 0.05 * float(slope[0].abs().max())
    whole = LinearBasis(
        "resid_post.0", torch.eye(32)
    )  # a basis that says everything has the model's gradients
    run = model.run(families.ids(), read=["grad:resid_mid.0"], edit=splice(whole, "freeze"), metric=Token())
    torch.testing.assert_close(run["grad:resid_mid.0"], slope[0], atol=1e-5, rtol=1e-4)


def cross_layer(model: Model) -> Dictionary:
    """Five units for each block: reading its MLP's input, writing what its own and all later MLPs write."""
    layers = model.n_layers
    home = torch.arange(layers).repeat_interleave(5)
    block = torch.arange(layers)
    reads_of, writes_of = home[:, None] == block, home[:, None] <= block
    seeded = draw()
    wide = [torch.randn(5 * layers, 32 * layers, generator=seeded) / 6 for _ in range(2)]
    return Dictionary(
        "cross_layer",
        tuple(Site("mlp_in", layer) for layer in range(layers)),
        tuple(Site("mlp_out", layer) for layer in range(layers)),
        (32,) * layers,
        (32,) * layers,
        ReLU(),
        wide[0] * reads_of.repeat_interleave(32, 1),
        torch.zeros(5 * layers),
        wide[1] * writes_of.repeat_interleave(32, 1),
        torch.zeros(32 * layers),
        torch.zeros(32 * layers),
        reads_of=reads_of,
        writes_of=writes_of,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cross_layer_transcoder_goes_in_as_one(name: str) -> None:
    """Layer by layer, since what is written early needs only what is read early."""
    model = families.model(name)
    basis = cross_layer(model)
    plain = logits(model, [])
    assert torch.equal(logits(model, splice(basis)), plain)
    assert near(logits(model, splice(basis, "freeze")), plain)
    tokens = families.ids()
    by_hand: list[edits.Edit] = []
    for layer, site in enumerate(basis.writes):
        seen = model.run(tokens, read=basis.reads[: layer + 1], edit=by_hand).values
        missing = [torch.zeros(2, 9, 32)] * (model.n_layers - 1 - layer)
        codes = basis.encode(torch.cat([*(seen[read] for read in basis.reads[: layer + 1]), *missing], -1))
        by_hand.append(Set(site, value=basis.decode(codes).split([32] * model.n_layers, -1)[layer]))
    assert near(logits(model, splice(basis, "drop")), logits(model, by_hand))
    compete = replace(basis, activation=TopK(4))
    with pytest.raises(InputError, match="in one pass"):
        splice(compete)


def test_what_skips_the_units_is_part_of_what_is_written() -> None:
    model = families.model("gpt2")
    skip = torch.randn(32, 32, generator=draw()) / 6
    zero = torch.zeros(3, 32)
    sites = (Site("mlp_in", 1),), (Site("mlp_out", 1),)
    basis = Dictionary(
        "skip",
        *sites,
        (32,),
        (32,),
        ReLU(),
        zero,
        torch.zeros(3),
        zero,
        torch.zeros(32),
        torch.zeros(32),
        skip=skip,
    )
    seen = model.run(families.ids(), read=["mlp_in.1"])["mlp_in.1"]
    assert near(logits(model, splice(basis, "drop")), logits(model, [Set("mlp_out.1", value=seen @ skip.mT)]))


class Net(nn.Module):
    """Two layers, the second seen before its output only by its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(x)))


def test_paths_of_any_module() -> None:
    torch.manual_seed(0)
    model = microtome.load(Net())
    x = torch.randn(4, 6)
    plain = logits(model, [], x)
    inside = RandomUnits({"path:first": 5}, {"path:first": 5})
    across = RandomUnits({"path:first": 5}, {"path:second": 3})
    for basis in (inside, across):
        assert torch.equal(logits(model, splice(basis), x), plain)
    before = (
        x @ model.module.first.weight.mT + model.module.first.bias
    )  # of the values before the ReLU in place
    torch.testing.assert_close(logits(model, splice(across, "drop"), x), across.decode(across.encode(before)))
    with pytest.raises(EditError, match="where this pass had not been"):
        logits(model, splice(RandomUnits({"path:second": 3}, {"path:first": 5})), x)


def test_what_cannot_be_done_says_so() -> None:
    model = families.model("gpt2")
    backwards = random_units(model, ["resid_post.2"], ["resid_post.0"])
    with pytest.raises(
        InputError, match=r"in one pass: it writes resid_post\.0 before it reads resid_post\.2"
    ):
        splice(backwards)
    basis = random_units(model, ["mlp_in.1"], ["mlp_out.1"])
    with pytest.raises(InputError, match="units 0 … 10"):
        splice(basis, change=unit_edits.zero(11))
    with pytest.raises(InputError, match="name each once"):
        splice(basis, change=unit_edits.zero((1, 1)))
    with pytest.raises(InputError, match="error='none'"):
        splice(basis, "none")
    for shape in ((7, 9, 32), (9, 32), (32,)):  # whose first axis would be taken for the row
        with pytest.raises(EditError, match=r"the error has shape .*, the values \[2, 9, 32\]"):
            logits(model, splice(basis, torch.zeros(shape)))
    with pytest.raises(EditError, match="does not fit codes of shape"):
        logits(model, splice(basis, change=unit_edits.patch(None, torch.zeros(9, 11))))
    for strange in (splice(basis)[0], [splice(basis)], [unit_edits.zero(1)]):
        with pytest.raises(EditError, match="is no list of edits"):
            edits.check(strange)
    with pytest.raises(InputError, match="writes 1 sites; got 2"):
        splice(basis, [torch.zeros(1), torch.zeros(1)])
    with pytest.raises(EditError, match="does not fit codes of shape"):
        logits(model, splice(basis, change=unit_edits.patch(None, torch.zeros(7, 9, 11))))
    with pytest.raises(EditError, match="keep the shape"):
        logits(model, splice(basis, change=lambda codes: codes[..., :3]))
    with pytest.raises(InputError, match="made for another site or model"):
        logits(model, splice(RandomUnits({"mlp_in.1": 31}, {"mlp_out.1": 32})))
    with pytest.raises(EditError, match="of the same pass"):
        splice(basis)[0].apply(torch.zeros(1, 1, 32))
    with pytest.raises(InputError, match="whole sites"):
        splice(RandomUnits({"pattern.0": 9}, {"pattern.0": 9}))
    with pytest.raises(InputError, match="at least two rows"):
        unit_edits.resample(None, torch.zeros(1, 2, 3))
    broken = random_units(model, ["mlp_in.1"], ["mlp_out.1"])
    broken.bias = torch.full_like(broken.bias, float("nan"))
    with pytest.raises(NotFiniteError):
        logits(model, splice(broken, "drop"))


def test_it_is_listed_compared_and_says_that_it_cannot_be_saved(tmp_path: object) -> None:
    basis = random_units(families.model("gpt2"), ["mlp_in.1"], ["mlp_out.1"])
    made = [splice(basis, change=[unit_edits.zero(3), unit_edits.scale((1, 2), 2.0)])[0] for _ in range(2)]
    assert made[0] == made[1]
    assert made[0] != splice(basis, change=[unit_edits.zero(4)])[0]
    assert made[0] != splice(basis, "drop", change=made[0].changes)[0]  # type: ignore[attr-defined]
    assert repr(made[0]) == (
        "Splice(mlp_out.1, random_units, error=keep, zero(units [3], 0), scale(units [1, 2], 2))"
    )
    with pytest.raises(EditError, match="it holds a basis"):
        edits.save(made, f"{tmp_path}/edits.safetensors")
