import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from microtome.core.errors import InputError
from microtome.core.shapes import Graph, Grid, Node, Shape, Strip, Table
from microtome.view.lettering import visible
from microtome.view.page import Section, html, page

VOID = {"meta", "link", "br", "img", "input", "hr"}
anything = st.text(st.characters(exclude_categories=()))


class Outline(HTMLParser):
    """What a browser would make of a page: elements with attributes and text; fails where tags do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.path: list[str] = []
        self.feed(text)
        self.close()
        assert self.path == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.text.setdefault(tag, []).append("")
        if tag not in VOID:
            self.path.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.path.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.path:
            self.text[self.path[-1]][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def sources(text: str) -> list[dict[str, object]]:
    outline = Outline(text)
    types = [attributes.get("type") for attributes in outline.all("script")]
    return [
        json.loads(data)
        for kind, data in zip(types, outline.text["script"], strict=True)
        if kind == "application/json"
    ]


@pytest.fixture
def report(shapes: Mapping[str, Shape]) -> str:
    inner = Section("Inside <b>", ("A `code` word & more.",), (shapes["curve"], shapes["graph"]))
    first = Section("First", ("Text.",), (shapes["grid"], shapes["panels"]), (inner,))
    return page(
        "A <title>", [first, Section("Second", (), (shapes["strip"], shapes["table"]))], lead=("A lead.",)
    )


def test_each_shape_is_a_figure_with_its_caption_numbers_and_source(
    report: str, shapes: Mapping[str, Shape]
) -> None:
    outline = Outline(report)
    figures = outline.all("figure")
    assert [figure["data-kind"] for figure in figures] == ["grid", "grid", "curve", "graph", "strip", "table"]
    assert [figure["id"] for figure in figures] == [f"figure-{n}" for n in range(1, 7)]
    assert [source["title"] for source in sources(report)] == [
        text.strip() for text in outline.text["figcaption"]
    ]
    assert len(outline.all("details")) == 5
    assert all("open" in details for details in outline.all("details"))
    assert "n = 512" in outline.text["li"]


def test_headings_nest_and_contents_lead_to_them(report: str) -> None:
    outline = Outline(report)
    anchors = {attributes["id"] for attributes in outline.all("section")}
    assert anchors == {"section-1", "section-1-1", "section-2"}
    assert {str(link["href"]).removeprefix("#") for link in outline.all("a")} == anchors
    assert outline.text["h1"] == ["A <title>"]
    assert outline.text["h2"] == ["Contents", "First", "Second"]
    assert outline.text["h3"] == ["Inside <b>"]
    assert "code" in outline.text["code"]


def test_ids_are_unique_and_nothing_is_fetched(report: str) -> None:
    outline = Outline(report)
    ids = [attributes["id"] for _, attributes in outline.found if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for tag, attributes in outline.found:
        assert not attributes.get("src")
        if tag != "a":
            assert (attributes.get("href") or "data:,") == "data:,"
    policy = next(
        m["content"] for m in outline.all("meta") if m.get("http-equiv") == "Content-Security-Policy"
    )
    assert str(policy).startswith("default-src 'none'")


@example("</script><!--<script>]]>'\"&lt;`b`\x00\ud800")
@given(anything)
def test_any_text_comes_back_whole_and_breaks_nothing(text: str) -> None:
    made: tuple[Shape, ...] = (
        Strip(text, (text, "b"), np.ones((1, 2)), (text,), text, text),
        Grid(text, np.ones((1, 1, 1)), text, (text,), text, (text,), text, (text,), caption=text),
        Graph(text, (Node(text, text, 0, 1.0, text, text),), (), text, text),
        Table(text, (text,), ((text,),), text, (text,)),
    )
    written = page(text, [Section(text, (text,), made)], lead=(text,))
    written.encode("utf-8")
    assert len(re.findall("(?i)</script", written)) == 5
    assert written.count("<!") == 1
    strip, grid, graph, table = sources(written)
    assert strip["tokens"] == [text, "b"]
    assert grid["row_labels"] == [text]
    assert graph["nodes"] == [
        {"id": text, "label": text, "layer": 0, "weight": 1.0, "kind": text, "note": text}
    ]
    assert table["rows"] == [[text]]
    outline = Outline(written)
    assert outline.text["h1"] == [visible(text)]
    assert outline.all("section")[0]["id"] == "section-1"
    assert len(outline.all("figure")) == 4


@example("</script><!--<script>]]>'\"&lt;`b`\x00\ud800")
@given(anything)
def test_a_piece_for_a_notebook_survives_any_text(text: str) -> None:
    shape = Strip(text, (text,), np.ones((1, 1)))
    assert sources(html(shape))[0]["tokens"] == [text]


def test_the_same_shape_gives_the_same_bytes(shapes: Mapping[str, Shape]) -> None:
    for shape in shapes.values():
        assert html(shape) == html(shape)


def test_a_state_is_written_where_the_view_starts(shapes: Mapping[str, Shape]) -> None:
    (figure,) = Outline(html(shapes["panels"], {"panel": 2, "row": 1, "column": 0})).all("figure")
    assert json.loads(str(figure["data-state"])) == {"panel": 2, "row": 1, "column": 0}


def test_nothing_to_draw_still_makes_a_page(empty: Mapping[str, Shape]) -> None:
    text = page("Empty", [Section("Shapes", shapes=tuple(empty.values()))])
    assert len(Outline(text).all("figure")) == len(empty)
    assert Outline(page("No sections", [])).all("nav") == []


def test_a_large_grid_costs_at_most_four_bytes_a_cell() -> None:
    labels = tuple(map(str, range(256)))
    values = np.random.default_rng(0).normal(size=(8, 256, 256))
    text = html(Grid("g", values, "q", labels, "k", labels, panels=tuple("abcdefgh")))
    assert len(text.encode()) < 4 * values.size + 60_000


def test_styles_stay_within_figures_and_reports(shapes: Mapping[str, Shape]) -> None:
    style = re.search(r"<style>(.*?)</style>", html(shapes["grid"]), re.DOTALL)
    assert style
    depth, outer = 0, ""
    for character in style[1]:
        depth += {"{": 1, "}": -1}.get(character, 0)
        outer += character if depth == 0 else ""
    for selector in outer.split("}"):
        assert re.match(r"$|:where\(\.microtome|@media|body\.report|\.report|\.microtome", selector.strip())


def test_a_shape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="to fit the labels"):
        page("t", [Section("s", shapes=(Strip("s", ("a",), np.zeros((1, 2))),))])
