"""Scrubbing accepts the true hypothesis of a network and rejects wrong ones; what it draws is what it says."""

import pytest
import torch
from tests.causal import wrong
from tests.causal.cases import compiled, trained
from tests.models import families

from microtome.causal import causal_scrubbing as method
from microtome.causal.interchange import places
from microtome.causal.scrub import Scrub
from microtome.core.cost import Recorder
from microtome.core.edits import Set
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.data.causal_model import TOKENS, CausalModel, Variable
from microtome.data.hypothesis import Hypothesis, Location
from microtome.models.model import Model
from microtome.models.random_twin import random_twin


def scrub(model: Model, data: Hypothesis) -> Scrub:
    return Scrub(model, data, data.values, torch.Generator().manual_seed(0), Recorder())


@pytest.mark.parametrize("which", ["trained", "compiled"])
def test_the_true_hypothesis_is_accepted_and_five_wrong_ones_are_not(which: str) -> None:
    if which == "trained":
        case, (true, others) = trained("modular_sum"), wrong.about_the_trained_one()
    else:
        case, (true, others) = compiled("shuffle_dyck_2"), wrong.about_the_compiled_one()
    found = method.run(case.model, true, method.Config(draws=1))
    recovered = dict(
        zip(found.data["version"].values.tolist(), found.data["recovered_accuracy"].values, strict=True)
    )
    assert found.survives
    assert recovered["scrubbed"] >= 0.99
    assert recovered["control"] < 0.5
    assert len(others) == 5
    for name, other in others.items():
        rejected = method.run(case.model, other, method.Config(draws=1))
        assert not rejected.survives, name
        assert rejected.data["recovered_accuracy"].values[1] < 0.9, name


def test_a_network_of_three_layers_of_attention_survives_its_own_hypothesis() -> None:
    case = trained("two_hops")
    assert method.run(case.model, case.hypothesis, method.Config(draws=1)).survives


def test_rows_are_drawn_among_those_with_the_same_value() -> None:
    case = trained("modular_sum")
    data = case.hypothesis
    rows = torch.arange(len(data.tokens))
    drawn = scrub(case.model, data).draw("left", rows)
    assert torch.equal(data.tokens[drawn, 1], data.tokens[:, 1])
    assert float((drawn == rows).double().mean()) < 0.2
    unique = Variable(
        "left", (TOKENS,), lambda tokens: (tokens @ torch.tensor([1, 7, 49, 343, 2401]))[:, None] + 0 * tokens
    )
    honest = Variable("sum", ("left", "right"), lambda left, right: (left // 7 % 7 + right) % 7)
    alone = wrong.otherwise(data, unique, honest)
    assert scrub(case.model, alone).alone("left") == 1.0


def test_a_hypothesis_that_calls_nothing_irrelevant_changes_nothing() -> None:
    """A variable that tells all rows apart, at a stream that everything passes: each row stands for itself."""
    model = families.model("llama")
    tokens = torch.randint(3, 40, (6, 5), generator=torch.Generator().manual_seed(0))
    plain = model.run(tokens).logits
    assert plain is not None
    said = plain.argmax(-1)
    row = Variable(
        "row",
        (TOKENS,),
        lambda given: (given[:, None] == tokens).all(-1).int().argmax(-1)[:, None] + 0 * given,
    )
    answer = Variable("answer", ("row",), lambda number: said[number[:, 0]])
    data = Hypothesis(CausalModel((row, answer)), {"row": Location("resid_post.0")}, tokens)
    rows = torch.arange(6)
    torch.testing.assert_close(
        scrub(model, data).logits(rows), plain[:, list(places(data))], atol=1e-4, rtol=1e-4
    )
    assert method.run(model, data, method.Config(draws=1)).survives


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_what_is_held_is_held_in_every_family(family: str) -> None:
    """With a head of the last layer as the one variable, the scrubbed answer depends on no other row than said."""
    model = families.model(family)
    tokens = torch.randint(3, 40, (5, 4), generator=torch.Generator().manual_seed(1))
    last = model.n_layers - 1
    row = Variable(
        "row",
        (TOKENS,),
        lambda given: (given[:, None] == tokens).all(-1).int().argmax(-1)[:, None] + 0 * given,
    )
    answer = Variable("answer", ("row",), lambda number: tokens[number[:, 0]])
    data = Hypothesis(CausalModel((row, answer)), {"row": Location(f"z.{last}.h1")}, tokens)
    one = scrub(model, data)
    rows = torch.arange(5)
    # The same draws again, by hand: a random row with the head of the reference row put in.
    source = torch.Generator().manual_seed(0)
    other = torch.randint(5, (5,), generator=source)
    found = one.logits(rows)
    site, mlp = f"z.{last}.h1", f"mlp_out.{last}"
    run = model.run(tokens, [site, mlp])
    edits = [Set(site, value=run[site]), Set(mlp, value=run[mlp][other])]
    expected = model.run(tokens[other], edit=edits).logits
    assert expected is not None
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_result_replays_and_comes_back_equal(tmp_path: object) -> None:
    case = trained("modular_sum")
    found = method.run(case.model, case.hypothesis, method.Config(draws=1))
    assert found == method.run(case.model, case.hypothesis, method.Config(draws=1))
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    assert "survives" in found.shapes()[0].caption


def test_what_cannot_be_scrubbed_is_refused() -> None:
    case = trained("modular_sum")
    data = case.hypothesis
    with pytest.raises(InputError, match=r"left stands at pattern\.0\.h1"):
        method.run(case.model, data.at(left=Location("pattern.0.h1")))
    with pytest.raises(InputError, match="nothing to scrub"):
        method.run(case.model, data.keeping([]))
    with pytest.raises(InputError, match="no behaviour to recover"):
        method.run(
            random_twin(case.model),
            wrong.otherwise(data, Variable("answer", ("sum",), lambda total: 0 * total)),
        )
