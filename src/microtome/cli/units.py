"""`microtome units STORE [UNIT]`: what units of a basis respond to, from a harvest, without the model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def units(
    store: Annotated[
        Path, typer.Argument(help="Folder of a basis in a harvest, or of a harvest with one basis.")
    ],
    unit: Annotated[int | None, typer.Argument(help="Which unit; left out, all are listed.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many examples, or how many units.")] = 10,
    order: Annotated[str, typer.Option(help="How units are listed: density, largest or number.")] = "density",
    seed: Annotated[int, typer.Option("--seed", "-s", help="Of the random examples.")] = 0,
) -> None:
    """Show what a unit responds to, or list the units of a harvest."""
    from microtome.core.errors import InputError
    from microtome.store.unit_files import MANIFEST
    from microtome.store.unit_page import unit_list, unit_page
    from microtome.store.unit_store import UnitStore
    from microtome.view.terminal import terminal

    folder = store
    if not (store / MANIFEST).exists():
        found = sorted(path.parent for path in store.glob(f"*/{MANIFEST}"))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise InputError(f"{store} holds units of several bases; name one: {names}")
        folder = found[0] if found else store
    opened = UnitStore.open(folder)
    shapes = (unit_list(opened, order, n),) if unit is None else unit_page(opened, unit, top=n, seed=seed)
    console = Console()
    for shape in shapes:
        console.print(terminal(shape))
