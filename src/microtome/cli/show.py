"""What did a method say? Shows a saved result, and is how `run` shows a fresh one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from microtome.core.result import Result


def show(
    folder: Annotated[Path, typer.Argument(help="A folder that `microtome run --out` wrote.")],
    html: Annotated[
        Path | None, typer.Option("--html", help="Write it as one self-contained page, too.")
    ] = None,
) -> None:
    """Show a saved result."""
    from microtome.core.result import Result

    tell(Result.load(folder), html)


def tell(result: "Result", html: Path | None) -> None:
    """Print every shape of a result, then what it covers, its cost and caveats; write the page where asked for."""
    from rich.console import Console
    from rich.text import Text

    from microtome.view.terminal import terminal

    console = Console()
    for shape in result.shapes():
        console.print(terminal(shape), Text())
    console.print(Text(result.describe(), "dim"))
    if html is not None:
        write_page(result, html)
        console.print(Text(f"Page: {html}"))


def write_page(result: "Result", path: Path) -> None:
    """Write a result as one self-contained page. Raises `StoreError` where the file cannot be written."""
    from microtome.core.errors import StoreError
    from microtome.view.page import Section, page

    sections = (Section(result.method, (result.describe(),), result.shapes()),)
    text = page(f"{result.method} on {result.provenance.model or 'no model'}", sections)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}); give a file in a folder of yours"
        ) from error
