"""All cases of the toys keep the common form: canonical sites, directions as wide as their site, a label a row."""

import pytest
import torch

from microtome.core.site import Site
from microtome.evaluation import cases as library

BEDS = (
    "animals",
    "codes",
    "computation_in_superposition",
    "head_superposition",
    "planted_dictionary",
    "superposition",
)
NAMES = [f"{bed}/{case}" for bed in BEDS for case in library.testbed(bed).cases()]


def test_there_are_as_many_as_are_told() -> None:
    assert len(NAMES) == 27


@pytest.mark.parametrize("name", NAMES)
def test_the_common_form(name: str) -> None:
    case = library.case(name)
    assert case.name == name
    assert all(one.holds for one in case.evidence)
    tokens = case.data("tokens")
    sites: list[Site | str] = [
        *case.truth.features,
        *(str(variable.site) for variable in case.truth.variables),
    ]
    values = case.model.run(tokens, read=list(dict.fromkeys(sites)), logits=True)
    for key, directions in case.truth.features.items():
        assert str(Site.parse(key)) == key
        assert directions.shape[-1] == values[key].shape[-1]
        assert bool((directions.norm(dim=-1) > 0).all())
        assert not directions.requires_grad
    for variable in case.truth.variables:
        assert variable.directions.shape[-1] == values[variable.site].shape[-1]
        assert not variable.directions.requires_grad
    first = tokens if isinstance(tokens, torch.Tensor) else next(iter(tokens.values()))
    assert all(len(label) == len(first) for label in case.truth.labels.values())
    assert case.control.name != case.model.name
    library.described(case)
