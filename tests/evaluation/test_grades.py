"""Grades put together: means, intervals, verdicts, what fell, and a file that is read back equal or refused."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from microtome.core.errors import StoreError
from microtome.evaluation.grades import Grade, Grades, Trouble

ONE = Grade(
    "finder", "bed/a", 0, "nodes, AUROC", 0.9, 0.5, 0.1, 0.7, 0.5, of="2 true of 8", passes=3, seconds=1.5
)


def grades(*values: tuple[str, str, int, float, float | None]) -> Grades:
    return Grades(
        tuple(
            replace(ONE, method=method, case=f"bed/{case}", seed=seed, value=value, control=control)
            for method, case, seed, value, control in values
        )
    )


def test_a_standing_is_the_mean_over_cases_and_seeds() -> None:
    found = grades(("m", "a", 0, 1.0, 0.5), ("m", "a", 1, 0.8, 0.4), ("m", "b", 0, 0.9, None))
    (one,) = found.standings()
    assert (one.cases, one.grades, one.testbed) == (2, 3, "bed")
    assert one.value == pytest.approx(0.9)
    assert one.control == pytest.approx(0.45)
    half = 4.302653 * 0.1 / math.sqrt(3)  # Student's t with two degrees of freedom
    assert one.interval == pytest.approx((0.9 - half, 0.9 + half), abs=1e-5)
    # Two cases are two draws of luck, however many seeds each has.
    assert one.limit == pytest.approx(0.5 + 2.3263 * 0.1 / math.sqrt(2), abs=1e-4)


@pytest.mark.parametrize(
    ("value", "limit", "control", "verdict"),
    [
        (0.95, 0.7, 0.5, "finds it"),
        (0.6, 0.7, 0.5, "no better than luck"),
        (1.0, 1.0, 0.5, "too few to tell"),
        (0.8, 0.7, 0.75, "fails its control"),
        (1.0, 0.7, None, "finds it"),
    ],
)
def test_verdicts_of_a_single_grade(value: float, limit: float, control: float | None, verdict: str) -> None:
    (one,) = Grades((replace(ONE, value=value, limit=limit, control=control),)).standings()
    assert one.verdict == verdict


def test_a_control_above_luck_is_forgiven_where_the_score_is_surely_above_it() -> None:
    sure = grades(*(("m", case, 0, 1.0, 0.75 + n / 100) for n, case in enumerate("abcdef")))
    assert sure.standings()[0].verdict == "finds it"
    unsure = grades(
        *(("m", case, 0, 1.0, control) for case, control in zip("abcdef", (0.2, 1, 1, 1, 1, 1), strict=True))
    )
    assert unsure.standings()[0].verdict == "fails its control"
    few = grades(("m", "a", 0, 1.0, 0.75), ("m", "b", 0, 1.0, 0.75))  # 1.96 · √2 · 0.1 / √2 = 0.196 < 0.25
    assert few.standings()[0].verdict == "finds it"


def test_methods_are_compared_on_what_both_have() -> None:
    found = grades(
        ("good", "a", 0, 1.0, 0.5), ("good", "b", 0, 1.0, 0.5), ("good", "c", 0, 0.9, 0.5),
        ("near", "a", 0, 1.0, 0.5), ("near", "b", 0, 0.9, 0.5), ("near", "c", 0, 0.95, 0.5),
        ("far", "a", 0, 0.5, 0.5), ("far", "b", 0, 0.51, 0.5), ("far", "c", 0, 0.4, 0.5),
        ("once", "a", 0, 0.7, 0.5),
        ("else", "d", 0, 0.6, 0.5),
    )  # fmt: skip
    beside = {one.method: one.beside for one in found.standings()}
    assert beside["good"] == "best"
    assert beside["near"].endswith("≈")
    assert beside["far"] == "-0.50"
    assert beside["once"] == "-0.30"
    assert beside["else"] == "no case in common"
    assert [one.method for one in found.standings()] == ["good", "near", "once", "else", "far"]


def test_held_out_scores_stand_in_a_table_of_their_own() -> None:
    found = Grades((ONE, replace(ONE, score="nodes, average precision", held_out=True)))
    assert [one.score for one in found.standings()] == ["nodes, AUROC"]
    assert [one.score for one in found.standings(held_out=True)] == ["nodes, average precision"]
    assert [one.title for one in found.tables(held_out=True)] == ["bed: nodes, average precision"]
    assert len(found.tables(brief=True)[0].columns) < len(found.tables()[0].columns)


def test_what_fell() -> None:
    before = grades(
        ("m", "a", 0, 0.9, 0.5), ("m", "b", 0, 0.9, 0.5), ("m", "c", 0, 0.9, 0.5), ("m", "d", 0, 0.9, 0.5)
    )
    now = grades(("m", "a", 0, 0.89, 0.5), ("m", "b", 0, 0.8, 0.5), ("m", "c", 0, 0.9, 0.9)).with_more(
        [Trouble("m", "bed/d", 0, "it broke")]
    )
    assert now.falls(before) == (
        "m on bed/b, seed 0, nodes, AUROC: was 0.900, is 0.800",
        "m on bed/c, seed 0, nodes, AUROC: its control was 0.500, is 0.900",
        "m on bed/d, seed 0, nodes, AUROC: was 0.900, now there is none (it broke)",
    )
    assert before.falls(before) == ()
    assert grades(("m", "a", 0, 0.9, 0.5)).falls(before) == ()  # what was not run again did not fall


def test_newer_runs_stand_in_place_of_older_ones() -> None:
    before = grades(("m", "a", 0, 0.9, 0.5), ("m", "b", 0, 0.9, 0.5)).with_more(
        [Trouble("m", "bed/c", 0, "it broke")]
    )
    after = before.with_newer(grades(("m", "b", 0, 0.7, 0.5), ("m", "c", 0, 0.6, 0.5)))
    assert [(one.case, one.value) for one in after.grades] == [("bed/a", 0.9), ("bed/b", 0.7), ("bed/c", 0.6)]
    assert after.troubles == ()
    assert before.with_newer(before) == before


def test_what_moves_elsewhere_is_compared_no_more_closely_than_that() -> None:
    here = grades(("m", "a", 0, 0.9, 0.5), ("m", "b", 0, 0.9, 0.5), ("m", "c", 0, 0.9, 0.5))
    known = here.elsewhere(grades(("m", "a", 0, 0.95, 0.5), ("m", "b", 0, 0.9, 0.4)))
    assert [one.moved for one in known.grades] == pytest.approx([0.05, 0.1, 0.0])
    assert known.elsewhere(here) == known  # what was known stays
    assert [one.moved for one in known.elsewhere(here).grades] == [one.moved for one in known.grades]
    lower = grades(("m", "a", 0, 0.81, 0.5), ("m", "b", 0, 0.69, 0.5), ("m", "c", 0, 0.81, 0.5))
    fell = lower.falls(known)
    assert [one.partition(",")[0] for one in fell] == ["m on bed/b", "m on bed/c"]


def test_read_back_equal(tmp_path: Path) -> None:
    found = grades(("m", "b", 1, 0.9, None), ("m", "a", 0, 1 / 3, 0.5)).with_more(
        [Trouble("", "bed/z", 0, "no truth")]
    )
    path = tmp_path / "deep" / "grades.json"
    found.save(path)
    again = Grades.load(path)
    again.save(tmp_path / "again.json")
    assert path.read_bytes() == (tmp_path / "again.json").read_bytes()
    assert again.troubles == found.troubles
    assert again.done == found.done == {("m", "bed/a", 0), ("m", "bed/b", 1), ("", "bed/z", 0)}
    assert again.falls(found, least=1e-5) == ()


@pytest.mark.parametrize(
    "content", ["", "{}", '{"format": "x"}', '{"format": "microtome.grades", "grades": [1]}']
)
def test_foreign_files_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(StoreError, match="holds no grades"):
        Grades.load(tmp_path / "x.json")
    with pytest.raises(StoreError):
        Grades.load(tmp_path / "absent.json")


def test_nothing_graded_is_an_empty_table() -> None:
    assert Grades().tables() == ()
    assert Grades().told().startswith("0 runs on 0 cases")
