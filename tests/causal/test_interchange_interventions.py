"""Exchanges are exact; a true hypothesis survives all of them and a wrong one is told, row by row."""

import numpy as np
import pytest
import torch
from tests.causal.cases import compiled, trained

from microtome.causal import interchange
from microtome.causal import interchange_interventions as method
from microtome.core.cost import Recorder
from microtome.core.errors import InputError, SiteError
from microtome.core.result import Result
from microtome.data.causal_model import TOKENS, CausalModel, Variable
from microtome.data.hypothesis import Hypothesis, Location


@pytest.mark.parametrize("name", ["sort", "fraction_of_previous"])
def test_a_compiled_program_obeys_every_exchange_and_its_controls_do_not(name: str) -> None:
    case = compiled(name)
    found = method.run(case.model, case.hypothesis).data
    assert found.attrs["by_itself"] == 1.0
    assert found["accuracy"].values.tolist() == [1.0] * found.sizes["exchange"]
    for control in ("identity", "twin", "elsewhere"):
        assert found[f"{control}_changed"].values.max() < 0.2
    assert found.sizes["counterexample"] == 0


def test_a_trained_network_obeys_and_a_wrong_place_does_not() -> None:
    case = trained("modular_sum")
    right = method.run(case.model, case.hypothesis).data
    assert right["accuracy_changed"].values.min() >= 0.99
    wrong = method.run(case.model, case.hypothesis.at(left=Location("z.0.h0")))
    shares = dict(
        zip(wrong.data["exchange"].values.tolist(), wrong.data["accuracy_changed"].values, strict=True)
    )
    assert shares["left"] == 0.0
    assert shares["sum"] >= 0.99
    table = wrong.counterexamples
    assert len(table.rows) == 20 < wrong.data.attrs["counterexamples"]
    for exchanged, _, _, expected, got in table.rows:
        assert "left" in str(exchanged)
        assert expected != got


def test_swapped_variables_are_told_apart() -> None:
    case = trained("modular_sum")
    swapped = case.hypothesis.at(left=Location("z.0.h2"), right=Location("z.0.h1"))
    found = method.run(case.model, swapped, method.Config(largest=1)).data
    assert found["accuracy_changed"].values[:2].max() < 0.3


def test_each_row_is_one_plain_pass_with_the_sources_own_values() -> None:
    case = trained("modular_sum")
    data = case.hypothesis
    source = torch.Generator().manual_seed(3)
    one = interchange.draw(data, ["left", "right"], interchange.bases(data, 6, source), source, True)
    values = interchange.check_fit(case.model, data)
    logits = interchange.exchanged(case.model, data, values, [one], Recorder())[0]
    for pair in range(6):
        edits = []
        for name in one.names:
            row = data.tokens[one.sources[name][pair]][None]
            (site,) = data.locations[name].sites
            edits += data.locations[name].edits({site: case.model.run(row, [site])[site]})
        plain = case.model.run(data.tokens[one.base[pair]][None], edit=edits).logits
        assert plain is not None
        torch.testing.assert_close(
            logits[pair], plain[0, list(interchange.places(data))], atol=1e-4, rtol=1e-4
        )


def test_sources_change_half_of_the_answers_and_an_exchange_with_itself_none() -> None:
    data = trained("modular_sum").hypothesis
    source = torch.Generator().manual_seed(0)
    one = interchange.draw(data, ["left"], interchange.bases(data, 100, source), source)
    assert 50 <= int(one.changed.sum()) <= 100
    own = data.answers[one.base]
    assert torch.equal((one.due != own).any(-1), one.changed)
    assert torch.equal(data.model.interchange(data.tokens[one.base], data.tokens[one.base], ["left"]), own)


def test_the_result_replays_and_comes_back_equal(tmp_path: object) -> None:
    case = trained("modular_sum")
    config = method.Config(pairs=8, largest=1)
    found = method.run(case.model, case.hypothesis, config)
    assert found == method.run(case.model, case.hypothesis, config)
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    assert [shape.title for shape in found.shapes()] == [
        "interchange-intervention accuracy",
        "counterexamples",
    ]


def test_what_does_not_fit_the_network_is_refused() -> None:
    case = compiled("sort")
    data = case.hypothesis
    site = data.locations["rank"].sites[0]
    width = data.locations["rank"].directions.shape[1]
    with pytest.raises(
        InputError, match=f"rank has 1 directions of {width + 1} units, but resid_post.2 is {width} wide"
    ):
        method.run(case.model, data.at(rank=Location(site, torch.eye(width + 1)[:1])))
    with pytest.raises(SiteError, match=r"z\.9"):
        method.run(case.model, data.at(rank=Location("z.9.h0")))
    with pytest.raises(SiteError, match="head"):
        method.run(case.model, data.at(rank=Location("z.0.h99")))


def test_an_exchange_that_changes_nothing_shows_nothing() -> None:
    model = CausalModel(
        (
            Variable("unused", (TOKENS,), lambda tokens: tokens),
            Variable("answer", ("unused",), lambda unused: torch.zeros_like(unused)),
        )
    )
    case = trained("modular_sum")
    rows = case.hypothesis.tokens[:8]
    with pytest.raises(InputError, match="unused changes no answer"):
        method.run(case.model, Hypothesis(model, {"unused": Location("z.0.h0")}, rows))
    with pytest.raises(InputError, match="nothing to exchange"):
        method.run(case.model, Hypothesis(model.keeping([]), {}, rows))


def test_random_places_are_of_the_same_kind() -> None:
    case = trained("modular_sum")
    other = interchange.elsewhere(case.model, case.hypothesis, torch.Generator().manual_seed(0))
    assert other is not None
    assert not {*other.sites} & {*case.hypothesis.sites}
    directed = compiled("sort")
    turned = interchange.elsewhere(directed.model, directed.hypothesis, torch.Generator().manual_seed(0))
    assert turned is not None
    rank = turned.locations["rank"].directions
    assert rank is not None
    np.testing.assert_allclose((rank @ rank.T).numpy(), np.eye(5), atol=1e-5)
    stream = directed.hypothesis.at(rank=Location("resid_post.2"))
    assert interchange.elsewhere(directed.model, stream, torch.Generator()) is None


def test_of_many_sets_of_variables_some_are_drawn() -> None:
    data = trained("modular_sum").hypothesis
    source = torch.Generator().manual_seed(0)
    rows = interchange.bases(data, 8, source)
    every, notes = interchange.exchanges(data, rows, 3, 100, source)
    assert (len(every), notes) == (3 + 2 * 4, ())
    some, notes = interchange.exchanges(data, rows, 3, 2, source)
    assert len(some) == 3 + 2
    assert notes == ("Of 8 ways to exchange several variables, 2 were drawn at random.",)
