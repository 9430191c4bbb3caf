"""All circuits at once: of two tasks done along paths that share nothing, each keeps its own, and the union both."""

import pytest
import torch
from tests.circuits.planted import pairs_of, planted
from tests.models import families

from microtome.circuits.edge_graph import EdgeGraph
from microtome.core.circuit import Circuit, Edge
from microtome.core.errors import InputError
from microtome.evaluation.whole_replacement import Replacement, replace

PATH = [("embed", "z.0.h1", "v"), ("z.0.h1", "z.1.h2", "v"), ("z.1.h2", "logits", "logits")]


def circuit(*edges: tuple[str, str, str]) -> Circuit:
    return Circuit.of(sorted({end for edge in edges for end in edge[:2]}), [Edge(*edge) for edge in edges])


def test_each_circuit_keeps_its_task_and_the_union_both() -> None:
    """The second task is a difference of logits that the token now writes by itself, on the same network."""
    model, pairs = planted()
    embed, unembed = model.module.get_parameter("embed.weight"), model.module.get_parameter("unembed.weight")
    with torch.no_grad():
        unembed[:, :6] += 2 * torch.eye(6)
    assert embed.shape == unembed.shape
    last = pairs.clean.clone()
    last[:, -1] = (pairs.clean[:, -1] + 1) % 6
    here = pairs_of(pairs.clean, last, pairs.clean[:, -1].tolist(), last[:, -1].tolist())
    tasks = {"before": pairs, "now": here}
    circuits = {"before": circuit(*PATH), "now": circuit(("embed", "logits", "logits"))}
    found = replace(model, circuits, tasks)
    assert found.alone["before"]["before"] == pytest.approx(1, abs=0.1)
    assert found.alone["now"]["now"] == pytest.approx(1, abs=0.1)
    assert found.alone["before"]["now"] == pytest.approx(0, abs=0.1)
    assert found.alone["now"]["before"] == pytest.approx(0, abs=0.1)
    for name in tasks:
        assert found.together[name] == pytest.approx(1, abs=0.1)
        assert found.random[name] < 0.5
    assert found.union == 4
    assert found.total == len(EdgeGraph.of(model))
    assert Replacement(**found.plain()) == found
    assert found.grid().values.shape == (4, 2)
    assert "4 of" in found.table().caption


def test_bad_input() -> None:
    model, pairs = planted()
    with pytest.raises(InputError, match="a circuit and pairs for each task"):
        replace(model, {"one": circuit(*PATH)}, {"two": pairs})
    with pytest.raises(InputError, match="has no edges"):
        replace(model, {"one": Circuit.of(["z.0.h1"])}, {"one": pairs})
    with pytest.raises(InputError, match="no edge of this network"):
        replace(
            families.model("microtome_attention_only"),
            {"one": circuit(("z.7.h0", "logits", "logits"))},
            {"one": pairs},
        )
