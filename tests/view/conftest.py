"""One shape of each kind, small, with the things that go wrong in them: NaN, hostile tokens, None."""

from collections.abc import Mapping

import numpy as np
import pytest

from microtome.core.shapes import Arc, Curve, Graph, Grid, Node, Points, Shape, Strip, Table

TOKENS = ("When", " Mary", "</script>", "<b>bold</b>", "\x1b[31m", "\n", " ", "&amp;", "é", "'\"")


@pytest.fixture
def shapes() -> Mapping[str, Shape]:
    generator = np.random.default_rng(0)
    patch = generator.normal(size=(4, len(TOKENS)))
    patch[0, 0] = np.nan
    panels = generator.random((3, 5, 5))
    panels[:, *np.triu_indices(5, 1)] = np.nan
    x = np.array([1.0, 10.0, 100.0, 2000.0])
    y = np.array([[0.1, 0.2, 0.7, 0.9], [0.5, np.nan, 0.4, 0.3]])
    nodes = (
        Node("a", "input <a>", 0),
        Node("b", "head 1.2", 1, 0.5, "head", "copies names"),
        Node("c", "head 1.3", 1, -0.25, "head"),
        Node("d", "output", 2),
    )
    arcs = (
        Arc("a", "b", 1.5, "q"),
        Arc("a", "c", -0.75),
        Arc("b", "d", 2.25, note="cut twice"),
        Arc("b", "c", 0.125),
    )
    rows = (
        ("found", 0.9421, 26, True),
        ("random", None, 26, False),
        ("</td><script>", float("nan"), 3, None),
    )
    return {
        "grid": Grid(
            "Patching", patch, "layer", tuple("0123"), "position", TOKENS, unit="share", caption="A `cell`."
        ),
        "panels": Grid(
            "Attention",
            panels,
            "query",
            tuple("abcde"),
            "key",
            tuple("abcde"),
            "",
            ("h0", "h1", "h2"),
            diverging=False,
        ),
        "strip": Strip("Loss", TOKENS, generator.normal(size=(2, len(TOKENS))), ("loss", "entropy"), "nats"),
        "curve": Curve(
            "Training", x, y, ("induction", "copying"), "step", "score", np.stack([y - 0.1, y + 0.1], -1)
        ),
        "graph": Graph("Circuit", nodes, arcs, "logits"),
        "points": Points(
            "Circle",
            np.where(np.arange(24).reshape(3, 2, 2, 2) == 5, np.nan, generator.normal(size=(3, 2, 2, 2))),
            "step",
            ("0", "<100>", "200"),
            ("frequency 3", "frequency 7"),
            ("zero", "<b>"),
        ),
        "table": Table("Numbers", ("account", "accuracy", "heads", "held"), rows, notes=("n = 512",)),
    }


@pytest.fixture
def empty() -> Mapping[str, Shape]:
    none = np.zeros((0, 0))
    return {
        "grid": Grid("Nothing", none, "layer", (), "position", ()),
        "panels": Grid("Nothing", np.zeros((1, 0, 0)), "layer", (), "position", (), panels=("only",)),
        "unmeasured": Grid("Nothing", np.full((2, 2), np.nan), "layer", ("0", "1"), "position", ("a", "b")),
        "strip": Strip("Nothing", (), np.zeros((1, 0))),
        "seriesless": Strip("Nothing", ("a",), np.zeros((0, 1)), ()),
        "curve": Curve("Nothing", np.zeros(0), np.zeros((1, 0)), ("one",), "x", "y"),
        "curveless": Curve("Nothing", np.arange(3.0), np.zeros((0, 3)), (), "x", "y"),
        "unknown": Curve("Nothing", np.arange(3.0), np.full((1, 3), np.nan), ("one",), "x", "y"),
        "point": Curve("Nothing", np.array([2.0]), np.array([[0.0]]), ("one",), "x", "y"),
        "graph": Graph("Nothing", (), ()),
        "arcless": Graph("Nothing", (Node("a", "a", 0),), ()),
        "table": Table("Nothing", (), ()),
        "points": Points("Nothing", np.zeros((1, 1, 0, 2)), "step", ("0",), ("plane",), ()),
        "frameless": Points("Nothing", np.zeros((0, 1, 1, 2)), "step", (), ("plane",), ("a",)),
        "rowless": Table("Nothing", ("a", "b"), ()),
    }
