"""An alignment implies the circuit's edges, and refuses places that do not fit the causal model or the network."""

from collections.abc import Mapping

import pytest

from microtome.core.errors import InputError
from microtome.data.causal_model import TOKENS, CausalModel, Variable
from microtome.testbeds.interchange.alignment import Alignment, Place
from microtome.testbeds.interchange.wiring import Wiring


def model() -> CausalModel:
    """Two variables in a chain, the second of which reads the tokens too."""
    return CausalModel(
        (
            Variable("low", (TOKENS,), lambda tokens: tokens),
            Variable("high", ("low", TOKENS), lambda low, tokens: low + tokens),
            Variable("answer", ("high",), lambda high: high),
        )
    )


def align(**places: Place) -> Alignment:
    return Alignment(model(), places, Wiring(2, 2))


LOW = Place(("z.0.h1",), {TOKENS: "qk"})


def test_edges_follow_from_the_places() -> None:
    found = align(low=LOW, high=Place(("mlp_out.1",)))
    assert set(found.edges) == {
        ("embed", "z.0.h1", "q"),
        ("embed", "z.0.h1", "k"),
        ("z.0.h1", "mlp_out.1", "mlp"),
        ("embed", "mlp_out.1", "mlp"),
        ("mlp_out.1", "logits", "logits"),
    }
    assert found.nodes == ("z.0.h1", "mlp_out.1")
    assert found.spared == ("z.0.h0", "mlp_out.0", "z.1.h0", "z.1.h1")
    effect = dict.fromkeys(found.edges, 0.25)
    circuit = found.circuit(effect)
    assert {edge.ends for edge in circuit.edges} == set(found.edges)
    assert {edge.weight for edge in circuit.edges} == {0.25}
    assert set(circuit.nodes) == {"embed", "logits", *found.nodes}


def test_a_variable_may_stand_in_several_nodes() -> None:
    found = align(
        low=Place(("z.0.h0", "z.0.h1"), {TOKENS: "v"}), high=Place(("z.1.h0",), {"low": "k", TOKENS: "v"})
    )
    assert {("z.0.h0", "z.1.h0", "k"), ("z.0.h1", "z.1.h0", "k"), ("embed", "z.1.h0", "v")} <= set(
        found.edges
    )
    assert len(found.edges) == 6


def test_what_is_outside_is_the_rest() -> None:
    found = align(low=LOW, high=Place(("mlp_out.1",)))
    inside = found.wiring.mask(found.edges)
    assert not bool((inside & found.outside).any())
    assert int((inside | found.outside).sum()) == len(found.wiring.edges)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({"low": LOW}, r"places of \['low'\], expected one for each of \('low', 'high'\)"),
        ({"low": LOW, "high": Place(("mlp_out.1",)), "higher": Place(("z.1.h0",))}, "places of"),
        ({"low": LOW, "high": Place(("z.0.h1",), {TOKENS: "q"})}, "name a node twice"),
        ({"low": LOW, "high": Place(())}, "or a variable has none"),
        ({"low": LOW, "high": Place(("mlp_out.2",))}, r"has no \['mlp_out\.2'\]; there are z\.0\.h0"),
        (
            {"low": Place(("z.0.h1",)), "high": Place(("mlp_out.1",))},
            "must read tokens through some of q, k and v",
        ),
        ({"low": Place(("z.0.h1",), {TOKENS: "o"}), "high": Place(("mlp_out.1",))}, "not 'o'"),
        (
            {"low": Place(("mlp_out.1",)), "high": Place(("mlp_out.0",))},
            r"no edge from mlp_out\.1 to mlp_out\.0",
        ),
        (
            {"low": LOW, "high": Place(("z.0.h0",), {"low": "v", TOKENS: "v"})},
            r"no edge from z\.0\.h1 to z\.0\.h0",
        ),
    ],
)
def test_places_that_do_not_fit_are_refused(places: Mapping[str, Place], said: str) -> None:
    with pytest.raises(InputError, match=said):
        align(**places)
