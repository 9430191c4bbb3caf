"""A true hypothesis yields no adversarial example; wrong ones yield them, with their own help sooner than by chance."""

import numpy as np
import pytest
import torch
from tests.causal import wrong
from tests.causal.cases import compiled, trained

from microtome.causal import adversarial_examples as method
from microtome.causal.adversarial_search import Search
from microtome.core.cost import Recorder
from microtome.core.errors import InputError, SiteError
from microtome.core.result import Result
from microtome.data.causal_model import TOKENS, UNASKED, Values, Variable
from microtome.data.hypothesis import Hypothesis, Location
from microtome.models.random_twin import random_twin

QUICK = method.Config(tries=32, rounds=2)


def test_the_true_hypothesis_yields_none_and_five_wrong_ones_yield_some() -> None:
    case, (true, others) = compiled("shuffle_dyck_2"), wrong.about_the_compiled_one()
    found = method.run(case.model, true, QUICK)
    assert not found.data["hit"].values.any()
    assert np.isnan([found.data.attrs[f"first_{search}"] for search in ("guided", "random")]).all()
    assert found.counterexamples.rows == ()
    built = found.data["n"].values > 0
    assert built.sum() == 2
    for share in ("flipped", "held"):
        assert (found.data[share].values[built] == 1).all()
    assert (found.data["held_random"].values[built] < 0.6).all()
    firsts, hits = [], []
    for name, other in others.items():
        config = method.Config(tries=40, rounds=4, scrub=name == "missing edge")
        broken = method.run(case.model, other, config).data
        assert broken["hit"].values.any(axis=1).all(), name
        firsts.append([broken.attrs["first_guided"], broken.attrs["first_random"]])
        hits.append(broken["hit"].values.sum(axis=1))
    soon, late = np.mean(firsts, axis=0)
    assert soon <= late
    guided, random = np.sum(hits, axis=0)
    assert guided > random


def test_what_is_seldom_wrong_is_found_sooner() -> None:
    """A left digit 6, in one row, is said to count as 5, one being added where it is seen: so the answer is right, and
    only exchanges with that row are answered otherwise."""
    case, (true, _) = trained("modular_sum"), wrong.about_the_trained_one()

    def total(left: Values, right: Values, tokens: Values) -> Values:
        return (left.clamp(max=5) + right + (tokens[:, 1:2] == 6).long()) % 7

    seldom = wrong.otherwise(true, Variable("sum", ("left", "right", TOKENS), total))
    six = true.tokens[:, 1] == 6
    seldom = seldom.rows([*(~six).nonzero()[:, 0].tolist(), int(six.nonzero()[0])])
    runs = [
        method.run(case.model, seldom, method.Config(tries=64, scrub=False, seed=seed)).data
        for seed in range(4)
    ]
    # The first of none is one later than all that were tried.
    guided, random = (
        np.mean([np.nan_to_num(run.attrs[f"first_{search}"], nan=65.0) for run in runs])
        for search in ("guided", "random")
    )
    assert guided < random / 2
    hits = np.sum([run["hit"].values.sum(axis=1) for run in runs], axis=0)
    assert hits[0] > 4 * hits[1]


def test_each_counterexample_is_one(tmp_path: object) -> None:
    """What is told of a trial is what a plain pass by hand gives."""
    case, (_, others) = trained("modular_sum"), wrong.about_the_trained_one()
    data = others["wrong node"]
    found = method.run(case.model, data, method.Config(tries=32, scrub=False, largest=2))
    names = data.model.inner
    rows = {" ".join(map(str, row.tolist())): row for row in data.tokens}
    assert found.counterexamples.rows
    for changed, base, source, expected, got in found.counterexamples.rows:
        chosen = [name for name in names if name in str(changed).split(" + ")]
        here, there = rows[str(base)][None], rows[str(source)][None]
        due = data.model.interchange(here, there, chosen)
        edits = []
        for name in chosen:
            (site,) = data.locations[name].sites
            edits += data.locations[name].edits({site: case.model.run(there, [site])[site]})
        logits = case.model.run(here, edit=edits).logits
        assert logits is not None
        asked = due != UNASKED
        assert str(expected) == " ".join(map(str, due[asked].tolist()))
        assert str(got) == " ".join(map(str, data.said(logits)[asked].tolist()))
        assert expected != got
    assert found == method.run(case.model, data, method.Config(tries=32, scrub=False, largest=2))
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    assert found.shapes()[0].title == "where the explanation breaks"


def test_wrong_answers_are_found_with_nothing_changed_and_a_random_twin_fails_everywhere() -> None:
    case, (true, _) = trained("modular_sum"), wrong.about_the_trained_one()
    answer = true.model.variables[-1]

    def carried(*given: Values) -> Values:
        right = answer.compute(*given)
        return torch.where(right == 3, 4, right)

    false = wrong.otherwise(true, Variable(answer.name, answer.parents, carried, answer.domain))
    config = method.Config(tries=160, scrub=False)
    found = method.run(case.model, false, config).data.sel(kind="nothing", search="guided")
    assert 0 < int(found["found"]) < int(found["tried"])
    twin = method.run(random_twin(case.model), true, QUICK).data
    assert (twin["hit"].values.mean(axis=1) > 0.5).all()


def test_new_inputs_are_recombined_from_columns() -> None:
    case = compiled("sort")
    config = method.Config(tries=48, rounds=3, recombined=40)
    found = method.run(case.model, case.hypothesis, config)
    assert not found.data["hit"].values.any()
    wider = method._recombined(case.hypothesis, 40, torch.Generator().manual_seed(0))
    assert len(wider.tokens) == len(case.hypothesis.tokens) + 40
    for column in range(wider.tokens.shape[1]):
        assert {*wider.tokens[:, column].tolist()} == {*case.hypothesis.tokens[:, column].tolist()}


def test_trials_are_alike_only_where_the_hypothesis_says_so() -> None:
    case, (true, _) = trained("modular_sum"), wrong.about_the_trained_one()
    search = Search(case.model, true, (("left",), ()), torch.Generator().manual_seed(0), Recorder())
    trials = search.drawn(400)
    values = true.tokens[:, 1]
    exchanged = (trials.kind == 0).nonzero()[:, 0]
    pairs = {
        (int(trials.cell[i]), int(values[trials.base[i]]), int(values[trials.source[i]])) for i in exchanged
    }
    assert len(pairs) == len({cell for cell, _, _ in pairs}) == len({one[1:] for one in pairs})
    first = search.guided(trials, 40, 1)
    assert len({*first.order.tolist()}) == 40
    kinds = trials.kind[first.order].tolist()
    assert kinds.count(0) == kinds.count(1) == 20
    assert len({*trials.cell[first.order].tolist()}) == 40
    assert trials.commits[first.order][torch.tensor(kinds) == 0].all()


def test_what_does_not_fit_is_refused() -> None:
    case = trained("modular_sum")
    with pytest.raises(SiteError, match=r"z\.9"):
        method.run(case.model, case.hypothesis.at(left=Location("z.9.h0")), QUICK)
    with pytest.raises(InputError, match="tries"):
        method.Config.read({"tries": 0})
    elsewhere = method.run(case.model, case.hypothesis.at(left=Location("q.0.h1")), QUICK)
    assert any("Nothing was drawn anew: left stands at q.0.h1" in note for note in elsewhere.notes)
    with pytest.raises(InputError, match="not what the hypothesis speaks of"):
        method.run(case.model, _mixing(case.hypothesis.rows(range(8))), method.Config(recombined=64))


def _mixing(data: Hypothesis) -> Hypothesis:
    """Whose first two digits must be seen together."""
    known = {tuple(row) for row in data.tokens[:, 1:4:2].tolist()}

    def seen(tokens: Values) -> Values:
        flags = [0 if tuple(row) in known else 1 for row in tokens[:, 1:4:2].tolist()]
        return torch.tensor(flags)[:, None].expand_as(tokens).clone()

    return wrong.otherwise(data, Variable("left", (TOKENS,), seen, frozenset({0})))
