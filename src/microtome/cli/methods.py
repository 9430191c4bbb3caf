"""Which methods are there, and which one answers my question?"""

from typing import Annotated

import typer


def methods(
    name: Annotated[str | None, typer.Argument(help="Show the whole card of this method.")] = None,
    question: Annotated[
        str | None,
        typer.Option("--question", "-q", help="What you want to know, in words; the best fits come first."),
    ] = None,
) -> None:
    """List the methods with what each answers, or suggest some for a question."""
    from rich.console import Console

    from microtome.cli import display
    from microtome.studies import catalog

    console = Console()
    if name is not None:
        console.print(display.card(catalog.find(name)))
    elif question is not None:
        suggestions = catalog.suggest(question)
        console.print(display.suggestions(suggestions))
    else:
        console.print(display.menu(catalog.menu()))
