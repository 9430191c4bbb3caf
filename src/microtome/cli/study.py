"""`microtome study [MODEL]`: the main job, from a model to an account of how it does its tasks."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def study(
    model: Annotated[str, typer.Argument(help="Bundled model, folder, or hub name.")] = "fruitfly",
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task", help="Task by name, or a .json/.toml file; may be repeated. Default: all that suit."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the study; default study/MODEL.")
    ] = None,
    prompts: Annotated[
        int, typer.Option("-n", "--prompts", min=4, help="Pairs for finding, for each task.")
    ] = 32,
    held_out: Annotated[int, typer.Option(min=4, help="Held-out pairs, for each task.")] = 32,
    target: Annotated[float, typer.Option(help="Share of the behaviour that a circuit must keep.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Of prompts and controls.")] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew; an earlier study is set aside.")
    ] = False,
) -> None:
    """Explain how a model does its tasks, and test the explanation."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from microtome.core.errors import InputError
    from microtome.data import tasks
    from microtome.models.load import load
    from microtome.store.study_folder import StudyFolder
    from microtome.studies import study as studies
    from microtome.studies.report import report, summary
    from microtome.view.terminal import terminal

    console = Console()
    chosen = [
        tasks.Task.from_file(name) if Path(name).suffix in (".json", ".toml") else tasks.get(name)
        for name in task or tasks.names()
    ]
    if len({one.name for one in chosen}) != len(chosen):
        raise InputError("two of the tasks have the same name; name each task once")
    config = studies.Config.read({"prompts": prompts, "held_out": held_out, "target": target, "seed": seed})
    loaded = load(model)
    folder_path = out or Path("study") / loaded.name
    console.print(f"{loaded!r}", highlight=False)
    with StudyFolder.open(folder_path, studies.identity(loaded, chosen, config), fresh=fresh) as folder:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed} of {task.total}"),
        )
        try:
            with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
                shown = bar.add_task("", total=len(chosen))

                def progress(what: str, done: int, total: int) -> None:
                    bar.update(shown, description=what, completed=done, total=total)

                account = studies.study(loaded, chosen, folder, config, progress)
        except KeyboardInterrupt:
            console.print(
                f"interrupted; what is done is in {folder_path}, and the same command goes on from there"
            )
            raise typer.Exit(130) from None
        page = folder.write_text("report.html", report(account))
    for shape in summary(account):
        console.print(terminal(shape))
    for one in account.tasks:
        if one.refused:
            console.print(f"{one.task.name} was not studied: {one.refused}", highlight=False)
    console.print(f"\nThe report: {page}", highlight=False, soft_wrap=True)
