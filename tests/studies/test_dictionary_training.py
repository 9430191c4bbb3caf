"""A plan is trained, scored and kept; killed, it goes on to the same result; what does not fit is refused before."""

from pathlib import Path

import numpy as np
import pytest
import torch

from microtome.core.errors import InputError, SiteError, StoreError
from microtome.core.shapes import Curve, Strip, Table
from microtome.core.site import Site
from microtome.data.corpus import Corpus
from microtome.data.corpus_rows import CorpusRows
from microtome.dictionaries import files
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.end_to_end import ModelLoss
from microtome.evaluation.dictionary_scores import Result
from microtome.models.load import load
from microtome.studies.dictionary_page import report, sections, summary
from microtome.studies.dictionary_plan import Plan
from microtome.studies.dictionary_sources import Source
from microtome.studies.dictionary_training import source_of, train_dictionaries
from models import families

SMALL = {"testbed": "planted_dictionary/orthogonal", "width": [16, 32], "k": [2], "steps": 30, "batch": 64}
PLAN = Plan.read(SMALL | {"keep_every": 10, "nulls": False})


def source(plan: Plan = PLAN) -> Source:
    return source_of(plan)


def corpus_source(sites: list[str], tokens: int = 1200, steps: int = 20) -> Source:
    drawn = np.random.default_rng(0).integers(0, 50, tokens)
    rows = CorpusRows(Corpus.of([drawn], 50), 16)
    return Source.of_corpus(
        load(families.make("gpt2")), rows, [Site.parse(s) for s in sites], 32, 64, steps, 0
    )


def test_every_combination_is_trained_scored_and_kept(tmp_path: Path) -> None:
    training = train_dictionaries(PLAN, source(), tmp_path)
    assert [one.recipe.name for one in training.trained] == ["topk-w16-k2", "topk-w32-k2"]
    for one, path, scores in zip(training.trained, training.paths, training.scores, strict=True):
        assert torch.equal(files.load(path).decoder, one.dictionary.decoder)
        assert Result.load(tmp_path / "scores" / one.recipe.name) == scores
        assert scores.score("l0") <= 2.0
        assert 0.0 < scores.score("mcc") <= 1.0
        assert one.dictionary.provenance.model == PLAN.testbed
    assert len(summary(training).rows) == 2
    page = report(training)
    assert "topk-w32-k2" in page
    assert "https://" not in page


def test_seeds_are_told_together_and_matched_and_random_directions_stand_beside(tmp_path: Path) -> None:
    small = {"testbed": "superposition/pentagon", "width": 8, "k": [1, 2], "seeds": [0, 1]}
    plan = Plan.read(small | {"steps": 5, "batch": 64})
    training = train_dictionaries(plan, source(plan), tmp_path)
    shapes = {shape.title: shape for section in sections(training) for shape in section.shapes}
    over = shapes["explained over units on in a row"]
    assert isinstance(over, Curve)
    assert over.series == ("topk, 8 units", "random directions, 8 units")
    assert over.band is not None
    l0, own = (
        np.array([scores.score(name) for scores in training.scores]).reshape(2, 2)
        for name in ("l0", "explained_variance")
    )
    at = np.searchsorted(over.x, l0.mean(1))
    np.testing.assert_allclose(over.x[at], l0.mean(1))
    np.testing.assert_allclose(over.y[0, at], own.mean(1))
    np.testing.assert_allclose(over.band[0, at], np.stack([own.min(1), own.max(1)], -1))
    assert np.isfinite(over.y[0]).sum() == 2
    random = {scores.score("explained_variance", "random directions") for scores in training.scores}
    assert sorted(random) == pytest.approx(sorted(over.y[1, np.isfinite(over.y[1])]))
    loss = shapes["loss"]
    assert isinstance(loss, Curve)
    assert loss.series == ("topk-w8-k1", "topk-w8-k2")
    assert loss.y[0, -1] == pytest.approx(np.mean([one.final.loss for one in training.trained[:2]]))
    pairs = shapes["from seed to seed"]
    assert isinstance(pairs, Table)
    assert [row[0] for row in pairs.rows] == [f"topk-w8-k{k}-s0 (8) → topk-w8-k{k}-s1 (8)" for k in (1, 2)]


@pytest.mark.parametrize("stop", [17])
def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path, stop: int) -> None:
    whole = train_dictionaries(PLAN, source(), tmp_path / "whole")

    def die(what: str, done: int, of: int) -> None:
        if what == "training" and done == stop:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        train_dictionaries(PLAN, source(), tmp_path / "stopped", die)
    again = train_dictionaries(PLAN, source(), tmp_path / "stopped")
    for one, other in zip(whole.trained, again.trained, strict=True):
        assert all(map(torch.equal, one.dictionary.tensors().values(), other.dictionary.tensors().values()))
        assert one.log == other.log
    assert [s.data.equals(t.data) for s, t in zip(whole.scores, again.scores, strict=True)] == [True, True]


def test_a_model_on_a_corpus_with_units_in_their_context(tmp_path: Path) -> None:
    plan = Plan.read({"model": "m", "corpus": ["c"], "width": [24], "k": [4], "steps": 20, "batch": 32})
    there = corpus_source(["resid_post.0"])
    training = train_dictionaries(plan, there, tmp_path)
    scores = training.scores[0]
    assert scores.data.attrs["rows"] == sum(map(len, there.tokens)) == len(there.held_out)
    assert np.isfinite(scores.score("cross_entropy_recovered"))
    assert np.isfinite(scores.score("explained_variance", "random weights"))
    strips = [s for section in sections(training) for s in section.shapes if isinstance(s, Strip)]
    codes = training.trained[0].dictionary.encode(there.held_out)
    assert strips
    for strip in strips:
        (shown,) = strip.values
        unit = int(strip.title.removeprefix("unit "))
        lines = strip.tokens.count("\n") + 1
        assert lines == min(6, int((codes[:, unit] > 0).sum()))
        assert np.nanmax(shown) == pytest.approx(float(codes[:, unit].max()))
        text = [token for token, value in zip(strip.tokens, shown, strict=True) if not np.isnan(value)]
        assert "".join(text[:6]) in "".join(token for row in there.tokens for token in row)
    # Rows held out are those of the model on text that is not streamed.
    values = there.model.run(there.data.tokens, read=["resid_post.0"])[Site.parse("resid_post.0")].flatten(
        0, 1
    )
    torch.testing.assert_close(values, there.held_out)


def test_a_transcoder_reads_one_site_and_writes_another(tmp_path: Path) -> None:
    plan = Plan.read(
        {
            "model": "m",
            "corpus": ["c"],
            "site": "mlp_in.0",
            "write": "mlp_out.0",
            "width": [24],
            "k": [4],
            "steps": 10,
            "batch": 32,
        }
    )
    training = train_dictionaries(plan, corpus_source(["mlp_in.0", "mlp_out.0"], steps=10), tmp_path)
    made: Dictionary = training.trained[0].dictionary
    assert (str(made.reads[0]), str(made.writes[0])) == ("mlp_in.0", "mlp_out.0")
    assert np.isfinite(training.scores[0].score("explained_variance"))
    assert "Units at random" in report(training)


KINDS = {
    "crosscoder": {"site": "resid_post.0,resid_post.1"},
    "skip transcoder": {"site": "mlp_in.0", "write": "mlp_out.0", "skip": True},
    "cross-layer": {"site": ["mlp_in.0", "mlp_in.1"], "write": "mlp_out.0, mlp_out.1", "cross_layer": True},
    "end to end": {"site": "resid_post.0", "end_to_end": True, "later": "resid_post.1"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_dictionaries_are_typed(tmp_path: Path, kind: str) -> None:
    told = {"width": 24, "activation": "relu", "coefficient": "0.5", "steps": 3, "batch": 32, "nulls": False}
    plan = Plan.read(told | KINDS[kind])
    drawn = np.random.default_rng(0).integers(0, 50, 600)
    rows = CorpusRows(Corpus.of([drawn], 50), 16)
    there = source_of(plan, load(families.make("gpt2")), rows)
    made = train_dictionaries(plan, there, tmp_path).trained[0]
    dictionary, site = made.dictionary, Site.parse
    assert dictionary.reads == tuple(map(site, plan.site))
    assert dictionary.writes == tuple(map(site, plan.write or plan.site))
    assert (dictionary.skip is not None) == plan.skip
    assert made.recipe.name == "relu-w24-c0.5"
    assert (made.recipe.coefficient, made.recipe.l0) == (0.5, None)
    if plan.cross_layer:
        assert dictionary.writes_of is not None
        assert dictionary.writes_of.float().mean(0).tolist() == [0.5, 1.0]
    if plan.end_to_end:  # the first loss is that of the model's outputs, not of values
        target = there.target
        assert isinstance(target, ModelLoss)
        there.stream.seek(0)
        values = next(iter(there.stream))
        assert float(target.loss(values, values)) == pytest.approx(0.0, abs=1e-5)
        assert float(target.loss(values * 0, values)) > 0.1


def test_a_testbed_with_a_network_is_read_at_its_site(tmp_path: Path) -> None:
    plan = Plan.read({"testbed": "superposition/pentagon", "width": [8], "k": [1], "steps": 10, "batch": 64})
    there = source(plan)
    training = train_dictionaries(plan, there, tmp_path)
    assert training.trained[0].dictionary.reads == there.stream.sites
    assert training.scores[0].score("explained_variance") > 0


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="units are to be on"):
        Plan.read(SMALL | {"k": [64]}).recipes()
    with pytest.raises(InputError, match="settings do not fit"):
        Plan.read({"widths": [3]})
    with pytest.raises(InputError, match="nothing to train"):
        Plan.read(SMALL | {"width": []}).recipes()
    with pytest.raises(InputError, match="settings do not fit"):
        Plan.read(SMALL | {"recipe": {"colour": 1}}).recipes()
    for said, words in (
        ({"recipe": {"l0": 3}}, "said by k, not among the rest"),
        ({"write": "mlp_out.0"}, "say by site where from"),
        ({"site": "z.0", "skip": True}, "writes elsewhere than it reads"),
        ({"site": "z.0", "cross_layer": True}, "two sites at least"),
        ({"site": "z.0,z.1", "write": "z.0", "cross_layer": True}, "say pairs"),
        ({"end_to_end": True}, "not on a testbed"),
        ({"later": "z.0"}, "trained end to end"),
        ({"site": "z.0,z.0"}, "read once; got z.0, z.0"),
    ):
        with pytest.raises(InputError, match=words):
            Plan.read(SMALL | said)
    with pytest.raises(InputError, match="has no case"):
        Source.of_case("superposition/none", "", 64, 0)
    with pytest.raises(SiteError):
        Source.of_case("superposition/pentagon", "resid_post.0", 64, 0)
    with pytest.raises(SiteError):
        corpus_source(["resid_post.7"])
    with pytest.raises(InputError):
        corpus_source(["resid_post.0"], tokens=20)
    with pytest.raises(InputError, match=r"16 tokens, which fill one row of 16; .*give more text"):
        corpus_source(["resid_post.0"], tokens=16)


def test_folders_of_something_else_and_corrupt_ones_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "plan.json.abcdefgh.partial").write_text("killed")
    short = PLAN.model_copy(update={"steps": 10})
    train_dictionaries(short, source(), folder)
    with pytest.raises(StoreError, match="holds another plan"):
        train_dictionaries(PLAN, source(), folder)
    (folder / "training.safetensors").write_bytes(b"broken")
    with pytest.raises(StoreError):
        train_dictionaries(short, source(), folder)
    (folder / "plan.json").write_text("broken")
    with pytest.raises(StoreError, match="cannot be read"):
        train_dictionaries(short, source(), folder)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="is a file; give a folder"):
        train_dictionaries(PLAN, source(), tmp_path / "file")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="something else"):
        train_dictionaries(PLAN, source(), other)


def test_a_plan_is_read_from_toml_and_single_fields_replaced(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('testbed = "planted_dictionary/sparse"\nwidth = [8, 16]\n[recipe]\ninitial = "data"\n')
    plan = Plan.of_file(path, {"width": ["32"], "k": ["2"]})
    assert (plan.width, plan.k, plan.testbed) == ((32,), (2.0,), "planted_dictionary/sparse")
    assert next(iter(plan.recipes().values())).initial == "data"
    more = Plan.of_file(path, {"k": 2, "recipe": {"prefixes": "4,8"}, "width": 8})
    (recipe,) = more.recipes().values()
    assert (recipe.initial, recipe.prefixes) == ("data", (4, 8))
    with pytest.raises(InputError, match="cannot be read"):
        Plan.of_file(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"k\.1: Input should be greater than 0"):
        Plan.of_file(path, {"k": "8,0"})
    path.write_text("width = [")
    with pytest.raises(InputError, match="is no TOML"):
        Plan.of_file(path)
