"""Compiled variables are found in the stream, by learned size and by mask too; random weights do not obey."""

import numpy as np
import pytest
import torch
from tests.causal.cases import compiled, trained

from microtome.causal import distributed_alignment_search as method
from microtome.causal.learned_subspace import Subspace
from microtome.causal.partial_swap import PartialSwap
from microtome.core.answers import Directions
from microtome.core.edits import Swap
from microtome.core.errors import EditError, InputError
from microtome.core.result import Result
from microtome.data.hypothesis import Hypothesis, Location

QUICK = {"steps": 40, "starts": 1, "pairs": 128}


def somewhere(data: Hypothesis, name: str) -> Hypothesis:
    """The variable's site and number of directions, but not which: another span, of random directions."""
    location = data.locations[name]
    drawn = torch.randn(location.directions.T.shape, generator=torch.Generator().manual_seed(5))
    return data.keeping([name]).at(
        **{name: Location(location.sites, torch.linalg.qr(drawn).Q.T.contiguous())}
    )


@pytest.mark.parametrize(("program", "name"), [("parity", "parity"), ("sort", "sort")])
def test_a_compiled_variable_is_found_and_not_in_random_weights(program: str, name: str) -> None:
    case = compiled(program)
    config = method.Config(**{**QUICK, "steps": 60, "starts": 2})
    found = method.run(case.model, somewhere(case.hypothesis, name), config).data.isel(variable=0)
    assert float(found["accuracy_changed"]) >= 0.99
    assert float(found["twin_changed"]) < 0.2
    assert float(found["identity_changed"]) == 0.0
    true = case.hypothesis.locations[name].directions
    # Exchanges move differences between values alone, so these are what must be in the span.
    apart = (true - true.mean(0)).numpy()
    span = found["directions"].values
    inside = apart @ span.T @ span
    assert (inside**2).sum() > (apart**2).sum() / 2


@pytest.mark.parametrize("kind", ["boundless", "mask"])
def test_the_number_of_directions_is_learned_too(kind: str) -> None:
    case = compiled("parity")
    settings = {**QUICK, "steps": 80, "rate": 0.05, "price": 0.05, "kind": kind}
    found = method.run(case.model, somewhere(case.hypothesis, "parity"), method.Config.read(settings)).data
    width = case.hypothesis.locations["parity"].directions.shape[1]
    assert float(found["accuracy_changed"][0]) >= 0.99
    assert 1 <= int(found["size"][0]) < width // 2
    rows = found["directions"][0].values
    rows = rows[np.isfinite(rows).all(1)]
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-4)
    if kind == "mask":
        assert set(np.unique(rows)) <= {0.0, 1.0}


def test_directions_start_orthonormal_and_where_they_are_told_to() -> None:
    source = torch.Generator().manual_seed(0)
    drawn = Subspace("rotation", 37, 2, source).directions.detach()
    torch.testing.assert_close(drawn @ drawn.T, torch.eye(2), atol=1e-5, rtol=0)
    first = torch.eye(37)[3:4]
    begun = Subspace("rotation", 37, 2, source, first).directions.detach()
    assert abs(float(begun[0] @ first[0])) == pytest.approx(1.0, abs=1e-5)


def test_answers_name_the_variable_and_replay(tmp_path: object) -> None:
    case = compiled("parity")
    config = method.Config(**{**QUICK, "steps": 5})
    found = method.run(case.model, somewhere(case.hypothesis, "parity"), config)
    (answer,) = found.answers()
    assert isinstance(answer, Directions)
    assert (str(answer.site), answer.variable) == ("resid_post.1", "parity")
    assert answer.directions.shape == (2, 37)
    assert found.directions("parity").shape == (2, 37)
    assert found == method.run(case.model, somewhere(case.hypothesis, "parity"), config)
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    assert found.data.sizes["step"] == 5
    with pytest.raises(InputError, match="was not searched"):
        found.directions("ones")


def test_the_network_is_left_as_it_was() -> None:
    case = compiled("parity")
    before = {name: value.clone() for name, value in case.model.module.state_dict().items()}
    state = torch.get_rng_state()
    method.run(case.model, somewhere(case.hypothesis, "parity"), method.Config(**{**QUICK, "steps": 2}))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in case.model.module.state_dict().items())
    assert all(parameter.grad is None for parameter in case.model.module.parameters())


def test_a_partial_swap_at_full_shares_is_a_swap() -> None:
    source = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(5, 2, generator=source)).Q.T
    value, other = torch.randn(2, 3, 4, 5, generator=source)
    whole = PartialSwap("resid_pre.0", directions=directions, share=torch.ones(2), value=other)
    swap = Swap("resid_pre.0", directions=directions, value=other)
    torch.testing.assert_close(whole.apply(value), swap.apply(value), atol=1e-5, rtol=0)
    none = PartialSwap("resid_pre.0", directions=directions, share=torch.zeros(2), value=other)
    assert torch.equal(none.apply(value), value)
    with pytest.raises(EditError, match="do not fit the selection"):
        whole.apply(value[..., :4])


def test_what_cannot_be_searched_is_refused() -> None:
    case, whole = compiled("parity"), trained("modular_sum")
    with pytest.raises(InputError, match="no variable 'odd'"):
        method.run(case.model, case.hypothesis, method.Config(variables=("odd",)))
    with pytest.raises(InputError, match="no number of directions for left"):
        method.run(whole.model, whole.hypothesis)
    with pytest.raises(InputError, match="99 directions does not fit a site 37 wide"):
        method.run(case.model, case.hypothesis, method.Config(directions=99, **QUICK))
    several = whole.hypothesis.at(left=Location(("z.0.h1", "z.0.h0")))
    with pytest.raises(InputError, match="searched at one site"):
        method.run(whole.model, several, method.Config(directions=1, **QUICK))
