"""One hypothesis through all tests: the true one passes them, wrong ones fail where they are wrong."""

import pytest
import torch
from tests.causal import wrong
from tests.causal.cases import compiled, trained

from microtome.causal import locally_consistent_abstraction as local
from microtome.causal import strictness_ladder as method
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.data.hypothesis import Location

QUICK = method.Config(pairs=32, draws=1, largest=1)


@pytest.mark.parametrize("name", ["sort", "modular_sum"])
def test_the_true_hypothesis_passes_every_rung(name: str) -> None:
    case = compiled(name) if name == "sort" else trained(name)
    found = method.run(case.model, case.hypothesis, QUICK)
    assert found.passed == method.RUNGS
    assert found.data["control"].values[1:].max() < 0.5


def test_wrong_hypotheses_fail_where_they_are_wrong() -> None:
    case, (_, others) = trained("modular_sum"), wrong.about_the_trained_one()
    passed = {
        name: method.run(case.model, others[name], QUICK).passed for name in ("wrong node", "missing edge")
    }
    assert passed["wrong node"] == ("behaviour",)
    # Every step and every exchange is right, but the sum does not read the right digit from the embedding.
    assert passed["missing edge"] == ("behaviour", "local consistency", "causal abstraction")


def test_a_step_is_looked_at_where_it_ends() -> None:
    """A variable at the wrong node moves neither the next variable nor the answer; the other steps are right still."""
    case = trained("modular_sum")
    moved = case.hypothesis.at(left=Location("z.0.h0"))
    found = local.run(case.model, moved).data
    steps = list(zip(found["parent"].values.tolist(), found["child"].values.tolist(), strict=True))
    assert steps == [("left", "sum"), ("right", "sum"), ("sum", "answer")]
    assert found["agreement_changed"].values.round(2).tolist() == [0.0, 1.0, 1.0]
    assert found["readable"].values.min() > 0.95
    assert found["twin_changed"].values.max() < 0.3


def test_what_is_read_is_what_stands_there() -> None:
    case = compiled("sort")
    values = case.model.run(case.hypothesis.tokens, case.hypothesis.sites).values
    found = local.coordinates(case.hypothesis.locations["rank"], values)
    ranks = case.hypothesis.values["rank"]
    assert torch.equal(found[:, 1:].argmax(-1), ranks[:, 1:])
    with pytest.raises(InputError, match="selects positions"):
        local.coordinates(Location("z.0.h0@1"), values)


def test_they_replay_and_come_back_equal(tmp_path: object) -> None:
    case = trained("modular_sum")
    config = method.Config(pairs=8, draws=1, largest=1)
    found = method.run(case.model, case.hypothesis, config)
    assert found == method.run(case.model, case.hypothesis, config)
    assert Result.load(found.save(str(tmp_path) + "/ladder")) == found
    assert [row[1] for row in found.shapes()[0].rows] == [True] * 4
    step = local.run(case.model, case.hypothesis, local.Config(pairs=8))
    assert Result.load(step.save(str(tmp_path) + "/local")) == step
    assert step.shapes()[0].rows[0][:2] == ("left", "sum")


def test_without_variables_there_is_no_step() -> None:
    case = trained("modular_sum")
    with pytest.raises(InputError, match="no step to try"):
        local.run(case.model, case.hypothesis.keeping([]))
