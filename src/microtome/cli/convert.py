"""`microtome convert FILE`: a dictionary in one library's format is written in another's."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def convert(
    path: Annotated[Path, typer.Argument(help="File or folder of the dictionary, as its format has it.")],
    into: Annotated[Path, typer.Argument(help="File or folder to write.")],
    source: Annotated[
        str,
        typer.Option(
            "--from",
            help="microtome, sae_lens, sparsify, dictionary_learning, gemma_scope, circuit_tracer or "
            "circuit_tracer_cross_layer.",
        ),
    ],
    target: Annotated[str, typer.Option("--to", help="The same.")] = "microtome",
    reads: Annotated[
        list[str] | None,
        typer.Option("--reads", help="Site it reads, where the file does not say; repeat for several."),
    ] = None,
    writes: Annotated[list[str] | None, typer.Option("--writes", help="Site it writes, likewise.")] = None,
) -> None:
    """Write a dictionary of another library as ours, or ours as theirs."""
    from microtome.core.errors import StoreError
    from microtome.dictionaries.convert import convert as converted

    if into.exists():
        raise StoreError(f"{into} is there already; name a file or folder that is not")
    converted(path, source, target, into, reads, writes)
    Console().print(f"{path} ({source}) is written as {into} ({target})", highlight=False)
