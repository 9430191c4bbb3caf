"""Every lane of a sweep equals the plain pass of its variant, whatever is edited, on every family."""

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import families
from torch import Tensor, nn

from microtome.core.edits import Add, Edit, Noise, Scale, Set, Zero
from microtome.core.errors import EditError, InputError, NotFiniteError
from microtome.core.logits import LogitSelection
from microtome.core.site import Site
from microtome.models.load import load
from microtome.models.model import Model
from microtome.models.sweep import Sweep, Variant, sweep

CLOSE = 1e-5  # of the largest metric: float32, and another batch shape


@dataclass(frozen=True)
class Difference:
    """The logit of one token minus that of another, of each row, averaged over some positions."""

    tokens: tuple[tuple[int, ...], ...]
    positions: tuple[int, ...] | None = (-1,)
    name: str = "difference"

    @property
    def needs(self) -> LogitSelection:
        return LogitSelection(self.positions, self.tokens)

    def __call__(self, logits: Tensor) -> Tensor:
        return (logits[:, :, 0] - logits[:, :, 1]).float().mean(dim=1)

    def for_rows(self, rows: list[int]) -> "Difference":
        return replace(self, tokens=tuple(self.tokens[row] for row in rows))


METRIC = Difference(((3, 4), (5, 6), (7, 8)))


def editable(model: Model) -> list[Site]:
    """Whole sites whose edits keep numbers tame: no scores, and no divisors that could come near zero."""
    return [s for s in model.sites() if s.part not in ("scores", "logits") and "scale" not in s.part]


def random_edit(model: Model, rng: random.Random, other: dict[Site, Tensor], last: int) -> Edit:
    """An edit of a random kind at a random site."""
    site = rng.choice(editable(model))
    rows = rng.choice([None, (1,), (0, 2)])
    kind = rng.choice(["set", "scale", "zero", "add"])
    if kind == "set":
        value = other[site]
        return Set(site, rows=rows, value=value if rows is None else value[list(rows)])
    if site.part != "pattern":
        site = site.at(rng.choice([0, 2, last, -1, -2]))
    if "head" in site.axes:
        site = site.head(rng.randrange(4))
    if kind == "add":
        return Add(site, rows, vector=torch.tensor(rng.uniform(-1, 1)))
    return Zero(site, rows) if kind == "zero" else Scale(site, rows, factor=rng.uniform(0.5, 2))


def agree(fast: Sweep, slow: Sweep, close: float = CLOSE) -> None:
    """Metric, base and reads are the same."""
    assert torch.equal(fast.metric.isnan(), slow.metric.isnan())
    allowed = close * max(1.0, float(slow.metric.nan_to_num().abs().max()))
    assert float((fast.metric - slow.metric).nan_to_num().abs().max()) <= allowed
    assert float((fast.base - slow.base).abs().max()) <= allowed
    for site, value in slow.values.items():
        assert float((fast.values[site] - value).abs().max()) <= close * max(1.0, float(value.abs().max())), (
            site
        )


def masks(padding: str) -> Tensor | None:
    if padding == "none":
        return None
    mask = torch.ones(3, families.COLUMNS, dtype=torch.long)
    mask[1, slice(0, 3) if padding == "left" else slice(-3, None)] = 0
    mask[2, slice(0, 1) if padding == "left" else slice(-1, None)] = 0
    return mask


def both(
    model: Model, tokens: Any, variants: list[Variant], metric: Difference = METRIC, **options: Any
) -> tuple[Sweep, Sweep]:
    fast = sweep(model, tokens, variants, metric, **options)
    options.pop("budget_bytes", None)
    return fast, sweep(model, tokens, variants, metric, incremental=False, **options)


def random_variants(
    model: Model, tokens: Any, seed: int, mask: Tensor | None, count: int, last: int
) -> list[Variant]:
    rng = random.Random(seed)
    other = model.run(_like(tokens), read=editable(model), mask=mask).values
    return [
        Variant(
            tuple(random_edit(model, rng, dict(other), last) for _ in range(rng.randint(1, 3))),
            rng.choice([None, (0,), (2, 1)]),
        )
        for _ in range(count)
    ]


def _like(tokens: Any) -> Any:
    """Other ids of the same shape."""
    if isinstance(tokens, dict):
        return {name: _like(value) for name, value in tokens.items()}
    return families.ids(*tokens.shape, seed=9)


@pytest.mark.parametrize("name", families.ALL)
def test_every_family(name: str) -> None:
    model = families.model(name)
    tokens = families.inputs(name, rows=3)
    last = 1 if isinstance(tokens, dict) else 4
    variants = random_variants(model, tokens, 0, None, 8, last)
    reads = ["resid_post.1@-1", "z.2@-1", "pattern.1.h1", "k.2@1"]
    fast, slow = both(model, tokens, variants, read=reads)
    agree(fast, slow)
    assert float((slow.metric - slow.base).nan_to_num().abs().max()) > 1e-4


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", [n for n in families.ALL if not n.startswith("t5")])
def test_padding(name: str, padding: str) -> None:
    model = families.model(name)
    mask = masks(padding)
    tokens = families.inputs(name, rows=3)
    variants = random_variants(model, tokens, 1, mask, 6, 4)
    variants = [Variant(tuple(e for e in v.edits if e.site.part != "pattern"), v.rows) for v in variants]
    agree(
        *both(model, tokens, [v for v in variants if v.edits], mask=mask, read=["resid_post.1@-1", "q.2@0"])
    )


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), name=st.sampled_from(["gpt2", "llama", "gpt_neox", "gemma2"]))
def test_any_edits(seed: int, name: str) -> None:
    model, tokens = families.model(name), families.ids(rows=3)
    variants = random_variants(model, tokens, seed, None, 6, 4)
    metric = replace(METRIC, positions=random.Random(seed).choice([(-1,), None, (0, 3, -1)]))
    agree(*both(model, tokens, variants, metric))


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gptj", "bloom"])
def test_edits_of_the_base_are_in_every_variant(name: str) -> None:
    model, tokens = families.model(name), families.ids(rows=3)
    variants = random_variants(model, tokens, 2, None, 6, 4)
    for edits in (
        [Noise("embed", scale=0.5, rows=(0, 2)), Scale("z.1", factor=0.7)],
        [Add("resid_pre.2@3", vector=torch.ones(32)), Scale("k.1@2", factor=3.0)],
        [Add("resid_post.0@1,2", vector=torch.ones(32)), Zero("mlp_out.1@4", rows=(1,))],
    ):
        agree(*both(model, tokens, variants, edit=edits, read=["resid_post.1@-1"]))


def test_a_small_budget_gives_the_same() -> None:
    model, tokens = families.model("llama"), families.ids(rows=3)
    variants = random_variants(model, tokens, 3, None, 8, 4)
    few = sweep(model, tokens, variants, METRIC, budget_bytes=1 << 15)
    agree(few, sweep(model, tokens, variants, METRIC))
    assert few.cost.passes > sweep(model, tokens, variants, METRIC).cost.passes


def test_it_computes_less_and_says_how_much() -> None:
    model, tokens = families.model("gpt2"), families.ids(rows=1)
    metric = Difference(((3, 4),))
    variants = [
        Variant((Zero(Site("resid_pre", layer, positions=(p,))),)) for layer in range(3) for p in range(9)
    ]
    fast, slow = both(model, tokens, variants, metric)
    agree(fast, slow)
    assert fast.cost.passes < slow.cost.passes / 2
    assert not fast.cost.notes


def test_bfloat16() -> None:
    model = load(families.make("llama").to(torch.bfloat16))
    tokens = families.ids(rows=3)
    variants = random_variants(model, tokens, 4, None, 12, 4)
    agree(*both(model, tokens, variants), close=0.1)


@pytest.mark.parametrize("name", ["t5"])
def test_what_cannot_be_entered_half_way_is_run_plainly_and_said(name: str) -> None:
    model, tokens = families.model(name), families.inputs(name, rows=3)
    fast, slow = both(model, tokens, [Variant((Zero("z.1.h0"),))])
    agree(fast, slow)
    assert any("plain passes" in note for note in fast.cost.notes)


def test_blocks_that_cannot_be_called_alone_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that hands its blocks something by the side: the probe differs, and the lanes are plain passes."""
    module = families.make("gpt2")
    block = module.transformer.h[1]
    original = block.forward

    def forward(stream: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return original(stream, *args, **kwargs) * (1.0 + 0.1 * (stream.shape[1] == families.COLUMNS))

    monkeypatch.setattr(block, "forward", forward)
    model = load(module, check=False)
    fast, slow = both(model, families.ids(rows=3), [Variant((Scale("resid_pre.1@4", factor=2.0),))])
    agree(fast, slow)
    assert any("plain passes" in note for note in fast.cost.notes)


def test_a_module_without_a_map() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    model = load(module, family=None)
    found = sweep(model, torch.randn(3, 4), [Variant((Zero("path:0"),))], read=["path:2"])
    assert torch.allclose(found.values[Site.parse("path:2")][0], module[2](torch.zeros(3, 5)))


def test_bad_input() -> None:
    model, tokens = families.model("gpt2"), families.ids(rows=3)
    before = model.module(tokens).logits
    with pytest.raises(InputError, match="something to report"):
        sweep(model, tokens, [Variant((Zero("z.0"),))])
    with pytest.raises(InputError, match="rows"):
        sweep(model, tokens, [Variant((Zero("z.0"),), rows=(5,))], METRIC)
    with pytest.raises(EditError, match="rows"):
        sweep(model, tokens, [Variant((Zero("z.0", rows=(7,)),))], METRIC)
    with pytest.raises(InputError, match="not gradients"):
        sweep(model, tokens, [Variant((Zero("z.0"),))], METRIC, read=["grad:z.0"])
    with pytest.raises(NotFiniteError):
        sweep(model, tokens, [Variant((Scale("resid_pre.1", factor=float("nan")),))], METRIC)
    with pytest.raises(EditError, match="does not fit"):
        sweep(model, tokens, [Variant((Set("z.0", value=torch.zeros(3, 9, 4, 7)),))], METRIC)
    assert torch.equal(model.module(tokens).logits, before)


def test_no_variants() -> None:
    found = sweep(families.model("gpt2"), families.ids(rows=3), [], METRIC)
    assert found.metric.shape == (0, 3)
    assert found.base.isfinite().all()
