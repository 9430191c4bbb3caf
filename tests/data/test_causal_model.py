"""A causal model computes what its functions say; an interchange changes what lies behind a variable, nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.core.errors import InputError
from microtome.data.causal_model import TOKENS, CausalModel, Variable

# (a + b) * c, where a, b, c are three tokens.
ARITHMETIC = CausalModel(
    (
        Variable("product", ("sum", "last"), lambda total, last: total * last),  # before its parents
        Variable("sum", (TOKENS,), lambda tokens: (tokens[:, :1] + tokens[:, 1:2]).expand(-1, 3)),
        Variable("last", (TOKENS,), lambda tokens: tokens[:, 2:].expand(-1, 3)),
        Variable("answer", ("product",), lambda product: product),
    )
)
ROWS = st.lists(st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=1, max_size=4).map(
    torch.tensor
)


def same(tokens: torch.Tensor) -> torch.Tensor:
    return tokens


@given(ROWS)
def test_it_computes_what_its_functions_say(tokens: torch.Tensor) -> None:
    a, b, c = tokens.T
    assert ARITHMETIC.run(tokens)["answer"][:, 0].tolist() == ((a + b) * c).tolist()


@given(ROWS, st.data())
def test_an_interchange_takes_the_variable_from_the_source(tokens: torch.Tensor, data: st.DataObject) -> None:
    source = tokens[torch.tensor(data.draw(st.permutations(range(len(tokens)))))]
    (a, b, c), (d, e, f) = tokens.T, source.T
    expected = {
        ("sum",): (d + e) * c,
        ("last",): (a + b) * f,
        ("sum", "last"): (d + e) * f,
        ("product",): (d + e) * f,
        ("product", "last"): (d + e) * f,
    }
    for names, answer in expected.items():
        assert torch.equal(ARITHMETIC.interchange(tokens, source, names)[:, 0], answer)
    for names in expected:  # from a row to itself, nothing changes
        assert torch.equal(ARITHMETIC.interchange(tokens, tokens, names), ARITHMETIC.run(tokens)["answer"])


def test_where_a_variable_matters() -> None:
    last_alone = CausalModel(
        (
            Variable("double", (TOKENS,), lambda tokens: 2 * tokens),
            Variable("answer", ("double",), lambda double: double[:, -1:].expand_as(double)),
        )
    )
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert last_alone.matters(tokens, tokens.flip(0), "double").tolist() == [False, False, True]
    assert last_alone.matters(tokens, tokens, "double").tolist() == [False, False, False]
    with pytest.raises(InputError, match="no variable 'half'"):
        last_alone.matters(tokens, tokens, "half")


def test_names() -> None:
    assert ARITHMETIC.answer == "answer"
    assert ARITHMETIC.inner == ("product", "sum", "last")
    assert ARITHMETIC.parents("product") == ("sum", "last")


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ((), "at least one variable"),
        ((Variable("a", ("b",), same), Variable("b", ("a",), same)), "in a circle"),
        ((Variable("a", ("a",), same),), "in a circle"),
        ((Variable("a", ("tokns",), same),), r"\['tokns'\], expected some of \['a'\]"),
        ((Variable("a", (), same),), "the parents of a are none"),
        ((Variable("a", (TOKENS,), same), Variable("a", (TOKENS,), same)), "repeat a name"),
        ((Variable("tokens", (TOKENS,), same),), "repeat a name"),
    ],
)
def test_what_is_no_causal_model_is_refused(variables: tuple[Variable, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        CausalModel(variables)


def test_unknown_variables_are_told() -> None:
    tokens = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(InputError, match="no variable 'total'; there are product, sum"):
        ARITHMETIC.interchange(tokens, tokens, ["total"])
    with pytest.raises(InputError, match="no variable 'total'"):
        ARITHMETIC.run(tokens, {"total": tokens})


@given(ROWS, st.sets(st.sampled_from(ARITHMETIC.inner)), st.data())
def test_a_coarser_model_answers_the_same(tokens: torch.Tensor, names: set[str], data: st.DataObject) -> None:
    coarse = ARITHMETIC.keeping(names)
    assert set(coarse.inner) == names
    source = tokens[torch.tensor(data.draw(st.permutations(range(len(tokens)))))]
    fine, rough = ARITHMETIC.run(tokens), coarse.run(tokens)
    assert all(torch.equal(fine[name], rough[name]) for name in rough)
    assert torch.equal(
        ARITHMETIC.interchange(tokens, source, names), coarse.interchange(tokens, source, names)
    )


def test_a_coarser_model_reads_from_the_nearest_variables_kept() -> None:
    assert ARITHMETIC.keeping(["sum"]).parents("answer") == ("sum", TOKENS)
    assert ARITHMETIC.keeping([]).parents("answer") == (TOKENS,)
    with pytest.raises(InputError, match="no variable 'difference'"):
        ARITHMETIC.keeping(["difference"])


def test_values_outside_a_domain_or_of_another_shape_are_refused() -> None:
    model = CausalModel((Variable("bit", (TOKENS,), lambda tokens: tokens % 3, frozenset({0, 1})),))
    tokens = torch.tensor([[0, 1]])
    assert model.run(tokens)["bit"].tolist() == [[0, 1]]
    with pytest.raises(InputError, match=r"values \[2\], which are not in its domain \[0, 1\]"):
        model.run(tokens + 1)
    with pytest.raises(InputError, match=r"values \[7\]"):
        model.run(tokens, {"bit": torch.full_like(tokens, 7)})
    with pytest.raises(InputError, match=r"shape \[1, 1\], expected one a token, \[1, 2\]"):
        model.run(tokens, {"bit": tokens[:, :1]})
