"""Folding is exact to rounding in every family; what is frozen, and what acts through a divisor, is what a pass with
that edit does; behind the last MLP all of it follows from the contribution and the divisor."""

import numpy as np
import pytest
import torch
from torch import Tensor

from microtome.attribution import direct_logit_attribution as dla
from microtome.attribution import frozen_norms
from microtome.attribution.frozen_norms import ALL, Config, Result
from microtome.core.edits import Scale, Set
from microtome.core.errors import FamilyError
from microtome.core.shapes import Table
from microtome.data.metrics import build
from microtome.data.pairs import Pairs
from microtome.data.prompts import Prompts
from microtome.models.load import load
from microtome.models.model import Model
from models import families

# One of each kind: LayerNorm, RMSNorm, one plus the gain, parallel with one norm and with two, norms behind.
NAMES = ("gpt2", "llama", "gemma2", "olmo2", "gptj", "gpt_neox", "opt")
FOLDED = 1e-5  # float32, a few roundings of sums of 32 numbers


def pairs_of(ids: Tensor) -> Pairs:
    rows = len(ids)
    return Pairs(
        clean=ids,
        corrupt=ids,
        mask=None,
        answers=tuple((3 + row,) for row in range(rows)),
        wrong=tuple((30 + row,) for row in range(rows)),
        slots=({},) * rows,
        texts=tuple(f"prompt {row}" for row in range(rows)),
        corrupt_texts=("",) * rows,
        token_strings={i: str(i) for i in range(families.VOCABULARY)},
    )


@pytest.fixture(scope="module")
def llama() -> tuple[Model, Pairs, Result]:
    """No biases anywhere, and no soft cap."""
    model, pairs = families.model("llama"), pairs_of(families.ids(2))
    return model, pairs, frozen_norms.run(model, pairs)


@pytest.mark.parametrize("name", NAMES)
def test_folding_is_exact_and_freezing_is_not(name: str) -> None:
    model = families.model(name)
    found = frozen_norms.run(model, families.ids(2), Config(each=False)).data
    assert found["fold_error"].max() < FOLDED
    assert abs(found.attrs["folded"]) < FOLDED * model.n_layers * abs(found["live"]).max()
    assert found["scale_change"].max() > 0.01
    assert abs(found["live"] - found["frozen"].sel(held=ALL)).max() > 0.01 * abs(found["live"]).max()
    assert found["norm"].values[-1] == "final_norm_scale"
    assert found.sizes["node"] == 0
    assert found.sizes["norm"] == model.n_layers * {"gemma2": 4, "gptj": 1}.get(name, 2) + 1


def test_every_number_is_what_a_pass_with_these_edits_gives(llama: tuple[Model, Pairs, Result]) -> None:
    model, pairs, found = llama
    metric = build("logit-difference", pairs)
    norms = found.data["norm"].values.tolist()
    plain = model.run(pairs.clean, norms, metric=metric)
    for part in ("attn_out.0", "mlp_out.1"):
        weak = Scale(part, factor=0.0)
        bent = model.run(pairs.clean, norms, [weak], metric=metric)
        close(found.data["live"].sel(part=part), bent.metric - plain.metric)
        hold = {norm: Set(norm, value=plain[norm]) for norm in norms}
        everything = model.run(pairs.clean, edit=[weak, *hold.values()], metric=metric).metric
        close(found.data["frozen"].sel(part=part, held=ALL), everything - plain.metric)
        for norm in ("attn_norm_scale.0", "mlp_norm_scale.1", "final_norm_scale"):
            one = model.run(pairs.clean, edit=[weak, hold[norm]], metric=metric).metric
            close(found.data["frozen"].sel(part=part, held=norm), one - plain.metric)
            alone = model.run(pairs.clean, edit=[Set(norm, value=bent[norm])], metric=metric).metric
            close(found.data["through"].sel(part=part, node=norm), alone - plain.metric)
    above = found.data["frozen"].sel(part="mlp_out.1", held="attn_norm_scale.0")
    close(above, torch.tensor(found.data["live"].sel(part="mlp_out.1").values))
    close(found.data["through"].sel(part="mlp_out.1", node="attn_norm_scale.0"), torch.zeros(2))


def test_behind_the_last_mlp_all_follows_from_its_contribution(llama: tuple[Model, Pairs, Result]) -> None:
    model, pairs, found = llama
    part, norm = "mlp_out.2", "final_norm_scale"
    direct = dla.run(model, pairs).data
    close(found.data["frozen"].sel(part=part, held=norm), -tensor(direct["contribution"].sel(part=part)))
    close(found.data["live"].sel(part=part), -tensor(direct["recomputed"].sel(part=part)))
    # logits = x · d / s, with and without the part: (frozen + logits) s / s' = live + logits.
    ratio = (
        model.run(pairs.clean, [norm])[norm][:, -1, 0]
        / model.run(pairs.clean, [norm], [Scale(part, factor=0.0)])[norm][:, -1, 0]
    )
    value = tensor(direct["value"])
    left = tensor(found.data["frozen"].sel(part=part, held=norm)) + value
    close(found.data["live"].sel(part=part), left * ratio - value)
    close(found.data["through"].sel(part=part, node=norm), value * (ratio - 1))


def test_a_smaller_step_moves_divisors_less(llama: tuple[Model, Pairs, Result]) -> None:
    model, pairs, found = llama
    less = frozen_norms.run(model, pairs, Config(step=0.01, each=False)).data
    # To first order in the step, whose square is what is left.
    whole = found.data["scale_change"].values
    assert (less["scale_change"].values < 0.02 * whole + 1e-3).all()
    assert less["scale_change"].max() > 0


def test_padding_is_no_part_of_it() -> None:
    model, ids = families.model("gpt2"), families.ids(2)
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    strings = {i: str(i) for i in range(families.VOCABULARY)}
    both = frozen_norms.run(model, Prompts(ids, mask, ("a", "b"), strings), Config(each=False)).data
    short = frozen_norms.run(model, Prompts(ids[1:, :-3], None, ("b",), strings), Config(each=False)).data
    long = frozen_norms.run(model, Prompts(ids[:1], None, ("a",), strings), Config(each=False)).data
    for name in ("live", "frozen"):
        close(both[name].sel(row="b"), tensor(short[name].sel(row="b")))
    lengths = ids.shape[1] - 3, ids.shape[1]
    mean = (lengths[0] * short["scale_change"] + lengths[1] * long["scale_change"]) / sum(lengths)
    close(both["scale_change"], tensor(mean))


def test_it_tells_itself_in_shapes(llama: tuple[Model, Pairs, Result]) -> None:
    result = llama[2]
    table, grid, effects = result.shapes()
    assert isinstance(table, Table)
    assert [row[0] for row in table.rows] == [*result.data["norm"].values, ALL]
    assert isinstance(effects, Table)
    assert grid.values.shape == (6, 8)
    assert all(row[2] is not None for row in table.rows[:-1])
    fewer = frozen_norms.run(llama[0], llama[1], Config(each=False)).shapes()[0]
    assert isinstance(fewer, Table)
    assert [row[3] is None for row in fewer.rows] == [True] * 7 + [False]


def test_a_model_without_norms_is_refused() -> None:
    bare = load(families.make("microtome_attention_only"))
    if bare.has("final_norm_scale"):
        pytest.fail("this model was to have no norm")
    with pytest.raises(FamilyError, match="has no norm"):
        frozen_norms.run(bare, families.ids(2))


def tensor(values: object) -> Tensor:
    return torch.tensor(np.array(values)).float()


def close(found: object, expected: Tensor) -> None:
    torch.testing.assert_close(tensor(found), expected.float(), rtol=1e-4, atol=1e-4)
