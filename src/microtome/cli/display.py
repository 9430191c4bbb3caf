"""How do a menu and a card look in a terminal? Nothing here brings in torch, so that looking things up is quick."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from microtome.core.card import Card
from microtome.studies.catalog import Row, Suggestion


def menu(rows: Iterable[Row]) -> RenderableType:
    """A line for each method: its word, its question, its scope and its paper; what is broken says so."""
    table = _columns("method", "question", "scope", "reference")
    for row in rows:
        if row.card is None:
            table.add_row(Text(row.name, "red"), Text(row.problem, "red"), "", "")
        else:
            table.add_row(row.name, row.card.question, row.card.scope, row.card.reference)
    return table if table.row_count else Text("No methods are installed.")


def suggestions(found: Iterable[Suggestion]) -> RenderableType:
    """A line for each suggested method, with the words that speak for it."""
    table = _columns("method", "question", "scope", "speaks for it")
    for suggestion in found:
        card = suggestion.card
        table.add_row(card.name, card.question, card.scope, ", ".join(suggestion.because))
    return (
        table if table.row_count else Text("No method fits these words; `microtome methods` lists them all.")
    )


def card(told: Card) -> RenderableType:
    """A method on one page."""
    return Group(
        Text.assemble((told.title, "bold"), f"  {told.name}"),
        Text(told.question),
        Text(),
        *(
            Padding(Text(f"{number}. {step}"), (0, 0, 0, 2))
            for number, step in enumerate(told.steps, start=1)
        ),
        Text(),
        Text(f"Misleads: {told.misleads}"),
        Text(f"Needs: {told.needs}"),
        Text(f"Scope: {told.scope}"),
        Text(f"Reference: {told.reference}"),
    )


def tasks(rows: Iterable[tuple[str, str, str]]) -> RenderableType:
    """A line for each task: its word, its question, its paper."""
    table = _columns("task", "question", "reference")
    for row in rows:
        table.add_row(*row)
    return table


def _columns(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, title in enumerate(titles):
        table.add_column(title, no_wrap=number == 0, overflow="fold")
    return table
