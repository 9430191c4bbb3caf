"""Gates written by hand are told apart, both ways; and what pairs do beyond the sum is what each gate says."""

import numpy as np
import pytest
import torch
from tests.circuits.planted import pairs_of, random_pairs
from tests.models import families

from microtome.core.edits import Set
from microtome.core.errors import InputError, SiteError
from microtome.core.result import Result
from microtome.core.site import Site
from microtome.data import metrics
from microtome.models.components import components
from microtome.models.random_twin import random_twin
from microtome.patching import necessity_sufficiency, second_order
from microtome.patching.contrast import Contrast
from microtome.patching.joint_effects import Joint
from microtome.testbeds.case import Case
from microtome.testbeds.hand_set import testbed


@pytest.fixture(scope="module")
def gates() -> Case:
    return testbed.build("gates")


@pytest.fixture(scope="module")
def found(gates: Case) -> necessity_sufficiency.Result:
    config = necessity_sufficiency.Config(strongest=7)
    return necessity_sufficiency.run(gates.model, gates.pairs, config)


def test_every_pair_is_called_by_its_gate(gates: Case, found: necessity_sufficiency.Result) -> None:
    expected = {gates.truth.roles["and_gate"]: "AND-like", gates.truth.roles["or_gate"]: "OR-like"}
    pairs = found.data["group"].values.tolist()
    assert len(pairs) == 21
    for name in pairs:
        group = tuple(name.split(" + "))
        assert found.verdict(group) == expected.get(group, "neither"), name


def test_shares_of_gates_are_those_of_their_tables(gates: Case, found: necessity_sufficiency.Result) -> None:
    joint = {
        gate: found.data["joint"].sel(group=" + ".join(gates.truth.roles[gate])).values
        for gate in ("and_gate", "or_gate", "sum_gate")
    }
    for values in joint.values():
        np.testing.assert_allclose(values, 1 / 3, atol=1e-3)
    lost, restored = found.data["single"].values
    np.testing.assert_allclose(lost[:6], [1 / 3, 1 / 3, 0, 0, 1 / 6, 1 / 6], atol=1e-3)
    np.testing.assert_allclose(restored[:6], [0, 0, 1 / 3, 1 / 3, 1 / 6, 1 / 6], atol=1e-3)


def test_a_group_of_three_is_judged_by_thirds(gates: Case) -> None:
    groups = (("z.0.h0", "z.0.h1", "mlp_out.0"), ("z.0.h6", "z.0.h7"))
    found = necessity_sufficiency.run(gates.model, gates.pairs, necessity_sufficiency.Config(groups=groups))
    assert found.verdict(groups[0]) == "neither"
    assert found.verdict(groups[1]) == "does nothing"


def test_roles_rank_the_gates_members_first(gates: Case, found: necessity_sufficiency.Result) -> None:
    answers = {getattr(one, "role", ""): one for one in found.answers()}
    for role in ("and_gate", "or_gate"):
        scores = answers[role].scores
        assert {name for name, score in scores.items() if score > 0} == set(gates.truth.roles[role])


def test_a_twin_has_no_gates(gates: Case) -> None:
    twin = random_twin(gates.model, how="drawn")
    groups = tuple(gates.truth.roles[gate] for gate in ("and_gate", "or_gate"))
    found = necessity_sufficiency.run(twin, gates.pairs, necessity_sufficiency.Config(groups=groups))
    assert (found.verdict(groups[0]), found.verdict(groups[1])) != ("AND-like", "OR-like")


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("way", ["noise", "denoise"])
def test_joint_effects_are_those_of_plain_passes(name: str, way: str) -> None:
    model, pairs = families.model(name), random_pairs(3)
    sites = [Site("z", 0, heads=(1,)), Site("z", 0, heads=(2,)), Site("mlp_out", 1)]
    contrast = Contrast.of(model, pairs, metrics.DEFAULT, components(model))
    joint = Joint(contrast, direction=way)
    base, other = (pairs.clean, pairs.corrupt) if way == "noise" else (pairs.corrupt, pairs.clean)
    there = model.run(other, sites)
    metric = metrics.build(metrics.DEFAULT, pairs)
    plain = model.run(base, metric=metric).metric
    edited = model.run(base, edit=[Set(site, value=there[site]) for site in sites], metric=metric).metric
    assert plain is not None
    assert edited is not None
    torch.testing.assert_close(
        joint.effects([sites])[0][0], (edited - plain).detach().double(), atol=1e-5, rtol=0
    )
    # Held at what they are, nothing changes.
    torch.testing.assert_close(
        joint.effects([()], [sites])[0][0], torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_pairs_interact_as_their_gates_say_and_all_count_alike_with_interactions(gates: Case) -> None:
    heads = tuple(f"z.0.h{head}" for head in range(6))
    found = second_order.run(gates.model, gates.pairs, second_order.Config(components=heads))
    expected = np.zeros((6, 6))
    expected[0, 1] = expected[1, 0] = 1 / 3
    expected[2, 3] = expected[3, 2] = -1 / 3
    np.testing.assert_allclose(found.data["interaction"].values, expected, atol=1e-3)
    np.testing.assert_allclose(found.data["importance"].values, -1 / 6, atol=1e-3)
    # By single ablations the OR seems not to matter at all.
    assert found.data["rank_alone"].values.tolist()[2:4] == [5, 5]
    grid, ranks = found.shapes()
    assert "2 of 15 pairs" in grid.caption
    assert len(ranks.rows) == 6


def test_what_a_head_passes_on_of_an_mlp_is_mediated() -> None:
    """Held heads take their part of the MLP's effect away: by definition, against plain sweeps."""
    model, pairs = families.model("gpt2"), random_pairs(3)
    names = ("z.0.h0", "mlp_out.0", "z.1.h1", "mlp_out.1")
    found = second_order.run(model, pairs, second_order.Config(components=names))
    mediated = found.data["mediated"]
    assert np.isnan(mediated.sel(mlp="mlp_out.0", head="z.0.h0"))
    assert np.isnan(mediated.sel(mlp="mlp_out.1", head="z.1.h1"))
    contrast = Contrast.of(model, pairs, metrics.DEFAULT, components(model))
    joint = Joint(contrast)
    mlp, head = Site("mlp_out", 0), Site("z", 1, heads=(1,))
    free, still = (joint.effects([[mlp]], [held])[0].mean() for held in ([], [head]))
    expected = float((free - still) / joint.gap)
    assert float(mediated.sel(mlp="mlp_out.0", head="z.1.h1")) == pytest.approx(expected, abs=1e-5)


def test_they_come_back_equal(gates: Case, found: necessity_sufficiency.Result, tmp_path: object) -> None:
    assert Result.load(found.save(str(tmp_path) + "/one")) == found
    pairs = second_order.run(gates.model, gates.pairs)
    assert Result.load(pairs.save(str(tmp_path) + "/two")) == pairs
    assert "16 pairs" in found.shapes()[0].caption


def test_bad_input(gates: Case) -> None:
    model, pairs = gates.model, gates.pairs
    assert pairs is not None
    with pytest.raises(InputError, match="at least two different members"):
        necessity_sufficiency.run(model, pairs, necessity_sufficiency.Config(groups=(("z.0.h0", "z.0.h0"),)))
    with pytest.raises(SiteError, match=r"z\.4\.h0 is not a component"):
        necessity_sufficiency.run(model, pairs, necessity_sufficiency.Config(groups=(("z.0.h0", "z.4.h0"),)))
    with pytest.raises(InputError, match="between 2 and 3 different components, got 9"):
        second_order.run(model, pairs, second_order.Config(most=3))
    same = pairs_of(pairs.clean, pairs.clean, [3] * 16, [5] * 16)
    for method in (necessity_sufficiency, second_order):
        with pytest.raises(InputError, match="no behaviour"):
            method.run(model, same)
    contrast = Contrast.of(model, pairs, metrics.DEFAULT, components(model))
    with pytest.raises(InputError, match="to denoise is to put clean values in"):
        Joint(contrast, "zero", "denoise")
