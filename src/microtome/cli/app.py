"""What can be typed after `microtome`? The commands in order, and how an error is told.

A command is a file here with a function of the same name. It imports what it needs inside the function, so that
`microtome --help` stays quick.
"""

from importlib import import_module
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from typer.core import TyperGroup

import microtome
from microtome.core.errors import MicrotomeError

COMMANDS: Final = (
    "study",
    "run",
    "show",
    "harvest",
    "units",
    "methods",
    "tasks",
    "testbeds",
    "grade",
    "train",
    "convert",
)


class Commands(TyperGroup):
    """Tells an error of ours in one red line and ends with code 2; `--debug` shows where it was raised."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MicrotomeError as error:
            if ctx.params.get("debug"):
                raise
            Console(stderr=True, soft_wrap=True).print(
                f"error: {error}", style="bold red", markup=False, highlight=False
            )
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=Commands,
    help="A decompiler with a proof-reader for neural networks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> bool:
    if wanted:
        Console().print(f"microtome {microtome.__version__}", highlight=False)
        raise typer.Exit
    return wanted


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before the command."""


for _name in COMMANDS:
    app.command(_name)(getattr(import_module(f"microtome.cli.{_name}"), _name))
