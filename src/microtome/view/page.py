"""How do shapes become a report that opens anywhere? `page` writes one HTML file, `html` a piece for a notebook.

Both hold everything they need: style, script and data are inside, nothing is fetched, and the page forbids
itself the network. Text and numbers are plain HTML first; the script draws the figures over them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from microtome.core.shapes import Shape, Table
from microtome.view.bundle import script, style
from microtome.view.plain import letters, plain
from microtome.view.source import kind, source, to_json

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs of plain text (`like this` is set as code), figures, and sections below it."""

    heading: str
    text: tuple[str, ...] = ()
    shapes: tuple[Shape, ...] = field(default=())
    sections: tuple["Section", ...] = field(default=())


def page(title: str, sections: Sequence[Section], lead: Sequence[str] = ()) -> str:
    """A self-contained HTML file: title, leading paragraphs, table of contents, sections with numbered figures.

    Raises `InputError` when a shape's parts do not fit together.
    """
    numbers = iter(range(1, 1 << 30))
    body = "".join(_section(section, (place,), numbers) for place, section in enumerate(sections, 1))
    contents = (
        f'<nav aria-label="Contents"><h2>Contents</h2>{_contents(sections, ())}</nav>' if sections else ""
    )
    opening = "".join(f'<p class="lead">{_prose(paragraph)}</p>' for paragraph in lead)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{letters(title)}</title>\n<style>\n{style()}\n</style>\n</head>\n"
        f'<body class="report">\n{contents}\n<main>\n<header><h1>{letters(title)}</h1>{opening}</header>\n'
        f'{body}</main>\n<script type="module">\n{script(_kinds(sections))}\n</script>\n</body>\n</html>\n'
    )


def html(shape: Shape, state: Mapping[str, Any] | None = None) -> str:
    """A piece of HTML that draws one shape by itself, e.g. what `_repr_html_` returns.

    state: where the view starts, as plain values: a grid's panel and focused cell, a table's sorting, and so on
    (listed at the top of each module in `static/`).
    """
    return (
        f"<style>\n{style()}\n</style>\n{_figure(shape, state=state)}\n"
        f'<script type="module">\n{script(frozenset({kind(shape)}))}\n</script>\n'
    )


def _section(section: Section, place: tuple[int, ...], numbers: Iterator[int]) -> str:
    level = min(6, len(place) + 1)
    text = "".join(f"<p>{_prose(paragraph)}</p>\n" for paragraph in section.text)
    figures = "".join(_figure(shape, next(numbers)) for shape in section.shapes)
    below = "".join(_section(child, (*place, n), numbers) for n, child in enumerate(section.sections, 1))
    heading = f"<h{level}>{letters(section.heading)}</h{level}>"
    return f'<section id="{_anchor(place)}">\n{heading}\n{text}{figures}{below}</section>\n'


def _kinds(sections: Sequence[Section]) -> frozenset[str]:
    here = {kind(shape) for section in sections for shape in section.shapes}
    return frozenset(here).union(*(_kinds(section.sections) for section in sections))


def _contents(sections: Sequence[Section], place: tuple[int, ...]) -> str:
    entries = []
    for n, section in enumerate(sections, 1):
        below = _contents(section.sections, (*place, n)) if section.sections else ""
        entries.append(f'<li><a href="#{_anchor((*place, n))}">{letters(section.heading)}</a>{below}</li>')
    return f"<ol>{''.join(entries)}</ol>"


def _anchor(place: tuple[int, ...]) -> str:
    return "section-" + "-".join(map(str, place))


def _figure(shape: Shape, number: int | None = None, state: Mapping[str, Any] | None = None) -> str:
    data, tables = to_json(source(shape)), plain(shape)
    place = f' id="figure-{number}"' if number else ""
    start = f' data-state="{letters(to_json(dict(state)))}"' if state else ""
    name = f"<span>Figure {number}</span> " if number else ""
    notes = [f"<li>{_prose(note)}</li>" for note in shape.notes] if isinstance(shape, Table) else []
    listed = f'<ul class="notes">{"".join(notes)}</ul>' if notes else ""
    box = f'<div class="box" tabindex="0" role="region" aria-label="{letters(shape.title)}, numbers">{tables}</div>'
    drawn = box if isinstance(shape, Table) else ""
    behind = "" if isinstance(shape, Table) else f"<details open><summary>Numbers</summary>{box}</details>"
    caption = f'<p class="caption">{_prose(shape.caption)}</p>' if shape.caption else ""
    return (
        f'<figure class="microtome" data-kind="{kind(shape)}"{place}{start}>\n'
        f'<figcaption>{name}{letters(shape.title)}</figcaption>\n<div class="stage">{drawn}</div>\n'
        f'{caption}{listed}{behind}<script type="application/json">{data}</script>\n</figure>\n'
    )


def _prose(text: str) -> str:
    """Escaped text, with what stands between backticks set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", letters(text))
