"""`microtome grade`: which methods find what is known to be there, and which say it of anything?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microtome.evaluation.grader import Run
    from microtome.evaluation.grades import Grades


def grade(
    methods: Annotated[
        list[str] | None, typer.Argument(help="Methods; default: all that claim something.")
    ] = None,
    testbeds: Annotated[
        list[str] | None,
        typer.Option("--testbed", "-t", help="A testbed, or a case as TESTBED/CASE; repeat for more."),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="How many seeds of each case.", min=1)] = 1,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the methods, as name=value.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            "--json",
            help="Write the grades here after each case; grades that the file has are not taken again.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write them as one self-contained page.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="A file of earlier grades; any that fell ends with code 1."),
    ] = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Only a case of each testbed, of those that were quick in --against."),
    ] = False,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Show the scores that are kept out of the usual table.")
    ] = False,
) -> None:
    """Run methods on networks whose answer is known, beside networks with random weights."""
    from rich.console import Console

    from microtome.cli.run import read_settings
    from microtome.core.errors import InputError
    from microtome.evaluation.grader import plan, quick
    from microtome.evaluation.grades import Grades
    from microtome.view.terminal import terminal

    console = Console()
    before = None if against is None else Grades.load(against)
    if fast and before is None:
        raise InputError("--fast takes from earlier grades what was quick; give them with --against")
    found = Grades.load(json) if json is not None and json.exists() else Grades()
    runs = plan(methods or (), testbeds or (), seeds, found.graded)
    if fast and before is not None:
        runs = quick(runs, before)
    found = found.without_troubles((run.case, run.seed) for run in runs)
    found, stopped = _graded(found, runs, read_settings(settings or []), json)
    for shape in (*found.tables(held_out, brief=True), *([found.trouble()] if found.troubles else [])):
        console.print(terminal(shape))
    console.print(found.told(), highlight=False)
    if html is not None:
        _page(html, found)
    if stopped:
        console.print("Stopped; the table has what was done until then.", style="bold")
        raise typer.Exit(130)
    if before is not None:
        falls = found.falls(before)
        for fall in falls:
            console.print(f"fell: {fall}", style="bold red", markup=False, highlight=False)
        console.print(f"{len(falls)} grades fell, compared with {against}.", highlight=False)
        if falls:
            raise typer.Exit(1)


def _graded(
    found: "Grades", runs: "Sequence[Run]", settings: dict[str, object], path: Path | None
) -> tuple["Grades", bool]:
    """Grade as planned, writing after each case. Ctrl-C keeps what is done."""
    from rich.console import Console
    from rich.progress import Progress

    from microtome.evaluation.grader import grade as grade_runs

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(runs))
        try:
            for run in runs:
                progress.update(bar, description=f"{run.case}, seed {run.seed}")
                found = found.with_more(grade_runs([run], settings))
                if path is not None:
                    found.save(path)
                progress.advance(bar)
        except KeyboardInterrupt:
            return found, True
    return found, False


def _page(path: Path, found: "Grades") -> None:
    from microtome.evaluation.grade_overview import overview
    from microtome.store.whole_file import write_whole
    from microtome.view.page import Section, page

    lead = (
        "Each method was run on networks whose inner workings are known, and its answers compared with the key; "
        "then on the same networks with random weights, where there is nothing to find.",
        found.told(),
    )
    sections = [Section("At a glance", shapes=(overview(found),))] if found.grades else []
    for testbed in dict.fromkeys(one.testbed for one in found.standings()):
        tables, held = (
            tuple(one for one in found.tables(held_out) if one.title.startswith(f"{testbed}: "))
            for held_out in (False, True)
        )
        more = (
            Section("Held out", ("Other scores of the same answers, by which no method was tuned.",), held),
        )
        sections.append(Section(testbed, shapes=tables, sections=more if held else ()))
    if found.troubles:
        sections.append(Section("What came to nothing", shapes=(found.trouble(),)))
    write_whole(path, page("Methods against answer keys", sections, lead).encode())
