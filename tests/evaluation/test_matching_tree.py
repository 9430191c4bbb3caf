"""Dictionaries made by hand: the same in another order, split, merged, and ones that have nothing in common."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from microtome.bases.codes import SparseCodes
from microtome.bases.linear import LinearBasis
from microtome.core import plugins
from microtome.core.errors import InputError, StoreError
from microtome.core.provenance import Provenance
from microtome.core.shapes import Graph, Table
from microtome.core.site import Site
from microtome.dictionaries.activations import ReLU
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.files import save
from microtome.evaluation import matching_tree as matching_tree_module
from microtome.evaluation.matching_tree import Config, Result, match, match_codes, matching_tree, run
from microtome.models.load import load
from models import families

SITE = "path:activation"


def directions(count: int = 20, d: int = 32, seed: int = 0) -> Tensor:
    drawn = torch.randn(count, d, generator=torch.Generator().manual_seed(seed))
    return functional.normalize(drawn, dim=-1)


def test_the_same_units_in_another_order_and_size_all_recur() -> None:
    one = directions()
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    found = match(one, 3.0 * one[order])
    assert found.recurring == 1.0
    assert torch.equal(order[found.partner], torch.arange(20))
    assert (found.split, found.merged, found.vanished, found.new) == (0.0, 0.0, 0.0, 0.0)
    assert found.by_luck == 0.0
    assert match(one, -one).recurring == 0.0


def test_unrelated_dictionaries_have_nothing_in_common_and_luck_says_how_much_that_is() -> None:
    found = match(directions(d=256), directions(d=256, seed=5))
    assert (found.recurring, found.new, found.by_luck) == (0.0, 1.0, 0.0)
    flat = match(directions(200, 2), directions(200, 2, seed=5))
    assert flat.recurring == pytest.approx(flat.by_luck, abs=0.1)
    assert flat.by_luck > 0.3
    assert found.mean_max == pytest.approx(found.mean_max_by_luck, abs=0.05)
    assert flat.mean_max > 0.99


def test_a_unit_that_splits_has_its_parts_for_children_and_back_again_they_merge() -> None:
    one = directions()
    apart = directions(2, seed=7)
    parts = torch.stack([one[3] + 0.8 * apart[0], one[3] + 0.8 * apart[1]])
    wide = torch.cat([one[:3], one[4:], parts, directions(1, seed=9)])
    found = match(one, wide)
    assert found.children.tolist() == [1, 1, 1, 2] + [1] * 16
    assert found.parent.tolist()[-3:] == [3, 3, -1]
    assert found.split == 1 / 20
    assert match(wide, one).merged == 1 / 20
    assert found.recurring == 19 / 20


def test_a_tree_follows_families_over_several_widths() -> None:
    one = directions(5)
    wide = torch.cat([one, one[:1] + 0.5 * directions(1, seed=3)])
    tree = matching_tree([LinearBasis(SITE, rows, name=f"d{len(rows)}") for rows in (one, wide, wide)])
    assert len(tree.table().rows) == 2
    graph = tree.graph([0])
    assert {node.id for node in graph.nodes} == {"0.0", "1.0", "1.5", "2.0", "2.5"}
    assert ("1.5", "2.5") in {(arc.source, arc.target) for arc in graph.arcs}


def test_units_can_be_matched_by_when_they_are_on() -> None:
    codes = (torch.rand(500, 10, generator=torch.Generator().manual_seed(0)) - 0.8).relu()
    found = match_codes(SparseCodes.of(codes), SparseCodes.of(2 * codes.flip(1)))
    assert found.recurring == 1.0
    assert found.partner.tolist() == list(range(9, -1, -1))
    assert found.by_luck == 0.0


def trained(rows: Tensor, name: str) -> Dictionary:
    site, (n, d) = (Site.parse("resid_post.0"),), rows.shape
    return Dictionary(name, site, site, (d,), (d,), ReLU(), rows, torch.zeros(n), rows, *torch.zeros(2, d))


def test_files_are_matched_by_one_command(tmp_path: Path) -> None:
    model = load(families.make("gpt2"))
    one = directions(5)
    wide = torch.cat([one, one[:1] + 0.5 * directions(1, seed=3)])
    paths = [tmp_path / f"{name}.safetensors" for name in ("narrow", "wide", "again")]
    for path, rows in zip(paths, (one, wide, wide.flip(0)), strict=True):
        save(trained(rows, path.stem), path)
    config = Config(dictionaries=tuple(map(str, paths)), families=2)
    found = run(model, None, config)
    tree = matching_tree(
        [trained(rows, path.stem) for path, rows in zip(paths, (one, wide, wide.flip(0)), strict=True)]
    )
    table, graph = found.shapes()
    assert isinstance(table, Table)
    assert isinstance(graph, Graph)
    assert table.rows == tree.table().rows
    assert graph == tree.graph(found.data["root"].values.tolist())
    assert found.data["share"].sel(what="recurring").values.tolist() == [1.0, 1.0]
    found.save(tmp_path / "result")
    assert Result.load(tmp_path / "result") == found
    assert plugins.method("matching-tree") is matching_tree_module
    with pytest.raises(StoreError, match="there is no file"):
        run(model, None, Config(dictionaries=(str(paths[0]), str(tmp_path / "none"))))
    with pytest.raises(InputError, match="at least two"):
        run(model, None, Config(dictionaries=(str(paths[0]),)))
    other = replace(trained(one, "other"), provenance=Provenance("elsewhere", "0" * 64))
    save(other, paths[2])
    assert "another model" in " ".join(run(model, None, config).notes)


def test_what_cannot_be_compared_is_refused() -> None:
    basis = LinearBasis(SITE, torch.eye(3))
    with pytest.raises(InputError, match="at least two"):
        matching_tree([basis])
    with pytest.raises(InputError, match="of the same sites"):
        matching_tree([basis, LinearBasis("path:other", torch.eye(3))])
    with pytest.raises(InputError, match="of the same rows"):
        match_codes(SparseCodes.of(torch.ones(2, 2)), SparseCodes.of(torch.ones(3, 2)))
