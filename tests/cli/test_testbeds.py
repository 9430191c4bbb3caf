"""`microtome testbeds`: the menu of understood networks, one testbed, one case, and names that are none."""

from collections.abc import Callable

import pytest
from typer.testing import Result

from microtome.core.errors import InputError, PluginError
from microtome.evaluation import cases


def test_the_menu_names_every_testbed_with_what_it_knows(command: Callable[..., Result]) -> None:
    found = command("testbeds")
    assert found.exit_code == 0, found.output
    assert "programs" in found.output
    assert "circuit" in found.output


def test_a_testbed_lists_its_cases_and_a_case_its_evidence(command: Callable[..., Result]) -> None:
    assert "programs/sort" in command("testbeds", "programs").output
    told = command("testbeds", "programs/sort").output
    assert "Sort the tokens" in told
    assert "inputs on which network and program differ" in told
    assert "variable rank" in told


def test_there_are_more_than_twenty_cases() -> None:
    names = cases.library()
    assert len(set(names)) == len(names) > 20


@pytest.mark.parametrize("name", ["programs/sortt", "progams/sort", "nothing", "programs/"])
def test_names_that_are_none(name: str, command: Callable[..., Result]) -> None:
    found = command("testbeds", name)
    assert found.exit_code == 2
    if "/" in name:
        with pytest.raises(InputError):
            cases.case(name)
    else:
        with pytest.raises(PluginError):
            cases.testbed(name)
