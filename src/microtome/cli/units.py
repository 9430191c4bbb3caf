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
    partners: Annotated[
        bool, typer.Option("--partners", help="List the units that go with this one.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Of the random examples.")] = 0,
    label: Annotated[
        str | None, typer.Option("--label", help="Say what the unit is; kept with the harvest.")
    ] = None,
    tables: Annotated[
        Path | None, typer.Option("--tables", help="Write all units and entries here, as Parquet.")
    ] = None,
    author: Annotated[str, typer.Option("--author", help="Who says so.")] = "me",
) -> None:
    """Show what a unit responds to, or list the units of a harvest."""
    from microtome.core.errors import InputError
    from microtome.core.shapes import Shape
    from microtome.store.registry import Registry
    from microtome.store.unit_files import MANIFEST
    from microtome.store.unit_page import unit_list, unit_page, unit_partners
    from microtome.store.unit_store import UnitStore
    from microtome.store.unit_tables import write_tables
    from microtome.view.terminal import terminal

    if unit is None and (label is not None or partners):
        raise InputError(f"{'a label is' if label is not None else '--partners asks'} of one unit; name it")
    folder = store = store.resolve()
    if not (store / MANIFEST).exists():
        found = sorted(path.parent for path in store.glob(f"*/{MANIFEST}"))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise InputError(f"{store} holds units of several bases; name one: {names}")
        folder = found[0] if found else store
    opened = UnitStore.open(folder)
    if tables is not None:
        for path in write_tables(opened, tables):
            Console().print(f"written: {path}", highlight=False, soft_wrap=True)
        return
    shapes: tuple[Shape, ...]
    if unit is None:
        shapes = (unit_list(opened, order, n),)
    elif partners:
        shapes = (unit_partners(opened, unit, n),)
    else:
        shapes = unit_page(opened, unit, top=n, seed=seed)
    console = Console()
    for shape in shapes:
        console.print(terminal(shape))
    registry = folder.parent / "registry.sqlite"
    if unit is not None and (label is not None or registry.exists()):
        with Registry.open(registry) as opened_registry:
            if label is not None:
                opened_registry.label(folder.name, unit, label, author=author)
            for row in opened_registry.labels(folder.name, unit):
                console.print(f"{row['author']}, {row['date']}: {row['text']}", markup=False, highlight=False)
