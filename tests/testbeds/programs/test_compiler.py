"""The answer key of a compiled program is true: variables stand where it says, and what it leaves out does nothing."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import microtome
from microtome.core.edits import Project, Zero
from microtome.core.errors import InputError
from microtome.testbeds.programs.compiler import Compiled, compile_program
from microtome.testbeds.programs.language import (
    EVERYWHERE,
    INDICES,
    TOKENS,
    Aggregate,
    Combined,
    Expression,
    Select,
    Selector,
    Sum,
    Value,
    Width,
    interpret,
)
from microtome.testbeds.programs.library import PROGRAMS, program
from microtome.testbeds.programs.testbed import decoys

LETTERS = ("a", "b")


def every(compiled: Compiled) -> list[tuple[Value, ...]]:
    return list(itertools.product(compiled.domain.vocabulary, repeat=compiled.domain.length))


@pytest.mark.parametrize("name", ["reverse", "sort", "dyck_1", "majority", "induction", "lookup"])
def test_every_variable_stands_where_the_key_says(name: str) -> None:
    """At the site, along the directions, is the value that the interpreter computes, and nothing else."""
    one = program(name)
    expression = one.build()
    compiled = compile_program(expression, one.vocabulary, one.length, causal=one.causal)
    model = microtome.load(compiled.transformer())
    inputs = every(compiled)[::7]
    truth = compiled.truth()
    run = model.run(compiled.encode(inputs), sorted({str(v.site) for v in truth.variables}))
    named = {}

    def visit(part: Any) -> None:
        if isinstance(part, Expression) and part.name:
            named[part.name] = part
        for value in vars(part).values() if isinstance(part, (Expression, Selector)) else ():
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, (Expression, Selector)):
                    visit(inner)

    visit(expression)
    checked = 0
    for variable in truth.variables:
        if variable.name not in named:
            continue
        found = run[variable.site][:, 1:] @ variable.directions.T
        for row, tokens in enumerate(inputs):
            values = interpret(named[variable.name], tokens, causal=one.causal)
            for column, value in enumerate(values):
                if variable.values:
                    expected = torch.tensor([float(v in (value, str(value))) for v in variable.values])
                else:
                    expected = torch.tensor([float(value)])
                torch.testing.assert_close(found[row, column], expected, rtol=0, atol=1e-4)
                checked += 1
    assert checked > len(inputs)


@pytest.mark.parametrize("name", ["reverse", "sort", "histogram", "dyck_1", "indirect_object", "duplicates"])
def test_the_circuit_is_all_that_matters_and_all_of_it_matters(name: str) -> None:
    one = program(name)
    compiled = one.compile(decoys())
    model = microtome.load(compiled.transformer())
    circuit = compiled.truth().circuit
    assert circuit is not None
    # All lengths: where all inputs are equally long, what counts them does nothing.
    batches = [
        compiled.encode(list(itertools.product(one.vocabulary, repeat=length)))
        for length in range(1, one.length + 1)
    ]

    def said(*edits: Zero) -> list[list[list[Value]]]:
        return [compiled.decode(model.run(tokens, edit=edits).logits) for tokens in batches]

    plain = said()
    parts = [f"z.{layer}.h{head}" for layer in range(model.n_layers) for head in range(model.n_heads)]
    parts += [f"mlp_out.{layer}" for layer in range(model.n_layers)]
    outside = [part for part in parts if part not in circuit]
    assert outside
    assert said(*(Zero(part) for part in outside)) == plain
    for part in parts:
        if part in circuit:
            assert said(Zero(part)) != plain, part


def test_taking_a_variable_out_takes_away_what_depends_on_it() -> None:
    one = program("sort")
    compiled = one.compile()
    model = microtome.load(compiled.transformer())
    tokens = compiled.encode(every(compiled))
    plain = compiled.decode(model.run(tokens).logits)
    for variable in compiled.truth().variables:
        gone = model.run(tokens, edit=[Project(variable.site, directions=variable.directions)]).logits
        assert compiled.decode(gone) != plain, variable.name


def test_decoys_are_computed_and_in_no_truth() -> None:
    one = program("reverse")
    plain, crowded = one.compile().truth(), one.compile(decoys()).truth()
    assert {v.name for v in plain.variables} == {v.name for v in crowded.variables}
    assert not any("decoy" in v.name for v in crowded.variables)
    assert one.compile(decoys()).sizes["heads"] > one.compile().sizes["heads"]


PREDICATES: dict[str, Callable[[Any, Any], bool]] = {
    "equal": lambda key, query: key == query,
    "less": lambda key, query: str(key) < str(query),
    "first": lambda key, query: key in ("a", 0, 1),
    "never": lambda key, query: False,
}
SEQUENCES = st.sampled_from([TOKENS, INDICES])
SELECTS = st.builds(
    lambda keys, queries, name: Select(keys, queries, PREDICATES[name]),
    SEQUENCES,
    SEQUENCES,
    st.sampled_from(sorted(PREDICATES)),
)
SELECTORS = st.recursive(
    SELECTS,
    lambda inner: st.one_of(
        st.builds(lambda one, two: one & two, inner, inner),
        st.builds(lambda one, two: one | two, inner, inner),
        st.builds(lambda one: ~one, inner),
    ),
    max_leaves=3,
)
NUMBERS = TOKENS.map(lambda token: 2 if token == "a" else -1, numerical=True)


@settings(max_examples=40, deadline=None)
@given(selector=SELECTORS, causal=st.booleans(), what=st.sampled_from(["width", "mean", "sum", "twice"]))
def test_any_program_of_these_compiles_to_what_it_means(selector: Selector, causal: bool, what: str) -> None:
    expression: Expression
    match what:
        case "width":
            expression = Width(selector)
        case "mean":
            expression = Aggregate(selector, NUMBERS, 3)
        case "sum":
            expression = Sum(selector, NUMBERS)
        case _:
            count = Width(selector)
            expression = Aggregate(Select(count, count, lambda key, query: key >= query), NUMBERS, 0)
    compiled = compile_program(expression, LETTERS, 3, causal=causal)
    module = compiled.transformer()
    for length in (1, 2, 3):
        inputs = list(itertools.product(LETTERS, repeat=length))
        with torch.no_grad():
            said = compiled.decode(module(compiled.encode(inputs)).logits)
        assert said == [interpret(expression, tokens, causal=causal) for tokens in inputs]


def test_what_cannot_compile_is_refused_with_the_reason() -> None:
    def refused(
        expression: Expression, why: str, vocabulary: tuple[Value, ...] = LETTERS, length: int = 4
    ) -> None:
        with pytest.raises(InputError, match=why):
            compile_program(expression, vocabulary, length)

    refused(Sum(EVERYWHERE, TOKENS), "tokens is categorical and has no sum")
    refused(TOKENS.map(lambda token: token + 1), "has no value for 'a'")
    refused(TOKENS.map(lambda token: token, numerical=True), "'a' is no exact number")
    refused(Width(Select(TOKENS, INDICES, lambda key, query: key < query)), "predicate of a selector fails")
    refused(Expression(), "cannot be compiled")
    refused(Width(Selector()), "is no selector")
    many = TOKENS.map(lambda token: 2**token, numerical=True)
    refused(Aggregate(EVERYWHERE, many), "more than 1024", tuple(range(12)), 8)
    refused(TOKENS, "vocabulary of different tokens", ("a", "a"))
    with pytest.raises(InputError, match="vocabulary"):
        compile_program(TOKENS, (), 3)
    assert isinstance(~EVERYWHERE, Combined)


def test_inputs_that_do_not_fit_are_refused() -> None:
    compiled = program("reverse").compile()
    for inputs, why in (
        ([["a", "d"]], "'d' is not in the vocabulary"),
        ([["a"] * 6], "from 1 to 5"),
        ([["a"], ["a", "b"]], "one length"),
        ([], "one length"),
    ):
        with pytest.raises(InputError, match=why):
            compiled.encode(inputs)
    with pytest.raises(InputError, match="neither a token nor an output"):
        compiled.id("z")


def test_a_program_that_breaks_its_word_is_told() -> None:
    nothing = Aggregate(Select(TOKENS, TOKENS, lambda key, query: False), TOKENS, name="nothing")
    with pytest.raises(InputError, match="nothing chooses nothing"):
        interpret(nothing, ["a"], causal=False)
    several = Aggregate(EVERYWHERE, TOKENS, name="several")
    with pytest.raises(InputError, match=r"several chooses \['a', 'b'\] at once"):
        interpret(several, ["a", "b"], causal=False)


def test_every_program_compiles_small() -> None:
    assert all(one.compile().sizes["d_model"] < 400 for one in PROGRAMS)
