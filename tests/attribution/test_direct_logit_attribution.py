"""The contributions sum to the logits in every family, predict what removal does, and find a planted writer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from golden import golden
from microtome.attribution import direct_logit_attribution as dla
from microtome.core.edits import Edit, Set
from microtome.core.errors import FamilyError
from microtome.data.pairs import Pairs
from microtome.models.load import load
from microtome.models.readout import readout
from microtome.models.stream_parts import stream_parts
from models import families

NAMES = (
    "gpt2",
    "llama",
    "gpt_neox",
    "gptj",
    "gemma2",
    "olmo2",
    "opt",
    "opt_projected",
    "bloom",
    "phi",
    "mixtral",
)


def pairs_of(ids: Tensor, answers: int = 2, wrong: int = 1) -> Pairs:
    rows = len(ids)
    return Pairs(
        clean=ids,
        corrupt=ids,
        mask=None,
        answers=tuple(tuple(range(3 + r, 3 + r + answers)) for r in range(rows)),
        wrong=tuple(tuple(range(30 + r, 30 + r + wrong)) for r in range(rows)),
        slots=({},) * rows,
        texts=tuple(f"prompt {r}" for r in range(rows)),
        corrupt_texts=("",) * rows,
        token_strings={i: str(i) for i in range(families.VOCABULARY)},
    )


@pytest.mark.parametrize("name", [n for n in NAMES if n in families.ALL])
def test_contributions_sum_to_the_logit_difference(name: str) -> None:
    model, pairs = families.model(name), pairs_of(families.ids(3))
    found = dla.run(model, pairs)
    own = model.run(pairs.clean).logits
    assert own is not None
    cap = readout(model).cap
    last = own[:, -1] if cap is None else cap * torch.atanh(own[:, -1].double() / cap)
    expected = [
        float(last[r, list(pairs.answers[r])].mean() - last[r, list(pairs.wrong[r])].mean()) for r in range(3)
    ]
    total = found.data["contribution"].sum("part").values
    np.testing.assert_allclose(total, expected, rtol=1e-4, atol=1e-4 * float(last.abs().max()))
    assert found.data.attrs["error"] < 1e-4
    assert any("soft cap" in note for note in found.notes) == (cap is not None)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "gemma2"])
def test_recomputed_is_what_removing_the_part_from_the_stream_does(name: str) -> None:
    model, pairs = families.model(name), pairs_of(families.ids(3), 1, 1)
    found = dla.run(model, pairs)
    parts, cap = stream_parts(model, pairs.clean), readout(model).cap

    def difference(*edits: Edit) -> Tensor:
        logits = model.run(pairs.clean, edit=list(edits)).logits
        assert logits is not None
        last = logits[:, -1] if cap is None else cap * torch.atanh(logits[:, -1].double() / cap)
        return torch.stack([last[r, 3 + r] - last[r, 30 + r] for r in range(3)])

    for index, part in enumerate(parts.parts):
        without = Set("resid_post.2@-1", value=parts.stream - parts.vectors[:, :, index])
        told = found.data["recomputed"].sel(part=part.name).values
        np.testing.assert_allclose(told, difference() - difference(without), rtol=1e-3, atol=1e-4)
    # Freezing the norm is another thing, and the result says by how much.
    assert abs(found.data["recomputed"] - found.data["contribution"]).mean() > 1e-3
    assert any("divisor" in note for note in found.notes)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "opt"])
def test_neurons_of_a_layer_sum_to_its_mlp(name: str) -> None:
    model, pairs = families.model(name), pairs_of(families.ids(2))
    parts, head, target = stream_parts(model, pairs.clean), readout(model), dla.answers(pairs)
    direction = torch.einsum("rt,rtm->rm", target.weights, head.directions(target.ids))
    direction = direction / head.norm.scale(parts.stream[:, 0])
    found = dla.neuron_contributions(model, pairs.clean, direction)
    frozen, _ = dla.contributions(parts, head, target)
    for n, neurons in found.items():
        index = [part.name for part in parts.parts].index(f"mlp_out.{n}")
        torch.testing.assert_close(neurons.sum(1), frozen[:, index], rtol=1e-3, atol=1e-4)


def test_a_planted_writer_is_found_and_a_silenced_one_is_not() -> None:
    module = families.make("llama")
    model = load(module)
    pairs = pairs_of(families.ids(4), 1, 1)
    with torch.no_grad():
        direction = module.lm_head.weight[3] - module.lm_head.weight[30]
        for row in range(4):
            direction = direction + module.lm_head.weight[3 + row] - module.lm_head.weight[30 + row]
        d_head = model.sizes["d_head"]
        module.model.layers[1].self_attn.o_proj.weight[:, 2 * d_head : 3 * d_head] = 0.0
        before = dla.run(model, pairs).data["contribution"].sel(part="z.1.h2").values
        v = model.run(pairs.clean, ["z.1.h2@-1"])["z.1.h2@-1"].mean(dim=(0, 1, 2))
        module.model.layers[1].self_attn.o_proj.weight[:, 2 * d_head : 3 * d_head] = 40 * torch.outer(
            direction / direction.norm(), v / v.norm() ** 2
        )
    found = dla.run(model, pairs).data["contribution"]
    assert np.array_equal(before, np.zeros(4))
    heads = found.sel(part=[p for p in found["part"].values if str(p).startswith("z.")]).mean("row")
    assert str(heads["part"].values[int(heads.values.argmax())]) == "z.1.h2"


def test_prompts_without_answers_explain_the_top_token() -> None:
    model, ids = families.model("gpt2"), families.ids(2)
    found = dla.run(model, ids)
    own = model.run(ids).logits
    assert own is not None
    np.testing.assert_allclose(found.data["value"], own[:, -1].max(-1).values, rtol=1e-6)
    np.testing.assert_allclose(found.data["contribution"].sum("part"), found.data["value"], rtol=1e-4)


def test_a_result_draws_itself_and_states_its_size() -> None:
    found = dla.run(families.model("gpt2"), pairs_of(families.ids(3)), dla.Config(neurons=4))
    grid, table, neurons = found.shapes()
    assert grid.values.shape == (3, 5)
    assert "3 prompts" in table.caption
    assert len(neurons.rows) == 4
    assert "out of" not in neurons.title


def test_models_whose_stream_is_no_sum_are_refused() -> None:
    with pytest.raises(FamilyError, match="not the sum"):
        dla.run(families.model("bert"), families.ids())


def test_bfloat16_is_attributed_within_its_precision() -> None:
    model = load(families.make("llama").to(torch.bfloat16))
    assert dla.run(model, pairs_of(families.ids(2))).data.attrs["error"] < 0.05


@pytest.mark.truth
def test_recorded_logits_are_put_together_from_parts(shared_models: Path) -> None:
    """Every logit at the last token of the recorded run, from the parts alone."""
    model, ids = load(shared_models / "nano-sort"), golden(shared_models, "idx").long()
    parts, head = stream_parts(model, ids), readout(model)
    recorded = golden(shared_models, "lm_head")[:, -1]
    for token in range(3):
        target = dla.Target(torch.full((len(ids), 1), token), torch.ones(len(ids), 1))
        frozen, _ = dla.contributions(parts, head, target)
        torch.testing.assert_close(frozen.sum(-1), recorded[:, token], rtol=1e-4, atol=1e-4)
