"""The places of a trained algorithm are found from nothing but the algorithm; in random weights there are none."""

import pytest
import torch
from tests.causal.cases import compiled, trained

from microtome.causal import hypothesis_search as method
from microtome.core.answers import NodeScores
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.data.causal_model import TOKENS, CausalModel, Variable

QUICK = method.Config(pairs=16, tries=1)


def test_the_true_places_are_found() -> None:
    case = trained("modular_sum")
    found = method.search(case.model, case.hypothesis.model, case.hypothesis.tokens, config=QUICK)
    assert found.best == case.hypothesis.told()
    assert found.data.attrs["twin_survivors"] == 0
    confirmed = found.data["confirmed"].values
    assert not (confirmed & ~found.data["survives"].values).any()
    assert found.data["bits"].values[0] == found.data["bits"].values.max()


def test_an_algorithm_that_the_network_does_not_run_is_found_nowhere() -> None:
    """The same answers by another way: the second digit doubled, and what is missing."""
    case = trained("modular_sum")
    honest = case.hypothesis.model
    other = CausalModel(
        (
            Variable("double", (TOKENS,), lambda tokens: 2 * tokens[:, 1:2].expand_as(tokens) % 7),
            Variable("rest", (TOKENS,), lambda tokens: (tokens[:, 3:4] - tokens[:, 1:2] + 0 * tokens) % 7),
            Variable("sum", ("double", "rest"), lambda double, rest: (double + rest) % 7),
            honest.variables[-1],
        )
    )
    found = method.search(case.model, other, case.hypothesis.tokens, config=QUICK)
    names = found.data["variables"].values[found.data["confirmed"].values].tolist()
    assert names == ["sum"]


def test_nodes_are_added_where_one_is_not_enough() -> None:
    """A variable that two heads hold together: both digits at once."""
    case = trained("modular_sum")
    pair = Variable(
        "digits", (TOKENS,), lambda tokens: (7 * tokens[:, 1:2] + tokens[:, 3:4]).expand_as(tokens).clone()
    )
    total = Variable("sum", ("digits",), lambda digits: (digits // 7 + digits) % 7)
    both = CausalModel((pair, total, case.hypothesis.model.variables[-1]))
    found = method.search(case.model, both, case.hypothesis.tokens, config=method.Config(pairs=16, tries=4))
    assert found.best == "digits (tokens) at z.0.h1 + z.0.h2; sum (digits) at mlp_out.1"


def test_where_the_hypothesis_says_is_not_looked_at_and_results_replay(tmp_path: object) -> None:
    case = trained("modular_sum")
    data = case.hypothesis.keeping(["sum"])
    found = method.run(case.model, data, QUICK)
    assert found == method.search(case.model, data.model, data.tokens, config=QUICK)
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    (answer,) = found.answers()
    assert isinstance(answer, NodeScores)
    assert max(answer.scores, key=lambda node: answer.scores[node]) == "mlp_out.1"
    assert found.shapes()[0].rows[0][0] == "sum"


def test_nothing_to_place_is_refused() -> None:
    case = compiled("sort")
    with pytest.raises(InputError, match="nothing to place"):
        method.search(case.model, case.hypothesis.model.keeping([]), torch.zeros(2, 2, dtype=torch.long))
