"""What is there to see of a unit? How often and how strongly it is on, on which texts: its strongest and others.

Shapes, for a terminal, a notebook or a page. Beside the strongest examples stand random ones from each tenth of its
values, because the strongest alone make most units look cleaner than they are. A unit that goes as far below zero as
above it, or half as far, has two ends; both are shown.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from microtome.core.errors import InputError
from microtome.core.shapes import Curve, Shape, Table
from microtome.store.unit_pairs import pairs
from microtome.store.unit_store import OUTSIDE, Contexts, Entries, UnitStore


def unit_page(
    store: UnitStore, unit: int, *, top: int = 10, each: int = 1, seed: int = 0
) -> tuple[Shape, ...]:
    """Its histogram, its strongest examples on either side of zero, and `each` random ones of each tenth.

    Raises `InputError` for a unit that is not there.
    """
    count, seen = len(store.entries(unit)), store.manifest.seen
    name = f"{store.folder.name}.u{unit}"
    if not count:
        return (Table(name, ("",), (("never on",),), caption=f"at none of {seen} tokens"),)
    counts, edges = store.histogram(unit)
    shown: list[Shape] = []
    if len(counts) > 1:
        middle = ((edges[:-1] + edges[1:]) / 2).astype(np.float64)
        heights = counts.astype(np.float64)[None]
        caption = f"on at {count} of {seen} tokens ({count / seen:.3%}); zeros are not drawn"
        shown.append(
            Curve(f"{name}: its values", middle, heights, ("tokens",), "value", "tokens", caption=caption)
        )
    largest, smallest = store.top(unit, top), store.bottom(unit, top)
    shown.append(_examples(store, unit, f"{name}: its {len(largest)} largest values", largest))
    if smallest.value[0] < 0 and -2 * smallest.value[0] >= largest.value[0]:
        shown.append(_examples(store, unit, f"{name}: its {len(smallest)} smallest values", smallest))
    some = Entries.joined(store.quantiles(unit, 10, each, seed))
    return (
        *shown,
        _examples(store, unit, f"{name}: {each} random of each tenth of its values, seed {seed}", some),
    )


def _examples(store: UnitStore, unit: int, title: str, entries: Entries) -> Table:
    contexts = store.contexts(unit, entries.token)
    columns: dict[str, list[Any]] = {"value": entries.value.tolist()}
    caption = "» « mark the token where it is on"
    if entries.gradient is not None:
        columns["attribution"] = entries.attribution.tolist()
        caption += (
            "; attribution: the value times the slope of the metric harvested, such as the loss, along it"
        )
    columns |= {"document": contexts.document.tolist(), "token": contexts.place.tolist()}
    columns["text"] = [_text(store, contexts, number) for number in range(len(entries))]
    return Table(title, tuple(columns), tuple(zip(*columns.values(), strict=True)), caption)


def _text(store: UnitStore, contexts: Contexts, number: int) -> str:
    """A context in words, the example's own token marked."""
    words = [_word(store, token) for token in contexts.ids[number].tolist()]
    words[contexts.before] = f"»{words[contexts.before]}«"
    return "".join(words)


def _word(store: UnitStore, token: int) -> str:
    if token == OUTSIDE:
        return ""
    return f" {token}" if store.strings is None else store.strings[token]


def unit_partners(store: UnitStore, unit: int, n: int = 10) -> Table:
    """The units whose values go most with a unit's, in the same direction or in the opposite one.

    Raises `InputError` for a unit that is not there.
    """
    found = pairs(store, [unit])
    together, correlation = found.together[0], found.correlation[0]
    strength = np.abs(correlation)
    strength[unit] = np.nan
    order = np.argsort(-strength, kind="stable")  # NaN last
    rows = tuple(
        (other, float(correlation[other]), int(together[other]), int(store.counts[other]))
        for other in order[: min(n, np.isfinite(strength).sum())].tolist()
    )
    caption = (
        f"{unit} is on at {store.counts[unit]} of {store.manifest.seen} tokens; where both are off counts too, and of "
        "few tokens together little follows"
    )
    columns = ("unit", "correlation", "tokens together", "its tokens")
    return Table(f"{store.folder.name}.u{unit}: what goes with it", columns, rows, caption=caption)


def unit_list(store: UnitStore, order: str = "density", n: int = 20) -> Table:
    """The first units in an order, with statistics and the tokens at which each is strongest.

    Raises `InputError` for an order other than density, largest, number.
    """
    counts = store.counts
    orders: dict[str, NDArray[Any]] = {
        "density": -counts,
        "largest": -store.largest,
        "number": np.arange(store.n_units),
    }
    if order not in orders:
        raise InputError(f"units are ordered by {', '.join(orders)}; got {order!r}")
    rows = []
    for unit in np.argsort(orders[order], kind="stable")[:n].tolist():
        contexts = store.contexts(unit, store.top(unit, 6).token, 0, 0)
        words = " ".join(repr(_word(store, token)) for token in contexts.ids[:, 0].tolist())
        value = float(store.largest[unit]) if counts[unit] else None
        rows.append((unit, float(store.densities[unit]), value, words))
    never = int((counts == 0).sum())
    seen = store.manifest.seen
    caption = (
        f"{len(rows)} of {store.n_units} units by {order}; {never} are never on; "
        f"at each of {seen} tokens {counts.sum() / max(seen, 1):.4g} are on"
    )
    return Table(
        store.folder.name, ("unit", "density", "largest", "strongest at"), tuple(rows), caption=caption
    )
