"""The views in a real browser: headless Chromium, a file, no network. Skips where there is none."""

import json
import re
import struct
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microtome.view.picture as picture
from microtome.core.errors import InputError
from microtome.core.shapes import Graph, Grid, Node, Shape, Strip, Table
from microtome.view.lettering import cell_text, numeral, visible
from microtome.view.page import Section, html, page
from microtome.view.picture import png
from microtome.view.scale import MODES, Scale

needs_browser = pytest.mark.skipif(
    picture.browser() is None, reason=f"none of {picture.BROWSERS} is installed"
)
END = 'dispatchEvent(new Event("drawn"));'
PRELUDE = """
const wait = () => new Promise((resume) => setTimeout(resume, 50));
const key = (el, name) => el.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
const $ = (selector) => document.querySelector(selector);
const all = (selector) => [...document.querySelectorAll(selector)];
"""


def probe(text: str, folder: Path, script: str, errors: int = 0, state: str = "") -> dict[str, Any]:
    """What `script` returns, run inside the page's own module once all is drawn; counts what the console says."""
    ending = (
        f"document.body.dataset.probe = JSON.stringify(await (async () => {{{PRELUDE}{script}}})());{END}"
    )
    before, after = text.rsplit(END, 1)
    file = folder / "page.html"
    file.write_text(before + ending + after, "utf-8")
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    flags = ("--dump-dom", "--enable-logging=stderr", "--window-size=1200,900", offline)
    done = picture.open_page(file, *flags, state=state)
    assert sum("CONSOLE" in line for line in done.stderr.splitlines()) == errors, done.stderr
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(unescape(found[1]))
    return told


@needs_browser
def test_every_view_draws_and_answers(shapes: Mapping[str, Shape], tmp_path: Path) -> None:
    order = ("grid", "panels", "strip", "curve", "graph", "table")
    labels = tuple(map(str, range(60)))
    large = Grid("Large", np.linspace(-1, 1, 3600).reshape(60, 60), "row", labels, "column", labels)
    text = page("Report", [Section("All", shapes=(*(shapes[name] for name in order), large))])
    told = probe(
        text,
        tmp_path,
        """
        const live = all("figure").map((figure) => figure.dataset.live);
        const drawn = all(".box > canvas").map((canvas) => {
          const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height), seen = new Set();
          for (let i = 0; i < data.length; i += 4) seen.add(data.slice(i, i + 3).join());
          return seen.size;
        });
        const closed = all("details").every((details) => !details.open);
        const tips = {};
        const grid = $("#figure-1 canvas");
        key(grid, "ArrowRight");
        tips.missing = $("#figure-1 .tip").innerText;
        key(grid, "ArrowRight");
        key(grid, "ArrowDown");
        tips.grid = $("#figure-1 .tip").innerText;
        const address = decodeURIComponent(location.hash);
        all("#figure-2 .thumbs button")[2].click();
        key($("#figure-2 .box > canvas"), "ArrowRight");
        tips.panel = $("#figure-2 .tip").innerText;
        all("#figure-3 .choice button")[1].click();
        key($("#figure-3 .tokens"), "End");
        tips.strip = $("#figure-3 .tip").innerText;
        key($("#figure-4 .plot"), "ArrowRight");
        tips.curve = $("#figure-4 .tip").innerText;
        const paths = all("#figure-4 path.line").length, bands = all("#figure-4 path.band").length;
        all("#figure-4 .choice button")[0].click();
        const left = all("#figure-4 path.line").length;
        const nodes = all("#figure-5 .node");
        const boxes = nodes.map((node) => node.getBoundingClientRect());
        nodes[1].dispatchEvent(new Event("focus"));
        const near = all("#figure-5 .node.near").length, about = $("#figure-5 .about").innerText;
        key($("#figure-5 .graph"), "ArrowUp");
        const above = document.activeElement.getAttribute("aria-label");
        const slider = $("#figure-5 input");
        slider.value = 1;
        slider.dispatchEvent(new Event("input"));
        const arcs = all("#figure-5 .arc:not(.off)").length;
        const widths = all("#figure-5 .arc").map((arc) => Number(arc.getAttribute("stroke-width")));
        all("#figure-5 .arc:not(.off)")[0].dispatchEvent(new Event("click"));
        const way = $("#figure-5 .about").innerText;
        const column = () => all("#figure-6 tbody tr").map((row) => row.children[1].textContent);
        const before = column();
        $("#figure-6 th:nth-child(2) button").click();
        const down = column(), sorted = $("#figure-6 th:nth-child(2)").getAttribute("aria-sort");
        $("#figure-6 th:nth-child(2) button").click();
        const up = column();
        const dangerous = all("main b:not(.tip b), figure script:not([type])").length;
        return {live, drawn, closed, tips, address, paths, bands, left, boxes, near, about, above, arcs, widths, way,
          before, down, sorted, up, dangerous};
        """,
    )
    grid, panels, strip = shapes["grid"], shapes["panels"], shapes["strip"]
    assert isinstance(grid, Grid)
    assert isinstance(panels, Grid)
    assert isinstance(strip, Strip)
    assert told["live"] == ["yes"] * 7
    assert told["closed"]
    assert min(told["drawn"]) > 10
    tips = {name: text.replace("−", "-").splitlines() for name, text in told["tips"].items()}
    assert tips["missing"][0] == "not measured"
    assert tips["grid"] == [f"{numeral(float(grid.values[1, 1]), 4)} share", "layer 1", "position 1, “ Mary”"]
    assert told["address"] == '#figure-1:{"panel":0,"row":1,"column":1}'
    assert tips["panel"][0] == numeral(float(panels.values[2, 0, 0]), 4)
    assert tips["panel"][-1] == "h2"
    assert tips["strip"][:2] == [f"{numeral(float(strip.values[1, -1]), 4)} nats", "token 9, “'\"”"]
    assert tips["curve"] == ["step 1", "induction 0.100 (0 to 0.200)", "copying 0.500 (0.400 to 0.600)"]
    assert (told["paths"], told["bands"], told["left"]) == (2, 2, 1)
    rows = [round(box["y"]) for box in told["boxes"]]
    assert rows[0] > rows[1] == rows[2] > rows[3]
    assert told["near"] == 4
    assert "copies names" in told["about"]
    assert told["above"] == "output"
    assert told["arcs"] == 1
    assert "+2.25 logits" in told["way"]
    assert "cut twice" in told["way"]
    assert told["widths"] == sorted(told["widths"])
    assert told["before"] == ["0.942", "–", "–"]
    assert told["sorted"] == "descending"
    assert (told["down"][0], told["up"][0]) == ("0.942", "0.942")
    assert told["dangerous"] == 0


@needs_browser
def test_nothing_to_draw_raises_nothing(empty: Mapping[str, Shape], tmp_path: Path) -> None:
    text = page("Empty", [Section("All", shapes=tuple(empty.values()))])
    told = probe(text, tmp_path, 'return {live: all("figure").map((figure) => figure.dataset.live)};')
    assert told["live"] == ["yes"] * len(empty)


@needs_browser
def test_pieces_of_a_notebook_draw_each_figure_once(shapes: Mapping[str, Shape], tmp_path: Path) -> None:
    pieces = "".join(html(shapes[name]) for name in ("grid", "strip", "grid", "panels", "table"))
    script = """
        await wait();
        const drawn = (figure) => figure.querySelectorAll(".stage .tip, .stage table").length;
        return {live: all("figure").map((figure) => [figure.dataset.live, drawn(figure)])};
    """
    told = probe(pieces, tmp_path, script)
    assert told["live"] == [["yes", 1]] * 5


@needs_browser
def test_an_address_opens_a_figure_in_its_state(shapes: Mapping[str, Shape], tmp_path: Path) -> None:
    text = page("p", [Section("s", shapes=(shapes["grid"], shapes["panels"]))])
    script = 'return {pressed: all("#figure-2 .thumbs button").map((b) => b.ariaPressed)};'
    assert probe(text, tmp_path, script, state="figure-2:%7B%22panel%22%3A1%7D")["pressed"][1] == "true"
    assert probe(text, tmp_path, script, state="figure-2:%7Bnonsense")["pressed"][0] == "true"


@needs_browser
def test_a_view_that_fails_leaves_the_numbers(shapes: Mapping[str, Shape], tmp_path: Path) -> None:
    text = page("p", [Section("s", shapes=(shapes["grid"], shapes["table"], shapes["strip"]))])
    broken = text.replace('"row_labels"', '"lost"').replace('"exact"', '"lost"')
    told = probe(
        broken,
        tmp_path,
        """
        const visible = (table) => table.checkVisibility() && table.getBoundingClientRect().height > 20;
        return {open: all("details").map((details) => details.open), tables: all("table").map(visible),
          tokens: all(".tokens span").length};
        """,
        errors=2,
    )
    assert told["open"] == [True, False]
    assert told["tables"] == [True, True, False]
    assert told["tokens"] == 10


@needs_browser
def test_the_browser_writes_and_colours_as_python_does(shapes: Mapping[str, Shape], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    values = [
        0.0,
        0.5,
        -1.0,
        123456.0,
        1e6,
        99999.5,
        *(generator.normal(size=200) * 10.0 ** generator.uniform(-8, 8, 200)),
    ]
    texts = ["a", " ", "", "\n", "\x00\x1b", "\u200b\u2028", "😀", "é\u00ad", "\ue000"]
    cells = [None, True, 1.0, 3, "x"]
    code = (
        f"const values = {json.dumps(values)}, texts = {json.dumps(texts)}, cells = {json.dumps(cells)};"
        "const colours = (low, diverging) => ['light', 'dark'].map((mode) => "
        "values.map($scale.scale([low, 1], diverging, mode).colour));"
        "return {numbers: values.map((v) => $lettering.numeral(v)), texts: texts.map($lettering.visible),"
        " cells: cells.map((cell) => $lettering.cellText(cell, Number.isInteger(cell) && cell !== 1)),"
        " colours: [colours(-1, true), colours(0, false)]};"
    )
    told = probe(page("p", [Section("s", shapes=(shapes["grid"],))]), tmp_path, code)
    assert [text.replace("−", "-") for text in told["numbers"]] == [numeral(v) for v in values]
    assert told["texts"] == [visible(text) for text in texts]
    assert told["cells"] == [cell_text(cell) for cell in (None, True, 1.0, 3, "x")]
    scales = (Scale(-1, 1, True), Scale(0, 1, False))
    expected = np.array([[[scale.colour(v, mode) for v in values] for mode in MODES] for scale in scales])
    assert (
        np.abs(np.array(told["colours"]) - expected).max() <= 1
    )  # halves round to even in Python, up in the browser


@needs_browser
def test_packed_numbers_and_states_arrive(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 30, 30)) * 1e-3
    values[1, 2, 3], values[0, 0, 0], values[2, 29, 29] = np.nan, np.inf, -7.123456
    labels = tuple(map(str, range(30)))
    grid = Grid("g", values, "r", labels, "c", labels, panels=("a", "b", "c"))
    rows = tuple((f"row {i}", i / 7) for i in range(300))
    text = page("p", [Section("s", shapes=(grid, Table("t", ("name", "value"), rows)))])
    told = probe(
        text,
        tmp_path,
        """
        const source = await $source.read(JSON.parse($("#figure-1 script").textContent));
        const flat = [...source.values.flat].map((v) => (Number.isFinite(v) ? v : String(v)));
        const some = all("#figure-2 tbody tr").length;
        $("#figure-2 .more").click();
        const every = all("#figure-2 tbody tr").length, find = $("#figure-2 [type=search]");
        find.value = "ROW 29";
        find.dispatchEvent(new Event("input"));
        return {shape: source.values.shape, flat, some, every, found: all("#figure-2 tbody tr").length};
        """,
    )
    assert told["shape"] == [3, 30, 30]
    arrived = np.array(
        [float(v.replace("Infinity", "inf")) if isinstance(v, str) else v for v in told["flat"]]
    )
    np.testing.assert_allclose(arrived.reshape(values.shape), values, rtol=2**-16)
    assert (told["some"], told["every"], told["found"]) == (200, 300, 11)


@needs_browser
def test_a_picture_has_the_width_asked_for_and_the_height_of_the_figure(shapes: Mapping[str, Shape]) -> None:
    first = png(shapes["panels"], width=700, scale=1)
    assert first.startswith(b"\x89PNG\r\n")
    width, height = struct.unpack(">II", first[16:24])
    assert width == 700
    assert 200 < height < 700


@needs_browser
def test_a_tall_picture_is_not_cut_off() -> None:
    nodes = tuple(Node(str(layer), str(layer), layer) for layer in range(30))
    data = png(Graph("g", nodes, ()), width=400, scale=1)
    assert struct.unpack(">II", data[16:24])[1] > 40 + 62 * 29 + 60


@needs_browser
def test_a_view_starts_in_the_state_given(shapes: Mapping[str, Shape], tmp_path: Path) -> None:
    script = """
        const canvas = $(".box > canvas"), pressed = all(".thumbs button").map((b) => b.ariaPressed);
        key(canvas, "ArrowUp");
        return {pressed, tip: $(".tip").innerText};
    """
    told = probe(html(shapes["panels"], {"panel": 2, "row": 1, "column": 1}), tmp_path, script)
    assert told["pressed"] == ["false", "false", "true"]
    assert told["tip"].splitlines()[1:] == ["query 0, “a”", "key 1, “b”", "h2"]


def test_without_a_browser_the_error_says_what_to_do(
    shapes: Mapping[str, Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"chromium.*html\(shape\)"):
        png(shapes["grid"])


def test_a_browser_that_draws_nothing_is_an_error(
    shapes: Mapping[str, Shape], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mute = tmp_path / "chromium"
    mute.write_text("#!/bin/sh\nexit 0\n")
    mute.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(InputError, match="did not draw it"):
        png(Graph("g", (Node("a", "a", 0),), ()))


@needs_browser
def test_points_move_by_slider_by_key_and_by_themselves(shapes: Mapping[str, Shape], tmp_path: Path) -> None:
    told = probe(
        page("Report", [Section("Film", shapes=(shapes["points"],))]),
        tmp_path,
        """
        const where = () => all(".point").map((point) => point.getAttribute("x") + "," + point.getAttribute("y"));
        const at = () => $("output").innerText, slider = $("input[type=range]");
        const found = {last: at(), labels: all(".point").map((point) => point.textContent), places: [where()]};
        slider.value = 1;
        slider.dispatchEvent(new Event("input"));
        found.slid = at();
        found.places.push(where());
        key($("svg.plot"), "ArrowLeft");
        found.keyed = at();
        found.places.push(where());
        found.address = decodeURIComponent(location.hash);
        $(".choice button").click();
        await new Promise((resume) => setTimeout(resume, 2600));
        return {...found, played: at(), pressed: $(".choice button").getAttribute("aria-pressed")};
        """,
    )
    assert (told["last"], told["slid"], told["keyed"], told["played"]) == (
        "step 200",
        "step <100>",
        "step 0",
        "step 200",
    )
    assert told["labels"] == ["zero", "<b>"] * 2
    assert [len(places) for places in told["places"]] == [
        4,
        4,
        3,
    ]  # one point is not there in the first frame
    assert told["places"][0] != told["places"][1]
    assert told["address"] == '#figure-1:{"frame":0}'
    assert told["pressed"] == "false"
