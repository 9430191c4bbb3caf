"""Codes, errors and gradients of one pass are what they are said to be."""

import pytest
import torch
from tests.bases.random_bases import random_units
from tests.bases.test_splice import FAMILIES, Token
from tests.models import families

from microtome.bases import unit_edits
from microtome.bases.linear import LinearBasis
from microtome.bases.read_codes import read_codes
from microtome.bases.splice import splice
from microtome.core.site import Site


@pytest.mark.parametrize("name", FAMILIES)
def test_codes_and_errors_add_up_and_gradients_are_slopes(name: str) -> None:
    """The gradient at a code, against moving the code in the running model by a little either way."""
    model, tokens = families.model(name), families.ids()
    bases = [
        random_units(model, ["z.1"], ["z.1"]),
        random_units(model, ["mlp_in.1"], ["mlp_out.1", "mlp_out.2"]),
    ]
    readings = read_codes(model, tokens, bases, Token())
    for basis, reading in zip(bases, readings, strict=True):
        values = model.run(tokens, read=[*basis.reads, *basis.writes])
        made = basis.decode(reading.codes).split(list(basis.write_widths), -1)
        for site, part in zip(basis.writes, made, strict=True):
            whole = values[site].flatten(2)
            torch.testing.assert_close(part + reading.errors[site], whole, atol=1e-5, rtol=1e-5)
        assert reading.gradients is not None
        assert reading.metric is not None
        unit = int(reading.gradients.abs().sum((0, 1)).argmax())
        ends = [
            model.run(
                tokens, metric=Token(), edit=splice(basis, change=unit_edits.add(unit, step), positions=[3])
            )
            for step in (-0.01, 0.01)
        ]
        assert ends[0].metric is not None
        assert ends[1].metric is not None
        slope = (ends[1].metric - ends[0].metric) / 0.02
        torch.testing.assert_close(reading.gradients[:, 3, unit], slope, atol=2e-3, rtol=2e-2)


def test_for_neurons_they_are_the_values_and_gradients_of_the_model() -> None:
    model, tokens = families.model("gpt2"), families.ids()
    site = Site("mlp_post", 1)
    (reading,) = read_codes(model, tokens, [LinearBasis(site, torch.eye(48))], Token())
    run = model.run(tokens, read=[site, site.grad], metric=Token())
    assert reading.gradients is not None
    torch.testing.assert_close(reading.codes, run[site])
    torch.testing.assert_close(reading.gradients, run[site.grad])
    torch.testing.assert_close(reading.error_gradients[site], run[site.grad])
    assert float(reading.errors[site].abs().max()) < 1e-6


def test_with_frozen_errors_gradients_flow_from_unit_to_unit_alone() -> None:
    """Of a later basis's codes, an earlier basis sees only what passes through them."""
    model, tokens = families.model("gpt2"), families.ids()
    early = LinearBasis("resid_post.0", torch.eye(32))
    blind = random_units(model, ["resid_post.1"], ["resid_post.1"])
    blind.decoder.zero_()
    frozen = splice(blind, error="freeze")
    (plain,), (cut,) = (read_codes(model, tokens, [early], Token(), edit=edit) for edit in ([], frozen))
    assert plain.gradients is not None
    assert cut.gradients is not None
    assert float(plain.gradients.abs().max()) > 1e-3
    assert not cut.gradients.any()


def test_without_a_metric_there_are_no_gradients() -> None:
    model = families.model("gpt2")
    (reading,) = read_codes(model, families.ids(), [random_units(model, ["mlp_in.1"], ["mlp_out.1"])])
    assert reading.gradients is None
    assert reading.metric is None
    assert not reading.codes.requires_grad
