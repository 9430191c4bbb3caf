"""Networks that learned a group: right on products they never saw, by the characters, and refused otherwise."""

import pytest
import torch

from microtome.core import plugins
from microtome.core.errors import InputError, TruthError
from microtome.testbeds.algorithmic import group_composition as groups


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.training)])
def test_unseen_products_are_right_and_characters_carry_most_of_the_logits(seed: int) -> None:
    case = groups.build("symmetric", seed)
    assert case.evidence[0].value >= 0.99
    shares = case.truth.quantities
    assert sum(shares.values()) > 0.5
    assert shares["character_share.1a"] == pytest.approx(
        0.0, abs=1e-6
    )  # constant over c, which no softmax sees

    # Negative control: random weights answer no better than one of 24, and no character stands out.
    twin = case.control.module
    with torch.no_grad():
        right = (twin(case.tokens).argmax(-1) == case.truth.labels["product"]).double().mean()
    assert right < 0.15
    assert sum(groups.representation_shares(twin, "symmetric").values()) < 0.05


def test_learned_and_unseen_pairs_are_all_pairs_once() -> None:
    learned, unseen = groups.split("dihedral", 3)
    both = torch.cat([learned, unseen])
    assert len(both) == 58**2 == len(both.unique(dim=0))
    assert len(learned) == round(0.8 * 58**2)
    again, _ = groups.split("dihedral", 3)
    assert torch.equal(learned, again)
    assert not torch.equal(learned, groups.split("dihedral", 4)[0])


def test_training_replays_and_too_little_of_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (groups.fit("cyclic", 5, steps=20) for _ in range(2))
    assert one[1].losses == two[1].losses
    assert all(torch.equal(a, b) for a, b in zip(one[0].parameters(), two[0].parameters(), strict=True))
    monkeypatch.setattr(groups, "STEPS", {"cyclic": 20})
    with pytest.raises(TruthError, match="share of unseen pairs answered right"):
        groups.build("cyclic")


def test_it_is_registered_and_other_groups_are_refused() -> None:
    assert plugins.load("testbeds", "group_composition") is groups
    with pytest.raises(InputError, match="symmetric, cyclic, dihedral"):
        groups.build("alternating")
    with pytest.raises(InputError):
        groups.table("sporadic")


@pytest.mark.training
@pytest.mark.parametrize("case", groups.cases())
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_group_is_learned_from_several_seeds(case: str, seed: int) -> None:
    assert groups.build(case, seed).evidence[0].value >= 0.99
