"""What of a variant can change anything, against the variant itself: the same answers, from fewer rows and columns."""

import pytest
import torch
from tests.models import families
from torch import Tensor

from microtome.core.edits import Edit, Set, Zero
from microtome.core.logits import LogitSelection
from microtome.core.site import Site
from microtome.models.felt import felt
from microtome.models.model import Model
from microtome.models.sweep import Variant, sweep

ALIKE = 4


class Last:
    name = "last"
    needs = LogitSelection((-1,))

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, -1, 3].float() - logits[:, -1, 5].float()

    def for_rows(self, rows: list[int]) -> "Last":
        return self


def sides(name: str) -> tuple[Model, Tensor, Tensor]:
    """Two prompts and their other sides: alike at first; the third is its own other side."""
    model = families.model(name)
    clean, corrupt = families.ids(seed=0), families.ids(seed=1)
    corrupt[:, :ALIKE] = clean[:, :ALIKE]
    clean, corrupt = (torch.cat([ids, clean[:1]]) for ids in (clean, corrupt))
    return model, clean, corrupt


def variants(model: Model, there: dict[Site, Tensor]) -> list[Variant]:
    """Edits at everything, at one column before and one after the first difference, at both, and at some rows."""
    z, mlp, stream = Site("z", 1, heads=(0, 1)), Site("mlp_out", 0), Site("resid_pre", 2)

    def put(site: Site, *positions: int, rows: tuple[int, ...] | None = None) -> Edit:
        value = there[site.whole] if rows is None else there[site.whole][list(rows)]
        value = value if site.heads is None else value[:, :, list(site.heads)]
        return (
            Set(site.at(*positions), rows=rows, value=value[:, list(positions)])
            if positions
            else Set(site, rows=rows, value=value)
        )

    return [
        Variant((put(z), put(mlp))),
        Variant((put(stream),), rows=(1, 2)),
        Variant((put(stream, ALIKE - 1),)),
        Variant((put(stream, ALIKE + 1),)),
        Variant((put(mlp, ALIKE - 1), put(z))),
        Variant((put(z, rows=(0,)), put(mlp, rows=(2,)))),
        Variant((Set(mlp, value=there[mlp][0, 0]),)),
        Variant((put(z), Zero(mlp.at(0)))),
    ]


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama", "gemma2", "bloom"])
def test_the_answers_are_those_of_the_whole_variants(name: str) -> None:
    model, clean, corrupt = sides(name)
    wholes = [Site("z", 1), Site("mlp_out", 0), Site("resid_pre", 2)]
    base, there = (model.run(ids, wholes).values for ids in (clean, corrupt))
    batch = model.inputs(clean, None).batch
    asked = variants(model, dict(there))
    cut = [felt(one, base, batch, causal=True) for one in asked]
    assert [one.rows for one in cut] == [(0, 1), (1,), (), (0, 1), (0, 1), (0,), (0, 1, 2), None]
    rest = tuple(range(ALIKE, clean.shape[1]))
    assert [edit.site.positions for edit in cut[0].edits] == [rest, rest]
    assert cut[6].edits == asked[6].edits
    assert cut[7] is asked[7]
    expected = sweep(model, clean, asked, Last(), incremental=False)
    found = sweep(model, clean, cut, Last())
    told = found.metric.where(~found.metric.isnan(), found.base)
    left_out = expected.metric.isnan()
    torch.testing.assert_close(told[~left_out], expected.metric[~left_out], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("left", [True, False])
def test_columns_are_named_from_the_end_where_rows_end_together_and_stay_whole_elsewhere(left: bool) -> None:
    model, clean, corrupt = sides("llama")
    mask = torch.ones_like(clean)
    mask[1, :2] = 0
    mask = mask if left else mask.flip(1)
    corrupt = corrupt.where(mask.bool(), clean)
    stream = Site("resid_pre", 1)
    base, there = (model.run(ids, [stream], mask=mask).values for ids in (clean, corrupt))
    whole = Variant((Set(stream, value=there[stream]),))
    cut = felt(whole, base, model.inputs(clean, mask).batch, causal=True)
    count = clean.shape[1] - ALIKE
    assert cut.edits[0].site.positions == (tuple(range(-count, 0)) if left else None)
    expected, found = (sweep(model, clean, [one], Last(), mask=mask) for one in (whole, cut))
    told = found.metric.where(~found.metric.isnan(), found.base)
    torch.testing.assert_close(told, expected.metric, rtol=1e-5, atol=1e-5)


def test_a_model_that_looks_ahead_keeps_all_columns() -> None:
    model, clean, corrupt = sides("gpt2")
    stream = Site("resid_pre", 1)
    base, there = (model.run(ids, [stream]).values for ids in (clean, corrupt))
    cut = felt(
        Variant((Set(stream, value=there[stream]),)), base, model.inputs(clean, None).batch, causal=False
    )
    assert cut.rows == (0, 1)
    assert cut.edits[0].site.positions is None
