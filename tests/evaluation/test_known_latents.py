"""Units that tell a latent score 1 on held-out rows, those that know nothing chance; what is split needs all parts."""

import pytest
import torch
from torch import Tensor

from microtome.core.errors import InputError
from microtome.evaluation.known_latents import binary, f1, known_latents

ROWS = 2000


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


LATENT = (random(ROWS) < 0.1).float()


def test_a_unit_that_knows_is_found_with_its_sign_and_threshold() -> None:
    codes = random(ROWS, 20, seed=1)
    codes[:, 7] = 0.5 - LATENT + 0.01 * random(ROWS, seed=2)
    found = known_latents(codes - 0.3, {"it": LATENT})
    assert (found.unit.tolist(), found.sign.tolist()) == ([7], [-1])
    assert float(found.best_unit) == 1.0
    assert found.split.tolist() == [1]


def test_any_cut_between_two_values_may_be_the_best() -> None:
    """The 60 largest of a unit's values are true: of a list of shares (1, 2, 5 per cent) none would do."""
    value = random(ROWS, seed=6)
    latent = (value > value.sort(descending=True).values[60]).float()
    for codes in (value, -value, value.clamp_min(0.5) - 0.5, value * 1e4 - 1000.0):
        found = known_latents(codes[:, None], {"it": latent})
        assert float(found.best_unit) > 0.93  # a cut may fall a value beside the one of the other half
    assert float(known_latents(torch.ones(ROWS, 1), {"it": latent}).best_unit) < 0.1


def test_units_that_know_nothing_score_no_better_than_always_true() -> None:
    found = known_latents(random(ROWS, 20, seed=1), {"it": LATENT})
    share = float(LATENT.mean())
    assert float(found.chance) == pytest.approx(2 * share / (1 + share), abs=0.03)
    assert float(found.best_unit) < float(found.chance) + 0.05
    assert float(found.best_k.max()) < float(found.chance) + 0.1


def test_a_latent_split_among_four_units_needs_the_four() -> None:
    which = (random(ROWS, seed=3) * 4).long()
    codes = torch.zeros(ROWS, 30)
    codes[torch.arange(ROWS), which] = LATENT
    found = known_latents(codes, {"it": LATENT}, ks=(1, 2, 4, 8))
    assert found.best_k[0, :2].max() < 0.85
    assert float(found.best_k[0, 2]) == 1.0
    assert found.split.tolist() == [4]
    # A quarter of the true rows with nothing wrong: precision 1, recall 1/4.
    assert float(found.best_unit) == pytest.approx(0.4, abs=0.12)


def test_nothing_is_chosen_on_the_rows_that_are_scored() -> None:
    """With as many units as rows some fit the first half by luck; the second half does not know of it."""
    noise = (random(400, 2000, seed=4) < 0.1).float()
    latent = (random(400, seed=5) < 0.1).float()
    found = known_latents(noise, {"it": latent}, ks=(1,))
    assert float(found.best_unit) < 0.45


def test_rows_of_one_text_are_on_one_side() -> None:
    """Units that know each text by heart tell its latent in the text's other rows, and nothing of other texts."""
    text = torch.arange(ROWS) // 20
    latent = (random(100, seed=7) < 0.3).float()[text]
    codes = torch.nn.functional.one_hot(text).float()
    learnt = known_latents(codes, {"it": latent}, ks=(64,))
    assert float(learnt.best_k) > 0.8
    apart = known_latents(codes, {"it": latent}, ks=(64,), text=text + 5)
    assert float(apart.best_k) <= float(apart.chance) + 1e-6
    assert apart.rows == ROWS


def test_labels_become_latents_and_what_is_undefined_is_left_out() -> None:
    labels = {
        "yes": torch.tensor([0, 1, -1, 1]),
        "kind": torch.tensor([2, 0, 1, -1]),
        "size": torch.arange(100)[:4].float(),
        "same": torch.ones(4),
    }
    found = binary(labels, most=3)
    assert found["yes"].isnan().tolist() == [False, False, True, False]
    assert found["kind=2"].tolist()[:3] == [1.0, 0.0, 0.0]
    assert found["size above its median"].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert sorted(found) == ["kind=0", "kind=1", "kind=2", "size above its median", "yes"]
    unknown = LATENT.clone()
    unknown[::3] = float("nan")
    codes = LATENT[:, None].clone()
    codes[::3] = random(len(codes[::3]), 1)  # wrong, where nobody knows
    assert float(known_latents(codes, {"it": unknown}).best_unit) == 1.0


def test_f1_is_that_of_counting() -> None:
    told, real = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([1, 0, 1, 0]).bool()
    assert float(f1(told, real, torch.ones(4).bool())) == 0.5


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(InputError, match="none of 1 latents"):
        known_latents(random(ROWS, 3), {"never": torch.zeros(ROWS)})
    with pytest.raises(InputError, match="for the same rows"):
        known_latents(random(10, 3), {"it": LATENT})
    with pytest.raises(InputError, match="of the same rows"):
        binary({"one": LATENT, "other": LATENT[:5]})
    with_rare = known_latents(LATENT[:, None], {"it": LATENT, "rare": torch.zeros(ROWS)})
    assert with_rare.skipped == ("rare",)
    assert len(with_rare.table().rows) == 1
