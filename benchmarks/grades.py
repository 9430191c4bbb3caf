"""The committed grades as Markdown: `python benchmarks/grades.py > benchmarks/results/grades.md`.

`benchmarks/results/grades.json` is made by `microtome grade --json benchmarks/results/grades.json`, which takes about
half an hour on one thread; `make grade` takes some of it again and compares.
"""

from pathlib import Path

from microtome.core.shapes import Table
from microtome.evaluation.grades import Grades


def markdown(table: Table) -> str:
    """A table as Markdown."""
    rows = [table.columns, ("---",) * len(table.columns), *table.rows]
    body = "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
    return f"### {table.title}\n\n{body}\n"


def main() -> None:
    grades = Grades.load(Path(__file__).parent / "results" / "grades.json")
    print("# Methods against answer keys\n")
    print(
        "`microtome grade --json benchmarks/results/grades.json`, one seed of each case.", grades.told(), "\n"
    )
    for held_out, heading in ((False, "Scores"), (True, "Held-out scores")):
        print(f"## {heading}\n")
        for table in grades.tables(held_out):
            print(markdown(table))
    print("## Runs that came to nothing\n")
    print(markdown(grades.trouble()))


if __name__ == "__main__":
    main()
