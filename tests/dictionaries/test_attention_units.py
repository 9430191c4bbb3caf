"""Shares of heads and tokens add up to what drives a unit, on every kind of attention."""

import pytest
import torch

from microtome.core.edits import Zero
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries.activations import ReLU
from microtome.dictionaries.attention_units import unit_shares
from microtome.dictionaries.dictionary import Dictionary
from microtome.models.model import Model
from models import families


def dictionary(model: Model, layer: int, part: str = "z") -> Dictionary:
    site = Site(part, layer)
    z = model.run(families.ids(rows=1), [site])[site]
    d, source = z[0, 0].numel(), torch.Generator().manual_seed(3)
    made = torch.randn(3, 11, d, generator=source)
    return Dictionary(
        "units",
        (site,),
        (site,),
        (d,),
        (d,),
        ReLU(),
        made[0],
        made[1, :, 0],
        made[2],
        made[1, 0],
        made[2, 0],
        1.7,
    )


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2", "bloom"])
def test_shares_add_up(name: str) -> None:
    model = families.model(name)
    tokens = families.ids(rows=3)
    basis = dictionary(model, 1)
    found = unit_shares(model, tokens, basis, [0, 4, 10], position=5)
    z = model.run(tokens, ["z.1"])["z.1"][:, 5].flatten(1)
    drive = basis.pre_activations(z)[:, [0, 4, 10]]
    size = float(found.heads.abs().amax())
    torch.testing.assert_close(found.drive, drive, atol=1e-5 * size, rtol=1e-5)
    torch.testing.assert_close(found.sources.sum(-1), found.heads, atol=1e-5 * size, rtol=1e-5)
    torch.testing.assert_close(found.heads.sum(-1) + found.offset, drive, atol=1e-5 * size, rtol=1e-5)
    assert not found.sources[..., 6:].any()
    assert found.sources[..., :6].abs().amax() > 1e-3 * size


def test_a_head_taken_out_takes_its_share() -> None:
    model, tokens = families.model("llama"), families.ids(rows=2)
    basis = dictionary(model, 1)
    found = unit_shares(model, tokens, basis, [2])
    without = model.run(tokens, ["z.1@-1"], edit=[Zero("z.1.h3")])["z.1@-1"][:, 0].flatten(1)
    left = basis.pre_activations(without)[:, 2]
    torch.testing.assert_close(found.drive[:, 0] - left, found.heads[:, 0, 3], atol=1e-5, rtol=1e-4)


def test_padding_has_no_share() -> None:
    model, tokens = families.model("gpt2"), families.ids(rows=2)
    basis = dictionary(model, 1)
    plain = unit_shares(model, tokens[1:, 2:], basis, [1, 3])
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0
    padded = unit_shares(model, tokens, basis, [1, 3], mask=mask)
    torch.testing.assert_close(padded.heads[1:], plain.heads, atol=1e-4, rtol=1e-4)
    assert not padded.sources[1, ..., :2].any()


def test_bad_input() -> None:
    model, tokens = families.model("gpt2"), families.ids(rows=2)
    with pytest.raises(InputError, match="basis that reads z of one layer"):
        unit_shares(model, tokens, dictionary(model, 1, "resid_post"), [0])
    with pytest.raises(InputError, match="units 0 … 10"):
        unit_shares(model, tokens, dictionary(model, 1), [11])
