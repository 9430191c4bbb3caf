"""Bindings in a network whose code is known: the tag of a filler stands where it was put, apart from the filler."""

import pytest
import torch
from tests.causal.cases import trained

from microtome.causal import variable_binding as method
from microtome.core.errors import InputError
from microtome.core.result import Result

PLACES = {"roles": (0, 2, 4, 6), "fillers": (1, 3, 5, 7)}


def test_the_known_code_is_found() -> None:
    """Four keys, each with its value: head 0.1 writes each value's key at the value, head 1.3 looks for it."""
    case = trained("look_up")
    found = method.run(case.model, case.hypothesis.tokens, method.Config(**PLACES))
    assert found.data.attrs["by_itself"] == 1.0
    assert found.holds("resid_pre.0") == "filler"
    assert found.holds("z.0.h1") == "tag"
    assert found.holds("resid_pre.1") == "both"
    others = [
        site
        for site in found.data["site"].values.tolist()
        if site not in ("resid_pre.0", "z.0.h1", "resid_pre.1")
    ]
    assert {found.holds(site) for site in others} == {""}
    assert found.data["moved"].sel(test="unrelated").values.max() == 0.0
    assert found.data["twin_moved"].values.max() < 0.4


def test_where_places_take_their_values_from() -> None:
    tokens = trained("look_up").hypothesis.tokens
    bindings = method._Bindings(tokens, method.Config(**PLACES))
    fillers, _, both, unrelated, content = bindings.tests
    taken = tokens[fillers.row, fillers.column]
    rows = torch.arange(len(tokens))
    asked = torch.tensor(PLACES["fillers"])[bindings.asked]
    assert torch.equal(taken[rows, asked], fillers.other)
    assert torch.equal(taken.sort(-1).values, tokens.sort(-1).values)
    assert int((tokens[both.row, both.column] != tokens).sum(-1).max()) <= 4
    assert not (unrelated.column[rows, asked] != asked).any()
    moved = content.row[rows, asked]
    role = torch.tensor(PLACES["roles"])[bindings.asked]
    assert torch.equal(tokens[moved, role][content.serves], tokens[rows, role][content.serves])
    assert (tokens[moved, asked] != bindings.answer)[content.serves].all()


def test_it_replays_and_comes_back_equal(tmp_path: object) -> None:
    case = trained("look_up")
    config = method.Config(**PLACES, sites=("z.0.h1",))
    found = method.run(case.model, case.hypothesis.tokens[:12], config)
    assert found == method.run(case.model, case.hypothesis.tokens[:12], config)
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    assert "answered right with nothing swapped" in found.shapes()[0].caption


def test_two_bindings_leave_nothing_unrelated() -> None:
    tokens = torch.tensor([[0, 5, 1, 4, 0], [1, 5, 0, 4, 0]])
    found = method._Bindings(tokens, method.Config(roles=(0, 2), fillers=(1, 3)))
    assert [int(test.serves.sum()) for test in found.tests] == [2, 2, 2, 0, 0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"roles": (0,), "fillers": (1,)}, "two bindings or more"),
        ({"roles": (0, 2), "fillers": (1,)}, "2 roles and 1 fillers"),
        ({"roles": (0, 2), "fillers": (0, 3)}, "must differ"),
        ({"roles": (0, 2), "fillers": (1, 8)}, "before the last of 9"),
        ({"roles": (1, 3), "fillers": (0, 2)}, "stands at 0 of its roles"),
        ({**PLACES, "sites": ("z.0.h1@3",)}, "selects positions"),
    ],
)
def test_what_are_no_bindings_is_refused(settings: dict[str, object], said: str) -> None:
    case = trained("look_up")
    with pytest.raises(InputError, match=said):
        method.run(case.model, case.hypothesis.tokens, method.Config.read(settings))
