"""Masks: their slope is that of the exact loss, nodes are all their edges, and the fewest are found."""

from collections.abc import Sequence

import pytest
import torch
from tests.circuits.planted import planted, random_pairs
from tests.models import families

from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_pairs import EdgePairs
from microtome.circuits.gates import Gates
from microtome.circuits.learned_mask import Aim, Grain, Mask, faithful
from microtome.core.cost import Recorder
from microtome.core.site import Site


def aims_of(name: str, metric: str = "kl") -> tuple[EdgeGraph, list[Aim]]:
    model = families.model(name)
    graph = EdgeGraph.of(model)
    pairs = EdgePairs(model, graph, random_pairs(3), metric, rows=2)
    return graph, faithful(pairs, Recorder())


@pytest.mark.parametrize(("grain", "shuts"), [("edges", True), ("nodes", True), ("nodes", False)])
def test_the_slope_is_what_a_small_change_of_the_gates_does(grain: Grain, shuts: bool) -> None:
    graph, aims = aims_of("gptj")
    mask = Mask.of(graph, grain, 0.0, shuts)
    drawn = torch.Generator().manual_seed(0)
    values = 0.2 + 0.6 * torch.rand(len(mask.gates.location), generator=drawn)
    direction = torch.randn(len(values), generator=drawn)
    loss, slope = mask._slope(aims, values)

    def exact(at: torch.Tensor) -> float:
        scores = [aim.batch.score(mask.cut(at), aim.ablation).double().mean() for aim in aims]
        return sum(aim.weight * float(score) for aim, score in zip(aims, scores, strict=True))

    assert loss == pytest.approx(exact(values), abs=1e-5)
    step = 4e-3
    expected = (exact(values + step * direction) - exact(values - step * direction)) / (2 * step)
    assert float(slope @ direction) == pytest.approx(
        expected, abs=1e-2 * float((slope * direction).abs().sum())
    )


def test_a_nodes_gate_is_on_all_edges_out_of_it_and_embeddings_have_none() -> None:
    model = families.model("llama")
    graph = EdgeGraph.of(model)
    mask = Mask.of(graph, "nodes", 0.0)
    assert len(mask.gates.location) == len(graph.sources) - 1
    assert bool((mask.groups[:, 0] == -1).all())
    shut = torch.ones(len(mask.gates.location))
    shut[graph.sources.index("z.1.h2") - 1] = 0
    cut = mask.cut(shut)
    column = graph.sources.index(str(Site("z", 1, heads=(2,))))
    assert torch.equal(cut[:, column] > 0, graph.allowed[:, column])
    assert int((cut > 0).sum()) == int(graph.allowed[:, column].sum())


def test_nothing_is_lost_with_every_gate_open() -> None:
    for metric in ("kl", "logit-difference"):
        graph, aims = aims_of("gpt2", metric)
        mask = Mask.of(graph, "edges", 0.0)
        every = torch.ones(len(graph), dtype=torch.bool)
        assert mask.loss(aims, every) == pytest.approx(0, abs=1e-6)
        assert mask.loss(aims, ~every) > 1e-4


def planted_path() -> tuple[Mask, list[Aim], torch.Tensor]:
    """Gates on the edges of the planted network, what they are to keep, and which of them are on the planted path."""
    model, pairs = planted()
    graph = EdgeGraph.of(model)
    aims = faithful(EdgePairs(model, graph, pairs, "kl"), Recorder())
    mask = Mask.of(graph, "edges", 0.0)
    path = [("embed", "z.0.h1", "v"), ("z.0.h1", "z.1.h2", "v"), ("z.1.h2", "logits", "logits")]
    on = graph.mask(path)[graph.allowed]
    return mask, aims, on


def test_the_fewest_that_hold_are_found_and_the_global_random_state_stays() -> None:
    mask, aims, on = planted_path()
    with torch.no_grad():
        mask.gates.location.copy_(on.float() - 1e-3 * torch.arange(len(on)))
    assert torch.equal(mask.least(aims, 0.05), on)
    assert bool(mask.least(aims, 1e9).sum() == 0)
    before = torch.random.get_rng_state()
    mask.learn(aims, lambda chances, step: chances.sum(), 2, 0.1, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_can_be_spared_goes_however_badly_the_gates_are_ordered(seed: int) -> None:
    mask, aims, on = planted_path()
    with torch.no_grad():
        drawn = torch.rand(len(on), generator=torch.Generator().manual_seed(seed))
        mask.gates.location.copy_(drawn - on.float())
    least = mask.least(aims, 0.05)
    assert int(least.sum()) > 3
    kept, passes = mask.trimmed(aims, least, 0.05)
    assert torch.equal(kept, on)
    assert 3 < passes < 10 * len(on)
    assert not mask.trimmed(aims, least, 1e9)[0].any()
    none_to_spare, passes = mask.trimmed(aims, on, 0.05)
    assert torch.equal(none_to_spare, on)
    assert passes == 5, "the three together, one, the other two together, and each of them"


class Together(Mask):
    """A loss by a rule: the second is needed only beside the first, which nothing needs."""

    def loss(self, aims: Sequence[Aim], kept: torch.Tensor) -> float:
        first, second, third = kept[:3].tolist()
        return 0.0 if third and (second or not first) else 1.0


def test_it_is_gone_through_again_for_what_was_needed_only_beside_others() -> None:
    mask = Together.of(EdgeGraph.of(families.model("gpt2")), "edges", 0.0)
    one = Together(mask.graph, mask.groups, Gates(torch.tensor([0.5, 0.1, 0.9]).requires_grad_()))
    kept, _ = one.trimmed((), torch.ones(3, dtype=torch.bool), 0.0)
    assert kept.tolist() == [False, False, True]
