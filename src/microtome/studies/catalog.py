"""Which methods are there, and which one answers my question? The menu, read without importing a method.

1. The names and modules come from the entry points (installed metadata).
2. Each module's source is found on disk, without importing it or its parents, and its `card = Card(…)` literal is read
   off the syntax tree. A card that is no literal costs an import; a method that is broken keeps its row, and says so.
3. A question is matched to cards by its words, and by what they say of the taxonomy: "during training", "the whole
   model", "is it the cause of".
"""

import ast
import importlib.machinery
import importlib.util
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from microtome.core import plugins
from microtome.core.card import Card
from microtome.core.errors import PluginError


@dataclass(frozen=True)
class Row:
    """A line of the menu. `card` is `None` where it could not be read; then `problem` says why."""

    name: str
    module: str
    card: Card | None
    problem: str = ""


@dataclass(frozen=True)
class Suggestion:
    """A method that may answer a question, and the words that speak for it."""

    card: Card
    score: float
    because: tuple[str, ...]


def menu() -> tuple[Row, ...]:
    """Every registered method, by name."""
    return tuple(_row(name) for name in plugins.names("methods"))


def find(name: str) -> Card:
    """The card of one method. Raises `PluginError` where there is none, or where it cannot be read."""
    row = _row(plugins.entry("methods", name).name)
    if row.card is None:
        raise PluginError(f"the method {name!r} is broken: {row.problem}")
    return row.card


def suggest(question: str, cards: Iterable[Card] | None = None) -> tuple[Suggestion, ...]:
    """Methods for a question, best first; those for which nothing speaks are left out.

    A word in a card's name, title or question counts three, elsewhere on the card one; a phrase that settles an
    attribute of the taxonomy counts two for the methods that have it.
    """
    words = _words(question)
    found = []
    for card in cards if cards is not None else (row.card for row in menu() if row.card is not None):
        head = _words(f"{card.name} {card.title} {card.question}")
        body = _words(" ".join((*card.steps, card.misleads, card.reference)))
        traits = {
            attribute: phrases
            for attribute, phrases in _TRAITS.items()
            if attribute in (card.causal, card.phase, card.locality, card.comprehensiveness, card.needs)
        }
        matched = [a for a, phrases in traits.items() if any(p in question.lower() for p in phrases)]
        told, mentioned = sorted(words & head), sorted((words & body) - head)
        score = 3 * len(told) + len(mentioned) + 2 * len(matched)
        if score:
            found.append(Suggestion(card, score, (*told, *matched, *mentioned)))
    return tuple(sorted(found, key=lambda s: (-s.score, s.card.name)))


_TRAITS: Final = {
    "intervention": (
        "cause",
        "causal",
        "necessary",
        "sufficient",
        "ablat",
        "interven",
        "responsible",
        "what if",
    ),
    "observation": ("without running", "look at", "correlat", "attend", "inspect", "read off"),
    "during": ("during training", "while training", "when does it learn", "development"),
    "global": ("whole model", "in general", "all inputs", "any input", "everywhere"),
    "local": ("this prompt", "one prompt", "this input", "this example", "for this"),
    "comprehensive": ("everything", "fully explain", "whole network", "complete account"),
    "weights": ("from the weights", "weights alone", "without data", "without running"),
}

_IDLE: Final = frozenset(
    "a all an and any are at be by can could do does each for from give given has have how i in is it its me model "
    "models my network not of on one or so than that the their them then there these they this those to use used was "
    "what when where whether which who why will with without would".split()
)


def _words(text: str) -> set[str]:
    """Content words cut to their stems, roughly: heads → head, patching → patch, affects → affect."""
    words = re.findall(r"[a-z]+", text.lower())
    return {re.sub(r"(?<=[a-z]{3})(ings?|ions?|ed|es|s)$", "", word) for word in words if word not in _IDLE}


def _row(name: str) -> Row:
    try:
        module = plugins.entry("methods", name).value
        card = _card_of_source(module) or plugins.method(name).card
    except Exception as error:  # a stranger's module may fail in any way; the others must stay reachable
        return Row(name, "", None, f"{type(error).__name__}: {error}")
    return Row(name, module, card)


def _card_of_source(module: str) -> Card | None:
    """The card of a module whose card is one literal, else `None`."""
    source = _source(module)
    if source is None:
        return None
    for statement in ast.parse(source.read_bytes()).body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name("card")], value=ast.Call(ast.Name("Card"), [], told))
                | ast.AnnAssign(target=ast.Name("card"), value=ast.Call(ast.Name("Card"), [], told))
            ):
                pass
            case _:
                continue
        try:
            return Card(**{str(keyword.arg): ast.literal_eval(keyword.value) for keyword in told})
        except TypeError as error:
            raise PluginError(f"the card of {module} does not fit: {error}") from error
        except ValueError as error:
            if isinstance(error, PluginError):
                raise
            return None  # written with more than literals: importing the module will tell
    return None


def _source(module: str) -> Path | None:
    """Where a module's source lies. Unlike `importlib.util.find_spec`, imports no parent package."""
    first, *rest = module.split(".")
    spec = importlib.util.find_spec(first)
    name = first
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = f"{name}.{part}"
        spec = importlib.machinery.PathFinder.find_spec(name, list(spec.submodule_search_locations))
    if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
        return None
    return Path(spec.loader.path)
