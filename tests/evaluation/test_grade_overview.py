"""The picture of all grades: what is found, what is not, and what nobody could tell."""

import numpy as np

from microtome.evaluation.grade_overview import overview
from microtome.evaluation.grades import Grade, Grades


def grade(method: str, case: str, score: str, value: float, limit: float, control: float = 0.0) -> Grade:
    return Grade(method, case, 0, score, value, 0.1, 0.1, limit, control)


def test_shares_of_scores_that_find_it() -> None:
    found = Grades(
        (
            grade("m", "bed/a", "nodes", 0.9, 0.5),
            grade("m", "bed/a", "edges", 0.4, 0.5),
            grade("m", "other/a", "nodes", 1.0, 1.0),
            grade("n", "other/a", "nodes", 0.9, 0.5, control=0.9),
            grade("n", "bed/a", "edges", 0.9, 0.5),
        )
    )
    shown = overview(found)
    assert shown.row_labels == ("m", "n")
    assert shown.column_labels == ("bed", "other")
    assert np.array_equal(shown.values, [[0.5, np.nan], [1.0, 0.0]], equal_nan=True)


def test_nothing_graded_is_an_empty_picture() -> None:
    assert overview(Grades()).values.shape == (0, 0)
