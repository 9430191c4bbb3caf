"""Which method may be trusted on which kind of network? All grades in one picture.

A row for each method, a column for each testbed: of the method's scores there, the share that finds what is there
(`Standing.verdict`); those too few to tell are left out, and a cell with none left is empty. Held-out scores do not
count. It misleads where it is read as an order of methods: cells rest on different cases and scores.
"""

import numpy as np

from microtome.core.shapes import Grid
from microtome.evaluation.grades import Grades


def overview(grades: Grades) -> Grid:
    """Methods by testbeds `[method, testbed]`: the share of scores that find it, 0 … 1; NaN where none can tell."""
    told: dict[tuple[str, str], list[bool]] = {}
    for one in grades.standings():
        if one.verdict != "too few to tell":
            told.setdefault((one.method, one.testbed), []).append(one.verdict == "finds it")
    methods = tuple(sorted({method for method, _ in told}))
    testbeds = tuple(sorted({testbed for _, testbed in told}))
    values = np.full((len(methods), len(testbeds)), np.nan)
    for (method, testbed), found in told.items():
        values[methods.index(method), testbeds.index(testbed)] = np.mean(found)
    return Grid(
        "what is found where",
        values,
        "method",
        methods,
        "testbed",
        testbeds,
        unit="share of scores",
        diverging=False,
        caption="of a method's scores on a testbed, the share that passes both luck and the control; hatched: not "
        "graded, or too few to tell",
    )
