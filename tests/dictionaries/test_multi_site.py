"""Transcoders, crosscoders, cross-layer and pooled dictionaries: trained by the one trainer, spliced in one pass."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from microtome.bases.splice import splice
from microtome.bases.streams import ArrayStream
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries.activations import JumpReLU, ReLU, TopK
from microtome.dictionaries.cross_layer_transcoder import CrossLayerTranscoder
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.layout import Layout
from microtome.dictionaries.multi_site import (
    Pooled,
    attention_output,
    cross_layer,
    crosscoder,
    placed,
    site_norms,
    transcoder,
)
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.trainer import Trained, train
from microtome.models.model import Model
from models import families

RECIPE = Recipe(width=48, l0=6, steps=50, rate=1e-2)


def stream(model: Model, layout: Layout, rows: int = 60) -> ArrayStream:
    """Values of a model with random weights on random tokens, at all sites of a layout."""
    sites = tuple(dict.fromkeys(layout.reads + layout.writes))
    run = model.run(families.ids(rows=rows), sites)
    parts = [run[site].flatten(2).flatten(0, 1) for site in sites]
    return ArrayStream(torch.cat(parts, -1), 128, sites=sites, widths=tuple(part.shape[1] for part in parts))


def learned(model: Model, layout: Layout, recipe: Recipe = RECIPE) -> Trained:
    (found,) = train(stream(model, layout), [recipe], layout=layout)
    return found


@pytest.mark.parametrize(
    "layout",
    [
        transcoder(1),
        transcoder(1, skip=True),
        attention_output(1),
        crosscoder("resid_post", [0, 1, 2]),
        cross_layer(3),
    ],
    ids=["transcoder", "skip", "attention", "crosscoder", "cross-layer"],
)
def test_each_kind_learns(layout: Layout) -> None:
    found = learned(families.model("llama"), layout)
    assert found.dictionary.reads == layout.reads
    assert found.dictionary.writes == layout.writes
    assert found.final.explained > found.log[0].explained + 0.2
    assert found.final.on <= 6 + 1e-6


def test_a_skip_carries_what_is_linear() -> None:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 8, generator=source)
    line = torch.randn(8, 5, generator=source)
    sites = (Site("mlp_in", 0), Site("mlp_out", 0))
    bent = torch.cat([x, x @ line + 0.3 * (x[:, :5] - 1).relu()], -1)
    recipe = Recipe(width=32, l0=2, steps=80, rate=1e-2)
    explained = {}
    for skip in (False, True):
        values = ArrayStream(bent, 256, sites=sites, widths=(8, 5))
        (found,) = train(values, [recipe], layout=transcoder(0, skip))
        explained[skip] = found.final.explained
    assert 1 - explained[True] < (1 - explained[False]) / 4


def test_crosscoder_units_say_what_is_shared() -> None:
    # Two sites; features 0–5 stand in both, 6–9 only in the first, 10–13 only in the second.
    source = torch.Generator().manual_seed(1)
    true = torch.nn.functional.normalize(torch.randn(14, 2, 24, generator=source), dim=-1)
    true[6:10, 1], true[10:, 0] = 0.0, 0.0
    chosen = torch.rand(6000, 14, generator=source) < 0.12
    strength = chosen * (1 + 0.5 * torch.rand(6000, 14, generator=source))
    rows = torch.einsum("rf,fsd->rsd", strength, true).flatten(1)
    layout = crosscoder("resid_post", [0, 1])
    values = ArrayStream(rows, 256, sites=layout.reads, widths=(24, 24))
    recipe = Recipe(width=20, l0=2, steps=350, rate=1e-2, initial="data")
    (found,) = train(values, [recipe], layout=layout)
    directions = torch.nn.functional.normalize(found.dictionary.directions(), dim=-1)
    cosine = torch.nn.functional.normalize(true.flatten(1), dim=-1) @ directions.T
    best, unit = cosine.max(-1)
    assert float(best.mean()) > 0.9
    share = site_norms(found.dictionary)[unit].square()
    share = share[:, 0] / share.sum(-1)
    known = best > 0.9
    assert bool(((share[:6] - 0.5).abs() < 0.25)[known[:6]].all())
    assert bool((share[6:10] > 0.8)[known[6:10]].all())
    assert bool((share[10:] < 0.2)[known[10:]].all())


def cross(activation: str = "jumprelu") -> Dictionary:
    source = torch.Generator().manual_seed(5)
    layout = cross_layer(3)
    reads, writes = layout.mask(layout.reads_of, 12), layout.mask(layout.writes_of, 12)
    assert reads is not None
    assert writes is not None
    d = 32
    kinds = {"jumprelu": JumpReLU(torch.rand(12, generator=source)), "relu": ReLU(), "topk": TopK(3)}
    return Dictionary(
        "cross",
        layout.reads,
        layout.writes,
        (d,) * 3,
        (d,) * 3,
        kinds[activation],
        torch.randn(12, 3 * d, generator=source) * reads.repeat_interleave(d, 1),
        torch.randn(12, generator=source),
        torch.randn(12, 3 * d, generator=source) * writes.repeat_interleave(d, 1),
        torch.randn(3 * d, generator=source),
        torch.randn(3 * d, generator=source),
        0.7,
        reads_of=reads,
        writes_of=writes,
    )


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_blocks_are_the_same_function_as_the_matrix_with_zeros(activation: str) -> None:
    whole = cross(activation)
    blocks = CrossLayerTranscoder.of(whole)
    x = torch.randn(20, 96, generator=torch.Generator().manual_seed(2))
    codes = whole.encode(x)
    torch.testing.assert_close(blocks.encode(x), codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(blocks.decode(codes), whole.decode(codes), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(blocks.directions(), whole.directions())
    sparse, expected = blocks.encode_sparsely(x), whole.encode_sparsely(x)
    assert torch.equal(sparse.row, expected.row)
    assert torch.equal(sparse.unit, expected.unit)
    units = torch.tensor([0, 5, 11])
    for mine, theirs in zip(blocks.drives(units), whole.drives(units), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    back = blocks.dictionary()
    torch.testing.assert_close(back.reconstruct(x), whole.reconstruct(x), atol=1e-5, rtol=1e-5)
    assert blocks.needed(Site("mlp_out", 1)) == whole.needed(Site("mlp_out", 1)) == whole.reads[:2]
    # Without the zeros there are fewer numbers; centre and scale have gone into the rest.
    assert blocks.n_parameters == whole.n_parameters - 96


def test_units_that_are_off_have_gradients_too() -> None:
    blocks = CrossLayerTranscoder.of(cross())
    codes = torch.zeros(1, 12, requires_grad=True)
    out = blocks.decode(codes)[0, 90]
    (slope,) = torch.autograd.grad(out, codes)
    torch.testing.assert_close(slope[0], blocks.directions()[:, 90])


def test_cross_layer_is_spliced_in_one_pass() -> None:
    model, tokens = families.model("llama"), families.ids(rows=2)
    blocks = CrossLayerTranscoder.of(cross())
    plain = model.run(tokens).logits
    kept = model.run(tokens, edit=splice(blocks)).logits
    assert plain is not None
    assert kept is not None
    assert torch.equal(plain, kept)
    run = model.run(tokens, [*blocks.reads, *blocks.writes], edit=splice(blocks, error="drop"))
    expected = blocks.decode(blocks.encode(blocks.rows_of(run.values)))
    for site, part in zip(blocks.writes, expected.split(32, -1), strict=True):
        torch.testing.assert_close(run[site], part, atol=1e-4, rtol=1e-4)


def test_what_is_not_cross_layer() -> None:
    whole = cross("relu")
    with pytest.raises(InputError, match="as the k largest"):
        CrossLayerTranscoder.of(cross("topk"))
    with pytest.raises(InputError, match="not cross-layer"):
        CrossLayerTranscoder.of(replace(whole, writes_of=whole.writes_of.flip(0)))  # type: ignore[union-attr]
    with pytest.raises(InputError, match="not cross-layer"):
        CrossLayerTranscoder.of(replace(whole, reads_of=None, writes_of=None))
    with pytest.raises(InputError, match="units 0 … 11"):
        CrossLayerTranscoder.of(whole).place(12)


def test_one_dictionary_for_all_layers() -> None:
    model, layout = families.model("gpt2"), crosscoder("resid_post", [0, 1, 2])
    plain, pooled = stream(model, layout), Pooled(stream(model, layout))
    rows: Tensor = next(iter(plain))
    assert torch.equal(next(iter(pooled)), rows.unflatten(-1, (3, -1)).flatten(0, 1))
    assert (pooled.step, pooled.batch_rows) == (1, 3 * plain.batch_rows)
    (found,) = train(pooled, [RECIPE])
    assert found.final.explained > 0.3
    moved = placed(found.dictionary, "resid_post.2")
    logits = model.run(families.ids(), edit=splice(moved, error="drop")).logits
    assert logits is not None
    with pytest.raises(InputError, match="one width"):
        Pooled(ArrayStream(torch.zeros(4, 5), 2, sites=layout.reads[:2], widths=(2, 3)))
    with pytest.raises(InputError, match="several sites"):
        placed(cross(), "resid_post.0")
