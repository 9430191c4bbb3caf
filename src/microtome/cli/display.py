"""How do a menu and a card look in a terminal? Nothing here brings in torch, so that looking things up is quick."""

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from microtome.core.card import Card
from microtome.studies.catalog import Row, Suggestion


def menu(rows: Iterable[Row]) -> RenderableType:
    """Each method with its question, scope and paper; what is broken says so."""
    table = _list()
    for row in rows:
        if row.card is None:
            table.add_row(Text(row.name, "bold red"), Text(row.problem, "red"))
        else:
            table.add_row(row.name, _told(row.card.question, f"{row.card.scope}. {row.card.reference}"))
    return table if table.row_count else Text("No methods are installed.")


def suggestions(found: Iterable[Suggestion]) -> RenderableType:
    """Each suggested method, best first, with its question, scope and the words that speak for it."""
    table = _list()
    for suggestion in found:
        card = suggestion.card
        reasons = f"{card.scope}. Speaks for it: {', '.join(suggestion.because)}"
        table.add_row(card.name, _told(card.question, reasons))
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
    """Each task with its question and its paper."""
    table = _list()
    for name, question, reference in rows:
        table.add_row(name, _told(question, reference))
    return table


def _list() -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _told(question: str, small_print: str) -> Text:
    return Text.assemble(question, "\n", (small_print, "dim"))
