"""Edges that carry noise: none of it changes nothing, it cancels on average, and every row draws for itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.circuits.planted import planted, random_pairs
from tests.models import families

from microtome.circuits import edge_attribution_patching as estimates
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_noise import spread
from microtome.circuits.edge_pairs import EdgePairs
from microtome.circuits.edge_run import EdgeRun
from microtome.data import metrics

FEW = ("gpt2", "gptj", "gemma2")


def setting(name: str) -> EdgeRun:
    model, pairs = families.model(name), random_pairs(2)
    return EdgeRun(model, EdgeGraph.of(model), pairs.clean, metrics.build(None, pairs))


def some(graph: EdgeGraph, share: float) -> torch.Tensor:
    drawn = torch.rand(graph.allowed.shape, generator=torch.Generator().manual_seed(0))
    return ((drawn < share) & graph.allowed).float()


@pytest.mark.parametrize("name", FEW)
def test_no_noise_is_the_uncut_run_bit_for_bit(name: str) -> None:
    batch = setting(name)
    uncut = batch.model.run(batch.tokens, metric=batch.metric).metric
    assert uncut is not None
    still = batch.ablation("noise", batch.tokens, noise=0.0)
    moved = batch.ablation("noise", batch.tokens)
    for share in (0.3, 1.0):
        cut = some(batch.graph, share)
        assert torch.equal(batch.score(cut, still), uncut)
        assert (batch.score(cut, moved) - uncut).abs().min() > 1e-4


@pytest.mark.parametrize("name", FEW)
def test_to_the_first_order_noise_and_its_mirror_image_cancel(name: str) -> None:
    batch = setting(name)
    clean = batch.ablation("resample", batch.tokens).writes
    noise = batch.ablation("noise", batch.tokens)
    mirror = replace(noise, writes=2 * clean - noise.writes)
    one, other = (batch.gradient(ablation)[1] for ablation in (noise, mirror))
    torch.testing.assert_close(one, -other, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
    assert one.abs().max() > 1e-3


def test_on_average_what_reads_linearly_is_unchanged() -> None:
    """Into values and logits of a network without norms; 512 rows draw for themselves, five standard errors."""
    model, pairs = planted()
    pairs = pairs.rows([0] * 512)
    graph = EdgeGraph.of(model)
    batch = EdgeRun(model, graph, pairs.clean, metrics.build(None, pairs))
    linear = torch.tensor([kind in ("v", "logits") for _, kind in graph.receivers])
    cut = graph.allowed.float() * linear[:, None]
    # The spread is that of the eight prompts, not of one prompt repeated.
    width = batch.ablation("noise", planted()[1].clean.repeat(64, 1))
    clean = batch.ablation("resample", batch.tokens).writes
    eight = batch.ablation("resample", planted()[1].clean.repeat(64, 1)).writes
    ablation = replace(width, writes=clean + (width.writes - eight))
    moved = (batch.score(cut, ablation) - batch.score(torch.zeros_like(cut), ablation)).double()
    error = float(moved.std()) / len(moved) ** 0.5
    assert error > 1e-3
    assert abs(float(moved.mean())) < 5 * error


def test_noise_is_as_wide_as_what_a_source_writes_varies() -> None:
    batch = setting("gpt2")
    ablation = batch.ablation("resample", batch.tokens)
    noise = batch.ablation("noise", batch.tokens, noise=2.0, seed=3).writes - ablation.writes
    for column, writes in enumerate(ablation.writes):
        flat = writes.flatten(0, 1)
        width = 2 * float((flat - flat.mean(0)).square().mean().sqrt())
        # 576 draws of a source: a standard error of 3 %.
        assert float(noise[column].std()) == pytest.approx(width, rel=0.15)
    real = torch.ones(batch.tokens.shape, dtype=torch.bool)
    halves = [(ablation.writes[:, [row]], real[[row]]) for row in (0, 1)]
    torch.testing.assert_close(spread(halves), spread([(ablation.writes, real)]))


def test_it_replays_from_its_seed_and_batches_make_no_difference() -> None:
    model, pairs = families.model("llama"), random_pairs(5)
    graph = EdgeGraph.of(model)
    cut = some(graph, 0.5)
    one, two, again, other = (
        EdgePairs(model, graph, pairs, "logit-difference", "noise", rows=rows, seed=seed).scores(cut)
        for rows, seed in ((5, 0), (2, 0), (5, 0), (5, 1))
    )
    torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
    assert torch.equal(one, again)
    assert (one - other).abs().min() > 1e-5


def test_methods_take_it_as_they_take_the_others() -> None:
    model, pairs = families.model("gpt2"), random_pairs(3)
    config = estimates.Config(kind="noise", noise=0.01, checked=12, split_positions=True)
    found = estimates.run(model, pairs, config).data
    # So little noise that the first order is all there is.
    scale = np.abs(found["sample_exact"].values).max()
    np.testing.assert_allclose(found["sample_estimated"], found["sample_exact"], atol=0.05 * scale)
