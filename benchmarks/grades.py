"""The committed grades: `python benchmarks/grades.py` writes `results/grades.md` from `results/grades.json`.

`microtome grade --json more.json …` grades; `python benchmarks/grades.py --newer more.json` takes what it found into
`results/grades.json`, in place of what stood there. `--elsewhere again.json`, graded on another machine or with other
kernels (`ATEN_CPU_CAPABILITY=default`), tells how far grades move with the last bits of sums; `make grade` compares no
more closely than that. All of it takes hours on one thread.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from microtome.core import plugins
from microtome.core.shapes import Table
from microtome.evaluation import grader
from microtome.evaluation.grades import Grades
from microtome.store.whole_file import write_whole

RESULTS = Path(__file__).parent / "results"


def markdown(table: Table) -> str:
    """A table as Markdown."""
    rows = [table.columns, ("---",) * len(table.columns), *table.rows]
    body = "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
    return f"### {table.title}\n\n{body}\n"


def main(
    newer: Annotated[list[Path] | None, typer.Option(help="Grades to take in.")] = None,
    elsewhere: Annotated[list[Path] | None, typer.Option(help="The same grades, taken elsewhere.")] = None,
) -> None:
    """Take grades in, leave out those with settings that are graded no longer, and write the page."""
    grades = Grades.load(RESULTS / "grades.json")
    for path in newer or ():
        grades = grades.with_newer(Grades.load(path))
    for path in elsewhere or ():
        grades = grades.elsewhere(Grades.load(path))
    variants = {
        name for method in plugins.names("methods") for name, _ in grader.variants(plugins.method(method))
    }
    grades = replace(grades, grades=tuple(one for one in grades.grades if one.method in variants))
    grades.save(RESULTS / "grades.json")
    seeded = len({grade.case for grade in grades.grades if grade.seed})
    ran = f"`microtome grade`, seed 0 of each case, and of {seeded} of them more seeds."
    told = ["# Methods against answer keys\n", f"{ran} {grades.told()}\n"]
    for held_out, heading in ((False, "Scores"), (True, "Held-out scores")):
        told += [f"## {heading}\n", *(markdown(table) for table in grades.tables(held_out))]
    told += ["## Runs that came to nothing\n", markdown(grades.trouble())]
    write_whole(RESULTS / "grades.md", ("\n".join(told)).encode())


if __name__ == "__main__":
    typer.run(main)
