"""Desiderata: a negative one takes out what a positive one alone would keep; shares are honest; what is refused."""

from dataclasses import replace

import pytest
import torch
from tests.circuits.planted import pairs_of, planted
from tests.models import families

from microtome.circuits import desiderata_masks as method
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.data.pairs import Pairs
from microtome.models.model import Model

QUICK = {"steps": 12, "rate": 0.8, "checked": 2}


def two_ways() -> tuple[Model, Pairs, Pairs]:
    """The planted network, in which a second head also reads the token three places back, and says it half as loudly.

    Pairs in which both tokens differ, and pairs in which only the one three places back does.
    """
    model, pairs = planted()
    module = model.module
    tokens, width = 6, 24
    first = module.blocks[0].attn
    now, out, where = (slice(i * tokens, (i + 1) * tokens) for i in (0, 2, 3))
    mine = slice(3 * width, 3 * width + tokens)
    with torch.no_grad():
        for linear in (first.q, first.k, first.v):
            linear.weight[3 * width : 4 * width] = 0
        first.o.weight[:, 3 * width : 4 * width] = 0
        first.q.weight[mine, where] = 100 * torch.diag(torch.ones(tokens - 3), 3)
        first.k.weight[mine, where] = torch.eye(tokens)
        first.v.weight[mine, now] = torch.eye(tokens)
        first.o.weight[out, mine] = 2 * torch.eye(tokens)
    far = tokens - 4
    corrupt = pairs.clean.clone()
    corrupt[:, far] = (pairs.clean[:, far] + 1) % tokens
    both = corrupt.clone()
    both[:, -2] = pairs.corrupt[:, -2]
    # What three places back says must be the answer's rival in both kinds of pairs, so that patching it would help.
    clean = pairs.clean.clone()
    clean[:, far], corrupt[:, far], both[:, far] = (
        pairs.clean[:, -2],
        pairs.corrupt[:, -2],
        pairs.corrupt[:, -2],
    )
    return model, replace(pairs, clean=clean, corrupt=both), replace(pairs, clean=clean, corrupt=corrupt)


def test_a_negative_desideratum_takes_out_what_must_not_matter() -> None:
    model, changes, stays = two_ways()
    config = method.Config(**QUICK, learned_on=1.0, price=0.02, slack=0.02)
    alone = method.run(model, method.Desiderata((changes,)), config)
    both = method.run(model, method.Desiderata((changes,), (stays,)), config)
    assert "z.0.h3" in alone.circuit.nodes, "it says the wanted answer too"
    assert "z.0.h3" not in both.circuit.nodes
    assert set() < set(both.circuit.nodes) <= {"z.0.h1", "z.1.h2"}, "each of them carries it by itself"
    assert both.data["holds"].sel(set="chosen").values.min() == 1.0
    assert both.data["holds"].sel(set="none", desideratum="positive 0") == 0.0


def test_of_plain_pairs_prompts_with_one_answer_are_put_into_each_other(tmp_path: object) -> None:
    model, pairs = planted()
    made = method.Desiderata.of(pairs)
    (negative,) = made.negative
    assert len(negative) == len(pairs) - len(set(pairs.answers))
    assert bool((negative.clean != negative.corrupt).any(dim=1).all())
    found = method.run(model, pairs, method.Config(**QUICK))
    assert set(found.circuit.nodes) <= {"z.0.h1", "z.1.h2"}
    assert found.data["holds"].sel(desideratum="positive 0", set="chosen") == 1.0
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    assert len(found.shapes()) == 4


def test_desiderata_without_a_wish_are_refused() -> None:
    tokens = families.ids(2, seed=0)
    pairs = pairs_of(tokens, families.ids(2, seed=1), [3, 3], [5, 5])
    with pytest.raises(InputError, match="at least one positive"):
        method.Desiderata(())
    with pytest.raises(InputError, match="wrong answer"):
        method.Desiderata((replace(pairs, wrong=((), ())),))
