"""Is each unit chosen for what is left, are gradients those of the steps written out, and does it learn?"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from microtome.bases.streams import ArrayStream
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries import files
from microtome.dictionaries.activations import MatchingPursuit, TopK
from microtome.dictionaries.coders.pursuit import GradientPursuit
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.formats import sae_lens
from microtome.dictionaries.layout import Layout
from microtome.dictionaries.learner import Learner, Taken
from microtome.dictionaries.matching_pursuit import pursued
from microtome.dictionaries.preparation import prepare
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.trainer import train
from microtome.evaluation.dictionary_nulls import random_directions

SITE = Site.module("values")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dictionary(directions: Tensor, k: int) -> Dictionary:
    n, d = directions.shape
    bias = drawn(d, seed=9)
    return Dictionary(
        "pursuit", (SITE,), (SITE,), (d,), (d,), MatchingPursuit(k), directions, torch.zeros(n), directions, bias, bias
    )  # fmt: skip


def step_by_step(x: Tensor, directions: Tensor, k: int) -> tuple[Tensor, list[Tensor]]:
    """The definition, on what is left itself: codes, and what is left after each step."""
    left, codes, lengths = x, torch.zeros(len(x), len(directions)), [x.norm(dim=-1)]
    for _ in range(k):
        fits = (left @ directions.mT).detach().masked_fill(codes != 0, -torch.inf)
        unit = fits.argmax(-1)
        strength = (left * directions[unit]).sum(-1).relu()
        codes = codes + torch.zeros_like(codes).scatter(1, unit[:, None], strength[:, None])
        left = left - strength[:, None] * directions[unit]
        lengths.append(left.norm(dim=-1))
    return codes, lengths


def test_every_step_takes_what_fits_what_is_left_and_leaves_less() -> None:
    directions, x = functional.normalize(drawn(40, 12), dim=-1), drawn(50, 12, seed=1)
    codes, lengths = step_by_step(x, directions, 6)
    found = dictionary(directions, 6)
    torch.testing.assert_close(found.encode(x + found.centre), codes, atol=1e-5, rtol=1e-4)
    for count in range(1, 7):
        units, strengths = pursued(x @ directions.mT, directions, directions, count)
        assert bool((units.sort(-1).values.diff(dim=-1) > 0).all())  # each at most once
        left = x - (strengths[:, None] @ directions[units])[:, 0]
        torch.testing.assert_close(left.norm(dim=-1), lengths[count], atol=1e-5, rtol=1e-4)
        assert bool((left.norm(dim=-1) <= lengths[count - 1] + 1e-6).all())
    # The first unit is that of every pursuit.
    first = GradientPursuit(1, nonnegative=True).codes(x, directions)
    torch.testing.assert_close(
        dictionary(directions, 1).encode(x + found.centre), first, atol=1e-5, rtol=1e-4
    )


def test_with_orthogonal_directions_it_is_top_k() -> None:
    directions = torch.linalg.qr(drawn(16, 16)).Q
    found, x = dictionary(directions, 5), drawn(30, 16, seed=2)
    plain = replace(found, activation=TopK(5))
    torch.testing.assert_close(found.encode(x), plain.encode(x), atol=1e-5, rtol=1e-4)
    skewed = dictionary(functional.normalize(drawn(16, 16), dim=-1), 5)  # the control
    assert not torch.allclose(skewed.encode(x), replace(skewed, activation=TopK(5)).encode(x), atol=0.1)


def test_rows_stop_where_no_unit_is_driven() -> None:
    directions = torch.eye(4)
    codes = dictionary(directions, 3)
    x = torch.tensor([[1.0, -1, -1, -1], [-1, -2, -3, -4], [3, 2, 1, -1]]) + codes.centre
    assert torch.allclose(
        codes.encode(x), torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [3, 2, 1, 0]]), atol=1e-6
    )
    sparse = codes.encode_sparsely(x)
    assert torch.equal(sparse.dense(), codes.encode(x))
    assert len(sparse.value) == 4


def test_gradients_are_those_of_the_steps_written_out() -> None:
    directions, x = functional.normalize(drawn(24, 8), dim=-1), drawn(32, 8, seed=3)
    recipe = Recipe(width=24, activation="matching_pursuit", l0=4, steps=10)
    footing = prepare(x, (8,), "no", "no")
    learner = Learner(recipe, Layout((SITE,), (SITE,)), ((8,), (8,)), (footing, footing), (x, x))
    parameters = learner.parameters
    assert parameters["encoder"] is parameters["decoder"]
    with torch.no_grad():
        parameters["decoder"].copy_(directions)
        parameters["decoder_bias"].copy_(0.1 * drawn(8, seed=4))
    outcome = learner.variant.run(learner.scene(x, x))
    mine = torch.autograd.grad(outcome.loss, [parameters["decoder"], parameters["decoder_bias"]])
    plain = [parameters[name].detach().clone().requires_grad_() for name in ("decoder", "decoder_bias")]
    codes, _ = step_by_step(x - plain[1], plain[0], 4)
    loss = (codes @ plain[0] + plain[1] - x).square().sum(-1).mean()
    torch.testing.assert_close(outcome.loss, loss)
    for one, other in zip(mine, torch.autograd.grad(loss, plain), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    # The activation of what is trained lets the same gradient through.
    values = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(learner.dictionary().encode(values).square().sum(), values)
    again = x.clone().requires_grad_()
    theirs = step_by_step(again - plain[1].detach(), directions, 4)[0].square().sum()
    torch.testing.assert_close(found, torch.autograd.grad(theirs, again)[0], atol=1e-4, rtol=1e-3)


def planted(rows: int, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    directions = functional.normalize(drawn(24, 12, seed=99), dim=-1)
    on = torch.rand(rows, 24, generator=source) < 0.12
    return ((1 + torch.rand(rows, 24, generator=source)) * on) @ directions + 2


def recipe(**choices: object) -> Recipe:
    return Recipe.read(
        {"width": 24, "l0": 3, "activation": "matching_pursuit", "steps": 60, "rate": 1e-2} | choices
    )


def stop(step: int, taken: Sequence[Taken | None]) -> None:
    if step == 3:
        raise KeyboardInterrupt


def test_it_learns_goes_on_and_is_kept(tmp_path: Path) -> None:
    values = ArrayStream(planted(2048, 0), 128, seed=1)
    held = planted(512, 1)
    topk, one = train(values, [recipe(activation="topk"), recipe()], held_out=held)
    assert one.final.explained > one.log[0].explained + 0.1
    assert one.final.explained > topk.final.explained
    found = one.dictionary
    torch.testing.assert_close(functional.normalize(found.encoder, dim=-1), found.decoder)
    assert not found.encoder_bias.any()
    files.save(found, tmp_path / "one.safetensors")
    again = files.load(tmp_path / "one.safetensors")
    for same in (
        again,
        found.folded(),
        found.folded().unit_norms(),
        found.mapped(lambda tensor: tensor.clone()),
    ):
        torch.testing.assert_close(same.reconstruct(held), found.reconstruct(held), atol=1e-4, rtol=1e-4)
    other = replace(
        found,
        encoder=found.encoder * 2,
        decoder=found.decoder / 2,
        activation=found.activation.rescaled(torch.full((24,), 2.0)),
    )
    torch.testing.assert_close(
        other.unit_norms().reconstruct(held), found.reconstruct(held), atol=1e-4, rtol=1e-4
    )
    short = [recipe(steps=6, dead_units=way, dead_after=128) for way in ("auxk", "resample")]
    whole = train(values, short)
    with pytest.raises(KeyboardInterrupt):
        train(values, short, folder=tmp_path / "kept", keep_every=2, report=stop)
    for left, right in zip(whole, train(values, short, folder=tmp_path / "kept", keep_every=2), strict=True):
        assert torch.equal(left.dictionary.decoder, right.dictionary.decoder)
        assert torch.equal(left.dictionary.decoder_bias, right.dictionary.decoder_bias)


def test_random_directions_beside_it_are_pursued_too() -> None:
    x = planted(200, 3)
    found = dictionary(functional.normalize(drawn(40, 12, seed=5), dim=-1), 4)
    null = random_directions(found, x, x, 4.0, seed=0)
    assert isinstance(null.activation, MatchingPursuit)
    simple = random_directions(replace(found, activation=TopK(4)), x, x, 4.0, seed=0)
    errors = [(one.reconstruct(x) - x).square().sum() for one in (null, simple)]
    assert float(errors[0]) < float(errors[1])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    for choices in ({"tied": False}, {"decoder": "free"}, {"l0": 2.5}, {"coefficient": 1.0, "l0": None}):
        with pytest.raises(InputError, match="matching_pursuit"):
            recipe(**choices)
    sites = (Site.parse("mlp_in.0"), Site.parse("mlp_out.0"))
    stream = ArrayStream(planted(512, 0), 128, sites=sites, widths=(6, 6))
    with pytest.raises(InputError, match="one site for both"):
        train(stream, [recipe(steps=2)], layout=Layout(sites[:1], sites[1:]))
    found = dictionary(torch.eye(4), 2)
    with pytest.raises(InputError, match="ask a dictionary"):
        MatchingPursuit(2)(torch.zeros(3, 4))
    with pytest.raises(InputError, match="not each driven by one direction"):
        found.drives(torch.tensor([0]))
    with pytest.raises(InputError, match="k = 5 units are to be on; there are 4"):
        dictionary(torch.eye(4), 5)
    with pytest.raises(InputError, match="has no matching pursuit"):
        sae_lens.write(found, tmp_path)
