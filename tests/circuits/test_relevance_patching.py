"""Relevance in the place of gradients: planted paths, what it cannot see, and where it is the gradient."""

import numpy as np
import pytest
import torch
from tests.circuits.planted import pairs_of, planted, random_pairs
from tests.models import families

from microtome.circuits import edge_attribution_patching, relevance_patching
from microtome.core.errors import InputError
from microtome.core.result import Result
from microtome.models.random_twin import random_twin

PATH = {("embed", "z.0.h1", "v"), ("z.0.h1", "z.1.h2", "v"), ("z.1.h2", "logits", "logits")}


@pytest.mark.parametrize("rules", ["relp", "gim"])
def test_a_planted_path_is_found(rules: str) -> None:
    model, pairs = planted()
    config = relevance_patching.Config(rules=rules, checked=0)
    found = relevance_patching.run(model, pairs, config)
    assert {edge.ends for edge in found.circuit(3).edges} == PATH
    twin = relevance_patching.run(random_twin(model), pairs, config)
    assert {edge.ends for edge in twin.circuit(3).edges} != PATH


def test_with_no_rule_it_is_edge_attribution_patching(tmp_path: object) -> None:
    model, pairs = families.model("llama"), random_pairs(3)
    own = relevance_patching.run(model, pairs, relevance_patching.Config(rules="own", checked=4))
    plain = edge_attribution_patching.run(model, pairs, edge_attribution_patching.Config(checked=4))
    for name in ("effect", "sample_exact"):
        np.testing.assert_array_equal(own.data[name].values, plain.data[name].values)
    assert Result.load(own.save(str(tmp_path) + "/r")) == own


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "gptj"])
def test_with_frozen_patterns_edges_into_queries_and_keys_score_nothing(name: str) -> None:
    found = relevance_patching.run(
        families.model(name), random_pairs(2), relevance_patching.Config(checked=0)
    )
    for (_, target, kind), score in found.scores().items():
        if kind in "qk":
            assert score == 0, target
    assert any(score for (_, _, kind), score in found.scores().items() if kind == "v")


def test_freezing_the_norms_changes_what_the_logits_read() -> None:
    """The final norm's divisor is part of the edge into the logits: held fixed, another number comes out."""
    model, pairs = families.model("llama"), random_pairs(2)
    rules = relevance_patching.Config(rules="own", frozen_norms=True, checked=0)
    frozen = relevance_patching.run(model, pairs, rules)
    plain = relevance_patching.run(model, pairs, relevance_patching.Config(rules="own", checked=0))
    at = ("embed", "logits", "logits")
    assert abs(frozen.scores()[at] - plain.scores()[at]) > 1e-6


def test_two_sides_that_do_the_same_are_refused() -> None:
    pairs = random_pairs()
    same = pairs_of(pairs.clean, pairs.clean, [3] * 4, [5] * 4)
    with pytest.raises(InputError, match="nothing to attribute"):
        relevance_patching.run(families.model("gpt2"), same)
    assert torch.is_grad_enabled()
