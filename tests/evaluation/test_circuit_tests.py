"""Known circuits stand the tests, wrong ones fall: a planted path, a compiled program, a trained network."""

import pytest
import torch
from tests.circuits.planted import pairs_of, planted, random_pairs
from tests.models import families

from microtome.circuits.edge_graph import EdgeGraph
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.evaluation import circuit_tests
from microtome.evaluation.circuit_tests import Config
from microtome.testbeds.case import Case
from microtome.testbeds.interchange import testbed as interchange
from microtome.testbeds.programs import testbed as programs

Ends = tuple[str, str, str]
PATH: tuple[Ends, ...] = (
    ("embed", "z.0.h1", "v"),
    ("z.0.h1", "z.1.h2", "v"),
    ("z.1.h2", "logits", "logits"),
)


# To beat half of ten takes nine of them: the same tests with fewer passes than nine tenths of twenty-nine.
FEW = {"draws": 10, "quantile": 0.5, "permutations": 200}


def shown(case: Case) -> tuple[Ends, ...]:
    assert case.truth.circuit is not None
    return tuple(edge.ends for edge in case.truth.circuit.edges if edge.ends not in case.truth.unshown)


def examined(case: Case, edges: tuple[Ends, ...], **settings: object) -> circuit_tests.Result:
    assert case.pairs is not None
    given = {"circuit": edges, **FEW, "rows": 64} | settings
    return circuit_tests.run(case.model, case.pairs.rows(range(8)), Config.read(given))


def test_the_planted_path_is_minimal_sufficient_and_necessary() -> None:
    model, pairs = planted()
    found = circuit_tests.run(model, pairs, Config(circuit=PATH, **FEW))
    for name in ("minimality", "sufficiency", "partial necessity"):
        assert found.passed(name)
    assert found.share("kept") == pytest.approx(1, abs=0.05)
    assert found.share("left") == pytest.approx(0, abs=0.05)
    assert float(found.data["random_kept"].mean()) < 0.3
    low, high = found.interval("kept")
    assert low <= found.share("kept") <= high


def test_a_compiled_program_stands_the_tests_and_wrong_circuits_fall() -> None:
    case = programs.build("reverse")
    true = shown(case)
    found = examined(case, true)
    assert all(found.passed(name) for name in circuit_tests.TESTS)
    assert found.share("kept") == pytest.approx(1, abs=1e-4)
    assert found.share("left") == pytest.approx(0, abs=1e-4)
    # Without the edge that brings the answer, nothing is left of it.
    broken = examined(case, tuple(edge for edge in true if edge[1] != "logits"))
    assert not broken.passed("sufficiency")
    assert not broken.passed("partial necessity") or broken.share("kept") < 0.1
    # With edges of a decoy, what is added is called needless; and nothing else is.
    extra = tuple(edge for edge in EdgeGraph.of(case.model, True).edges() if edge not in true)[:4]
    inflated = examined(case, (*true, *extra))
    assert not inflated.passed("minimality")
    needless = {
        str(name)
        for name, p in zip(inflated.data["edge"].values, inflated.data["edge_p"].values, strict=True)
        if p <= 0.05
    }
    assert needless == {" ".join((source, "->", target, through)) for source, target, through in extra}


def test_a_trained_network_stands_by_its_key_and_another_circuit_falls() -> None:
    case = interchange.build(interchange.cases()[0])
    true = shown(case)
    found = examined(case, true)
    assert found.passed("sufficiency")
    assert found.passed("partial necessity")
    assert found.share("kept") > 0.5 > found.share("left")
    graph = EdgeGraph.of(case.model)
    others = [edge for edge in graph.edges() if edge not in true][: len(true)]
    wrong = examined(case, tuple(others))
    assert not wrong.passed("sufficiency")
    assert not wrong.passed("partial necessity")
    assert not wrong.passed("equivalence")
    assert wrong.share("kept") < 0.5 < wrong.share("left")


def test_it_replays_from_its_seed_and_comes_back_equal(tmp_path: object) -> None:
    model, pairs = families.model("llama"), random_pairs()
    config = Config(
        circuit=(("embed", "mlp_out.0", "mlp"), ("mlp_out.0", "logits", "logits")), draws=4, kind="zero"
    )
    before = torch.random.get_rng_state()
    found = circuit_tests.run(model, pairs, config)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert circuit_tests.run(model, pairs, config) == found
    assert Result.load(found.save(str(tmp_path) + "/r")) == found
    assert all("zero" in shape.caption for shape in found.shapes()[:2])


def test_bad_input() -> None:
    model, pairs = families.model("gpt2"), random_pairs()
    with pytest.raises(InputError, match="no circuit was given"):
        circuit_tests.run(model, pairs)
    with pytest.raises(InputError, match=r"no edge of this network.*z\.9\.h0"):
        circuit_tests.run(model, pairs, Config(circuit=(("z.9.h0", "logits", "logits"),)))
    every = tuple(EdgeGraph.of(model).edges())
    with pytest.raises(InputError, match="nothing to test it against"):
        circuit_tests.run(model, pairs, Config(circuit=every))
    same = pairs_of(pairs.clean, pairs.clean, [3] * 4, [5] * 4)
    with pytest.raises(InputError, match="nothing to attribute"):
        circuit_tests.run(model, same, Config(circuit=(("embed", "logits", "logits"),)))
