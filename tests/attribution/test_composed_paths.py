"""Paths through a head sum to its direct contribution; a planted two-step path is the one that is found."""

import numpy as np
import pytest
import torch

from microtome.attribution import composed_paths
from microtome.attribution import direct_logit_attribution as dla
from microtome.core.errors import InputError
from microtome.data.pairs import Pairs
from microtome.models.load import load
from models import families


def pairs_of(ids: torch.Tensor) -> Pairs:
    rows = len(ids)
    return Pairs(
        clean=ids,
        corrupt=ids,
        mask=None,
        answers=tuple((3 + r,) for r in range(rows)),
        wrong=tuple((30 + r,) for r in range(rows)),
        slots=({},) * rows,
        texts=tuple(f"prompt {r}" for r in range(rows)),
        corrupt_texts=("",) * rows,
        token_strings={i: str(i) for i in range(families.VOCABULARY)},
    )


@pytest.mark.parametrize(
    "name",
    ["gpt2", "llama", "llama_biased", "gpt_neox", "gptj", "gemma2", "olmo2", "opt", "bloom", "phi", "qwen3"],
)
def test_paths_sum_to_the_direct_contributions(name: str) -> None:
    model, pairs = families.model(name), pairs_of(families.ids(3))
    found = composed_paths.run(model, pairs, composed_paths.Config(rows_at_once=2)).data
    direct = dla.run(model, pairs).data["contribution"]
    for head in found["head"].values:
        np.testing.assert_allclose(
            found["path"].sel(head=head).sum("part"), direct.sel(part=head), rtol=1e-3, atol=1e-4
        )
    # Nothing reaches a head from its own layer or later.
    for part in ("z.1.h0", "mlp_out.2"):
        assert (found["path"].sel(part=part, head=["z.0.h0", "z.1.h1"]) == 0).all()
    assert abs(found["path"].sel(part="z.0.h1", head="z.2.h1")).max() > 0


def test_a_planted_path_is_the_strongest() -> None:
    """Head 0.2 writes a direction that only head 2.1 reads, and 2.1 turns it into the answer."""
    module = families.make("llama")
    model = load(module)
    ids = families.ids(2)
    pairs = pairs_of(ids[:1])
    with torch.no_grad():
        answer = module.lm_head.weight[3] - module.lm_head.weight[30]
        secret = torch.zeros(32)
        secret[5] = 1.0
        # Nobody but 0.2 writes the secret direction, and of all value projections only 2.1's reads it alone.
        for name, parameter in module.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter[5] = 0.0
            if "embed_tokens" in name:
                parameter[:, 5] = 0.0
        module.model.layers[0].self_attn.o_proj.weight[5, 16:24] = 3.0
        attention = module.model.layers[2].self_attn
        attention.v_proj.weight[:8] = 0.0
        attention.v_proj.weight[0, 5] = 5.0
        attention.o_proj.weight[:, :16] = 0.0
        attention.o_proj.weight[:, 8] = 20 * answer / answer.norm()
    path = composed_paths.run(model, pairs).data["path"].isel(row=0)
    head = path.sel(head="z.2.h1")
    others = [str(part) for part in path["part"].values if str(part) != "z.0.h2"]
    assert abs(float(head.sel(part="z.0.h2"))) > 1e-2
    np.testing.assert_allclose(head.sel(part=others), 0.0, atol=1e-5)
    # The other head that shares those values writes nothing of it.
    np.testing.assert_allclose(path.sel(head="z.2.h0"), 0.0, atol=1e-5)


def test_it_draws_paths_and_wants_pairs() -> None:
    model = families.model("gpt2")
    grid, table = composed_paths.run(
        model, pairs_of(families.ids(2)), composed_paths.Config(listed=5)
    ).shapes()
    assert grid.values.shape == (12, 24)
    assert len(table.rows) == 5
    with pytest.raises(InputError, match="give pairs"):
        composed_paths.run(model, families.ids(2))
