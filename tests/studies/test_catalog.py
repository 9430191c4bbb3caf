"""The menu is read without importing; broken methods keep their row; a question finds its method."""

import sys
import tomllib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import weight_norms

from microtome.core import plugins
from microtome.core.card import Card
from microtome.core.errors import InputError, PluginError
from microtome.core.result import Result
from microtome.studies import catalog

LITERAL = Path(weight_norms.__file__).read_text()


def row(name: str) -> catalog.Row:
    return next(row for row in catalog.menu() if row.name == name)


def test_a_literal_card_is_read_without_importing(offer: Callable[..., None]) -> None:
    offer("methods", source=LITERAL + "\nraise RuntimeError('imported')", weight_norms="read_only_here")
    assert row("weight_norms").card == weight_norms.card
    assert "read_only_here" not in sys.modules


def test_parents_are_not_imported(
    offer: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "loud_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "quiet.py").write_text(LITERAL)
    offer("methods", weight_norms="loud_package.quiet")
    assert row("weight_norms").card == weight_norms.card


def test_a_computed_card_costs_an_import(offer: Callable[..., None]) -> None:
    computed = LITERAL.replace('title="Weight norms"', 'title=" ".join(["Weight", "norms"])')
    assert computed != LITERAL
    offer("methods", source=computed, weight_norms="computed_card")
    assert row("weight_norms").card == weight_norms.card
    assert "computed_card" in sys.modules


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("x = (", "SyntaxError"),
        ("raise RuntimeError('boom')", "boom"),
        ("", "not a method"),
        (LITERAL.replace('needs="weights"', 'needs="money"'), "money"),
        (LITERAL.replace('needs="weights",', ""), "does not fit"),
    ],
)
def test_a_broken_method_keeps_its_row(offer: Callable[..., None], source: str, problem: str) -> None:
    offer("methods", package="one", source=source, broken="broken_method")
    offer("methods", package="two", weight_norms="weight_norms")
    assert problem in row("broken").problem
    assert row("weight_norms").card == weight_norms.card
    with pytest.raises(PluginError, match="is broken"):
        catalog.find("broken")


def test_one_card_is_found(offer: Callable[..., None]) -> None:
    offer("methods", weight_norms="weight_norms")
    assert catalog.find("weight-norms") == weight_norms.card
    with pytest.raises(PluginError, match="Did you mean"):
        catalog.find("weight-normz")


PATCHING = replace(
    weight_norms.card,
    name="activation_patching",
    title="Activation patching",
    question="Which activations cause the model's answer?",
    steps=("Replace an activation of the corrupt run with that of the clean run.",),
    needs="pairs",
    causal="intervention",
    locality="local",
)
LENS = replace(
    weight_norms.card,
    name="logit_lens",
    title="Logit lens",
    question="What would the model predict if it stopped at this layer?",
    needs="tokens",
    locality="local",
)
CARDS = (weight_norms.card, PATCHING, LENS)


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("which heads are responsible for this answer", PATCHING),
        ("Is this activation necessary?", PATCHING),
        ("what does it predict at each layer", LENS),
        ("how large are the parameters in the whole model", weight_norms.card),
        ("from the weights alone", weight_norms.card),
    ],
)
def test_a_question_finds_its_method(question: str, best: Card) -> None:
    found = catalog.suggest(question, CARDS)
    assert found[0].card == best
    assert found[0].because


def test_a_question_without_a_method_finds_none() -> None:
    assert catalog.suggest("what is the weather", CARDS) == ()
    assert catalog.suggest("", CARDS) == ()


def test_our_own_methods_come_in_by_the_same_door(root: Path) -> None:
    declared = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"][
        "microtome.methods"
    ]
    source = root / "src"
    written = {
        ".".join(path.relative_to(source).with_suffix("").parts)
        for path in source.rglob("*.py")
        if catalog._card_of_source(".".join(path.relative_to(source).with_suffix("").parts)) is not None
    }
    assert set(declared.values()) == written, "declare each method in pyproject.toml"
    assert all(value.rpartition(".")[2] == name for name, value in declared.items())
    assert set(declared) <= set(plugins.names("methods")), "run `make install` after changing pyproject.toml"


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_each_installed_method_keeps_the_contract(name: str) -> None:
    module = plugins.method(name)
    assert catalog.find(name) == module.card
    assert all(field.description for field in module.Config.model_fields.values()), (
        "a sentence at each setting"
    )
    if "seed" in module.Config.model_fields:
        with pytest.raises(InputError, match="seed: Input should be less"):
            module.Config.read({"seed": 2**32})
    assert module.__doc__
    assert issubclass(module.Result, Result)
    assert module.Result.__eq__ is Result.__eq__, "write @dataclass(frozen=True, eq=False), or no decorator"
    assert [f.name for f in fields(module.Result)] == [f.name for f in fields(Result)], (
        "all it says is in its data"
    )
