"""Every method of the ground against a key: exact where it says it is exact, right where theory says it must be, and
wrong where it is known to be."""

import functools

import pytest

from microtome.circuits import edge_attribution_patching
from microtome.evaluation.grader import grade, plan
from microtome.evaluation.grades import Grades

pytestmark = pytest.mark.truth


@functools.cache
def graded(case: str, *methods: str) -> dict[tuple[str, str], float]:
    found = Grades().with_more(grade(plan(methods, [case])))
    assert not found.troubles, found.troubles
    return {(one.method, one.score): one.value for one in found.grades}


def test_direct_contributions_and_paths_are_the_exact_sums() -> None:
    found = graded("hand_set/exact_sums", "direct_logit_attribution", "composed_paths")
    assert found["direct_logit_attribution", "quantities, equal"] == 1.0
    assert found["composed_paths", "quantities, equal"] == 1.0


def test_planted_heads_are_named() -> None:
    found = graded("hand_set/planted_heads", "head_scorecard", "attention_patterns", "qk_ov")
    roles = [(method, score) for method, score in found if score.endswith("AUROC")]
    assert len(roles) == 9
    assert {found[key] for key in roles} == {1.0}


def test_the_lens_is_right_in_its_basis_and_wrong_in_another() -> None:
    straight = graded("hand_set/straight", "logit_lens")["logit_lens", "quantities, closeness"]
    turned = graded("hand_set/rotated", "logit_lens")["logit_lens", "quantities, closeness"]
    assert straight == pytest.approx(1.0)
    assert turned < 0.4


def test_wires_are_found_by_patching_and_by_weights() -> None:
    found = graded("hand_set/wired_heads", "path_patching", "composition", "activation_patching", "ablation")
    assert found["path_patching", "edges, AUROC"] == 1.0
    assert found["composition", "edges, AUROC"] == 1.0
    assert found["activation_patching", "nodes, AUROC"] == found["ablation", "nodes, AUROC"] == 1.0


def test_interventions_find_compiled_circuits_where_one_gradient_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways = [way for way in edge_attribution_patching.grading if way.get("integrate", "edges") == "edges"]
    monkeypatch.setattr(edge_attribution_patching, "grading", ways)
    found = graded(
        "programs/histogram",
        "activation_patching",
        "attribution_patching",
        "ablation",
        "mediation",
        "node_circuit",
        "path_patching",
        "edge_attribution_patching",
    )
    for method in ("activation_patching", "ablation", "mediation"):
        assert found[method, "nodes, AUROC"] == 1.0
    assert found["path_patching", "edges, AUROC"] == 1.0
    assert found["node_circuit", "circuit nodes, F1"] == 1.0
    (along,) = (
        value
        for (name, score), value in found.items()
        if (" integrate=edges" in name and score == "edges, AUROC")
    )
    assert along == pytest.approx(1.0, abs=0.01)
    # Its neurons are saturated on both sides, so that their gradient is zero.
    assert found["attribution_patching", "nodes, AUROC"] < 0.8
    assert found["edge_attribution_patching", "edges, AUROC"] < 0.8
