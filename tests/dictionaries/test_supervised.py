"""Directions of known attributes are found exactly where rows are sums of them; of a board, they tell the marks."""

import pytest
import torch
from torch import Tensor

from microtome.core.errors import InputError
from microtome.dictionaries.supervised import SupervisedDictionary, fit
from microtome.testbeds.others import board_game


def planted(seed: int = 0, tied: bool = False) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Rows made of a mean and a direction for each of two attributes, of 3 and 4 values; tied: they come together."""
    source = torch.Generator().manual_seed(seed)
    one = torch.randint(0, 3, (500,), generator=source)
    two = torch.randint(0, 4, (500,), generator=source)
    if tied:
        two = torch.where(torch.rand(500, generator=source) < 0.7, one, two)
    directions, mean = torch.randn(7, 12, generator=source), torch.randn(12, generator=source)
    return directions[one] + directions[3 + two] + mean, {"one": one, "two": two}, directions


def centred(directions: Tensor, shares: Tensor) -> Tensor:
    return directions - shares @ directions


@pytest.mark.parametrize("tied", [False, True])
def test_directions_are_found_up_to_what_is_shared(tied: bool) -> None:
    values, labels, true = planted(tied=tied)
    found = fit(values, labels, "resid_post.0", ridge=1e-9)
    for start, (name, count) in zip((0, 3), found.attributes.items(), strict=True):
        shares = torch.bincount(labels[name], minlength=count) / len(values)
        expected = centred(true[start : start + count], shares)
        torch.testing.assert_close(found.directions()[start : start + count], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.decode(found.codes_of(labels)), values, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.encode(values), found.codes_of(labels))
    assert found.labels[:4] == ("one=0", "one=1", "one=2", "two=0")


def test_means_mix_what_comes_together() -> None:
    values, labels, _ = planted(tied=True)
    left = {}
    for how in ("means", "together"):
        found = fit(values, labels, "resid_post.0", how)  # type: ignore[arg-type]
        left[how] = float((values - found.decode(found.codes_of(labels))).square().sum())
    assert left["together"] < left["means"] / 100
    # Of attributes that do not come together, means tell the same.
    values, labels, true = planted()
    near = fit(values, labels, "resid_post.0", "means").directions()[:3]
    expected = centred(true[:3], torch.bincount(labels["one"]) / len(values))
    assert float((near - expected).norm() / expected.norm()) < 0.2


def test_one_unit_of_each_attribute_is_on() -> None:
    values, labels, _ = planted()
    found = fit(values, labels, "resid_post.0")
    codes = found.encode(torch.randn(5, 6, 12, generator=torch.Generator().manual_seed(3)))
    assert codes.shape == (5, 6, 7)
    assert bool((codes[..., :3].sum(-1) == 1).all())
    assert bool((codes[..., 3:].sum(-1) == 1).all())
    assert torch.equal(found.direction(4), found.directions()[4])
    assert found.n_parameters == 7 * 12 * 2 + 12 + 7


def test_a_board_is_read_and_explained() -> None:
    case = board_game.build("tic_tac_toe")
    values = case.model.run(case.tokens, [board_game.SITE])[board_game.SITE]
    going = (case.truth.labels["square_0"] >= 0) & (torch.arange(values.shape[1]) > 0)
    rows = values[going]
    labels = {f"square_{i}": case.truth.labels[f"square_{i}"][going] for i in range(9)}
    half = len(rows) // 2
    found = fit(rows[:half], {name: given[:half] for name, given in labels.items()}, board_game.SITE)
    rest, told = rows[half:], found.codes_of({name: given[half:] for name, given in labels.items()})
    right = (found.encode(rest) * told).sum(-1).mean() / 9
    assert float(right) > 0.9
    left = (rest - found.decode(told)).square().sum() / (rest - rows[:half].mean(0)).square().sum()
    mixed = fit(rows[:half], {n: g[torch.randperm(half)] for n, g in labels.items()}, board_game.SITE)
    luck = (rest - mixed.decode(told)).square().sum() / (rest - rows[:half].mean(0)).square().sum()
    assert float(left) < 0.7 < 0.95 < float(luck)


def test_bad_input() -> None:
    values, labels, _ = planted()
    with pytest.raises(InputError, match="no labels"):
        fit(values, {}, "resid_post.0")
    with pytest.raises(InputError, match="of 500 rows, values of 499"):
        fit(values[:-1], labels, "resid_post.0")
    with pytest.raises(InputError, match="no row has one=1"):
        fit(values, {"one": labels["one"] * 2}, "resid_post.0")
    with pytest.raises(InputError, match="run from 0"):
        fit(values, {"one": labels["one"] - 1}, "resid_post.0")
    with pytest.raises(InputError, match="different numbers of rows"):
        fit(values, labels | {"two": labels["two"][:-1]}, "resid_post.0")
    found = fit(values, labels, "resid_post.0")
    with pytest.raises(InputError, match="no labels of two"):
        found.codes_of({"one": labels["one"]})
    with pytest.raises(InputError, match="8 values together; got 7"):
        SupervisedDictionary("z.0", {"a": 8}, values[:7], values[0], values[:7], values[:7, 0])
