"""Strangers' methods come in by the door; what does not keep the contract is told what it lacks."""

import sys
from collections.abc import Callable

import pytest
import weight_norms

from microtome.core import plugins
from microtome.core.errors import PluginError

CARD = (
    "from microtome.core.card import Card\n"
    "card = Card(name='half', title='t', question='q?', steps=('s',), reference='r', misleads='m',\n"
    "            needs='weights', causal='observation')\n"
)


def test_a_strangers_method_is_found(offer: Callable[..., None]) -> None:
    assert "weight_norms" not in plugins.names("methods")
    offer("methods", weight_norms="weight_norms")
    assert "weight_norms" in plugins.names("methods")
    assert plugins.method("weight_norms") is weight_norms
    assert plugins.method("weight-norms") is weight_norms


def test_names_import_nothing(offer: Callable[..., None]) -> None:
    offer("methods", source="raise RuntimeError('imported')", explosive="explosive")
    assert "explosive" in plugins.names("methods")
    assert plugins.entry("methods", "explosive").value == "explosive"
    assert "explosive" not in sys.modules
    with pytest.raises(PluginError, match="RuntimeError: imported"):
        plugins.method("explosive")


def test_what_is_installed_after_a_first_look_is_found(offer: Callable[..., None]) -> None:
    offer("methods", weight_norms="weight_norms")
    before = plugins.names("methods")
    offer("methods", package="later", another="weight_norms")
    assert set(plugins.names("methods")) == {*before, "another"}
    assert plugins.entry("methods", "another").value == "weight_norms"


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("", ["card", "Config", "Result", "run"]),
        (CARD, ["Config", "Result", "run"]),
        (CARD + "class Config: ...\nclass Result: ...\n", ["run"]),
        (CARD + "class Config: ...\nclass Result: ...\nrun = 3\n", ["run"]),
        ("card = 'half'\nclass Config: ...\nclass Result: ...\ndef run(): ...\n", ["card"]),
    ],
)
def test_what_is_missing_is_named(offer: Callable[..., None], source: str, missing: list[str]) -> None:
    offer("methods", source=source, half="half")
    with pytest.raises(PluginError, match="not a method") as refusal:
        plugins.method("half")
    told = str(refusal.value)
    assert [part for part in plugins.CONTRACT if f"{part} (" in told] == missing


def test_one_name_in_every_place(offer: Callable[..., None]) -> None:
    offer("methods", norms="weight_norms")
    with pytest.raises(PluginError, match="calls itself 'weight_norms'"):
        plugins.method("norms")


def test_unknown_names_are_helped(offer: Callable[..., None]) -> None:
    offer("methods", weight_norms="weight_norms")
    with pytest.raises(PluginError, match=r"Did you mean weight_norms\?"):
        plugins.method("weigth-norms")
    with pytest.raises(PluginError, match=r"There are: .*weight_norms"):
        plugins.method("zzz")
    with pytest.raises(PluginError, match="no family is called 'zzz'"):
        plugins.entry("families", "zzz")


def test_a_module_that_is_not_there(offer: Callable[..., None]) -> None:
    offer("methods", gone="no_such_module_anywhere")
    with pytest.raises(PluginError, match="cannot be imported"):
        plugins.method("gone")


def test_two_packages_with_one_name(offer: Callable[..., None]) -> None:
    offer("methods", package="one", weight_norms="weight_norms")
    assert plugins.method("weight_norms")
    offer("methods", package="two", **{"weight-norms": "other_norms"})
    with pytest.raises(PluginError, match="2 packages offer a method"):
        plugins.method("weight_norms")


def test_every_kind_has_a_door(offer: Callable[..., None]) -> None:
    offer("bases", package="one", thing="weight_norms:card")
    assert plugins.load("bases", "thing") is weight_norms.card
    for kind in ("methods", "tasks", "families", "testbeds"):
        assert "thing" not in plugins.names(kind)
