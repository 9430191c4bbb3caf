"""The checklist: each rule is followed or broken by what was done, and chance alone is not called significant."""

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.patching import protocol
from microtome.patching.contrast import Contrast

FIELDS = "clean corrupt mask answers wrong slots texts corrupt_texts token_strings task seed".split()


@pytest.fixture
def check(models: Callable[[str], Model], pairs: Pairs) -> Callable[..., dict[str, protocol.Item]]:
    def checked(
        metric: str = "logit-difference",
        directions: tuple[str, ...] = ("denoise", "noise"),
        baseline: tuple[str, ...] = ("patch",),
        tested: int = 10,
        percentiles: tuple[float, ...] = (50.0,),
        **changed: object,
    ) -> dict[str, protocol.Item]:
        data = Pairs(**{name: getattr(pairs, name) for name in FIELDS} | changed)
        contrast = Contrast.of(models("gpt2"), data, metric, [])
        found = protocol.checklist(contrast, directions, baseline, tested, np.array(percentiles))
        return {item.rule: item for item in found}

    return checked


def test_what_follows_the_protocol(check: Callable[..., dict[str, protocol.Item]]) -> None:
    found = check()
    assert {rule for rule, item in found.items() if item.status == "followed"} == set(found) - {"pair choice"}
    assert len(found) == 7


@pytest.mark.parametrize(
    ("done", "rule", "told"),
    [
        ({"seed": None}, "sample", "6 pairs without a seed"),
        ({"directions": ("denoise",)}, "direction", "denoise shows sufficiency alone"),
        ({"directions": ("ablate",)}, "direction", "ablate shows necessity alone"),
        ({"metric": "probability"}, "metric", "probability saturates"),
        ({"metric": "rank"}, "metric", "rank saturates or is a count"),
        ({"baseline": ("mean", "zero")}, "baseline", "zero puts in values that no prompt gives"),
        ({"percentiles": (3.0, 99.5, float("nan"))}, "off-distribution", "1 of 2 measured distances"),
    ],
)
def test_what_breaks_it(
    check: Callable[..., dict[str, protocol.Item]], done: dict[str, object], rule: str, told: str
) -> None:
    found = check(**done)
    assert found[rule].status == "broken"
    assert told in found[rule].remark


def test_pairs_that_are_the_same_break_it(
    check: Callable[..., dict[str, protocol.Item]], pairs: Pairs
) -> None:
    item = check(corrupt=pairs.clean)["pair choice"]
    assert item.status == "broken"
    assert item.remark.startswith("6 pairs do not differ at all")


def test_pairs_that_the_metric_does_not_tell_apart_break_it(
    check: Callable[..., dict[str, protocol.Item]],
) -> None:
    item = check()["pair choice"]  # random weights prefer no answer
    assert item.status == "broken"
    assert "does not tell clean from corrupt" in item.remark
    assert "2.0 of 7.0 tokens differ" in item.remark


def test_what_does_not_apply(check: Callable[..., dict[str, protocol.Item]]) -> None:
    found = check(tested=0, percentiles=(float("nan"),))
    assert found["multiple comparisons"].status == found["off-distribution"].status == "does not apply"


def test_chance_is_rarely_significant() -> None:
    """Under no effect anywhere, any discovery is false: it happens in at most 5 % of experiments (here of 400)."""
    random = np.random.default_rng(0)
    hits = sum(protocol.significant(random.normal(size=(50, 12))).any() for _ in range(400))
    assert hits <= 400 * 0.05 + 3 * np.sqrt(400 * 0.05 * 0.95)


def test_a_clear_effect_among_many_is_found() -> None:
    effects = np.random.default_rng(0).normal(size=(200, 12))
    effects[7] += 5
    assert np.flatnonzero(protocol.significant(effects)).tolist() == [7]


def test_degenerate_effects() -> None:
    effects = np.array([[0.0, 0, 0], [2, 2, 2], [np.nan] * 3])
    assert protocol.significant(effects).tolist() == [False, True, False]
    assert not protocol.significant(np.ones((3, 1))).any()
    assert protocol.significant(np.zeros((0, 5))).shape == (0,)


def test_the_table_says_what_was_stored() -> None:
    items = (protocol.Item("one", "followed", "so"), protocol.Item("two", "broken", "not so"))
    table = protocol.table(xr.Dataset(protocol.stored(items)))
    assert table.rows == (("one", "followed", "so"), ("two", "broken", "not so"))
    assert table.caption.startswith("1 of 2 rules broken")
