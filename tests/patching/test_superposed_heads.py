"""Behaviours in superposition over heads: of a network trained to it, of one with a head for each, and of neither."""

import numpy as np
import pytest
import torch
from tests.circuits.planted import random_pairs
from tests.models import families

from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.patching import superposed_heads
from microtome.patching.superposed_heads import Config, amount
from microtome.testbeds.algorithmic.network import contrast
from microtome.testbeds.hand_set import gates
from microtome.testbeds.hand_set import testbed as hand_set
from microtome.testbeds.toys import head_superposition


@pytest.fixture(scope="module")
def superposed() -> superposed_heads.Result:
    case = head_superposition.build("three_heads")
    pairs = head_superposition.pairs(200, 3)
    return superposed_heads.run(case.model, pairs, Config(kind="mean"))


def test_five_behaviours_share_three_heads(superposed: superposed_heads.Result) -> None:
    data = superposed.data
    assert data.sizes["behaviour"] == 5
    assert data.sizes["head"] == 3
    # Pigeons and holes: five behaviours in three heads cannot each have one to itself.
    assert float(data["spread"].max()) > 1.5
    assert float(data["load"].max()) > 1.5
    # One layer without norms: logit differences add up, to rounding. What corrects a mistake shows in probabilities.
    assert float(np.abs(data["synergy"].values).max()) < 1e-5
    case = head_superposition.build("three_heads")
    config = Config(kind="mean", metric="log-probability")
    found = superposed_heads.run(case.model, head_superposition.pairs(200, 3), config)
    assert float(np.abs(found.data["synergy"].values).max()) > 0.1


def test_the_heads_that_a_behaviour_fails_without_are_those_whose_loss_is_largest() -> None:
    """Against the key: of which accuracy is lost without which head, measured in another way."""
    case = head_superposition.build("three_heads")
    pairs = head_superposition.pairs(200, 3)
    loss = superposed_heads.run(case.model, pairs, Config(kind="mean")).data["loss"].values
    key = np.array(
        [
            [
                case.truth.quantities[f"accuracy lost on shift {shift} without z.0.h{head}"]
                for head in range(3)
            ]
            for shift in range(5)
        ]
    )
    needed = key > head_superposition.LOST
    assert loss[needed].mean() > np.abs(loss[~needed]).mean() if (~needed).any() else loss.mean() > 0
    assert np.corrcoef(loss.ravel(), key.ravel())[0, 1] > 0.5


def test_a_head_for_each_behaviour_is_told_apart() -> None:
    """Three behaviours of a network written by hand, each done by a gate of its own: no spread beyond the gate."""
    case = hand_set.build("gates")
    rows = []
    for gate in range(3):
        bits = torch.zeros(8, gates.BITS, dtype=torch.long)
        bits[:, 2 * gate : 2 * gate + 2] = 1
        rows.append(torch.cat([bits, torch.full((8, 1), 2 + gate), torch.full((8, 1), gates.LAST)], dim=1))
    clean = torch.cat(rows)
    corrupt = clean.clone()
    corrupt[:, : gates.BITS] = 0
    yes, no = (torch.full((24,), token) for token in (gates.YES, gates.NO))
    pairs = contrast(clean, corrupt, yes, no)
    found = superposed_heads.run(case.model, pairs, Config(place=-2, kind="resample")).data
    np.testing.assert_allclose(found["loss"].values[0][:2], 1, atol=1e-3)  # AND: each head all of it
    np.testing.assert_allclose(found["loss"].values[1], 0, atol=1e-3)  # OR: none alone
    np.testing.assert_allclose(found["loss"].values[2][4:6], 0.5, atol=1e-3)  # sum: halves
    np.testing.assert_allclose(found["load"].values[[0, 1, 4, 5]], 1, atol=1e-3)
    assert float(found["random_load"].values[0]) > 2
    pair = found["pair"].values.tolist()
    synergy = found["synergy"].values
    assert synergy[0, pair.index("z.0.h0 + z.0.h1")] == pytest.approx(-1, abs=1e-3)
    assert synergy[1, pair.index("z.0.h2 + z.0.h3")] == pytest.approx(1, abs=1e-3)
    assert synergy[2, pair.index("z.0.h4 + z.0.h5")] == pytest.approx(0, abs=1e-3)


def test_amounts_by_hand() -> None:
    np.testing.assert_allclose(
        amount(np.array([[1.0, 0, 0], [0.5, -0.5, 0], [1, 1, 1], [0, 0, 0]])), [1, 2, 3, 0]
    )


def test_it_comes_back_equal(superposed: superposed_heads.Result, tmp_path: object) -> None:
    assert Result.load(superposed.save(str(tmp_path) + "/r")) == superposed
    assert "200 of 200 pairs in 5 behaviours" in superposed.shapes()[0].caption


def test_bad_input() -> None:
    case = head_superposition.build("two_heads")
    assert case.pairs is not None
    with pytest.raises(InputError, match="none at place 40"):
        superposed_heads.run(case.model, case.pairs, Config(place=40))
    with pytest.raises(InputError, match="two are needed"):
        superposed_heads.run(case.model, case.pairs.rows([0]), Config())
    with pytest.raises(InputError, match="different heads"):
        superposed_heads.run(case.model, case.pairs, Config(heads=("z.0.h0", "z.0.h0")))
    with pytest.raises(InputError, match="expected 2 to 3 different heads"):
        superposed_heads.run(families.model("gpt2"), random_pairs(), Config(most=3))
