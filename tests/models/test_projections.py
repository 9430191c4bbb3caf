"""Queries, keys and values as projected: what the weights make of what the attention reads, on every family."""

import contextlib

import pytest
import torch
from tests.models import families

from microtome.core.edits import Scale, Set, Zero
from microtome.core.errors import SiteError
from microtome.core.logits import LogitSelection
from microtome.core.site import Site


@pytest.mark.parametrize("name", families.ALL)
def test_the_weights_make_them_of_what_attention_reads(name: str) -> None:
    model, given = families.model(name), families.inputs(name)
    run = model.run(given, ["attn_in.1", "q_proj.1", "k_proj.1", "v_proj.1"])
    for letter in "qkv":
        made = torch.einsum("rpd,hde->rphe", run["attn_in.1"], model.weight(f"W_{letter.upper()}.1"))
        with contextlib.suppress(SiteError):
            made = made + model.weight(f"b_{letter.upper()}.1")
        found = run[f"{letter}_proj.1"]
        assert found.abs().max() > 1e-3
        torch.testing.assert_close(found, made, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", families.ALL)
def test_one_head_is_edited_and_no_other(name: str) -> None:
    model, given = families.model(name), families.inputs(name)
    sites = ["q_proj.1", "k_proj.1", "v_proj.1"]
    plain = model.run(given, sites)
    for part in sites:
        edited = model.run(
            given, [*sites], edit=[Zero(Site("qkv"[sites.index(part)] + "_proj", 1, heads=(0,)))]
        )
        for other in sites:
            expected = plain[other].clone()
            if other == part:
                expected[:, :, 0] = 0
            assert torch.equal(edited[other], expected)
    same = model.run(given, edit=[Set(part, value=plain[part]) for part in sites]).logits
    assert same is not None
    assert torch.equal(same, model.run(given).logits)


@pytest.mark.parametrize("name", families.FEW)
def test_the_gradient_tells_what_a_small_change_does(name: str) -> None:
    class Sum:
        name = "sum"
        needs = LogitSelection((-1,))

        def __call__(self, logits: torch.Tensor) -> torch.Tensor:
            return logits[:, -1, 3]

        def for_rows(self, rows: list[int]) -> "Sum":
            return self

    model, given = families.model(name), families.inputs(name)
    for part in ("q_proj.1", "k_proj.1", "v_proj.1"):
        run = model.run(given, [part, f"grad:{part}"], metric=Sum())
        step = 1e-2
        up, down = (
            model.run(given, edit=[Scale(part, factor=1 + sign * step)], metric=Sum()).metric
            for sign in (1, -1)
        )
        assert up is not None
        assert down is not None
        predicted = (run[part] * run[f"grad:{part}"]).sum()
        assert predicted.item() == pytest.approx(((up - down) / (2 * step)).sum().item(), rel=0.02, abs=2e-4)
