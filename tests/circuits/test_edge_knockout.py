"""Circuits of edges: their two ends, one against a plain forward written out, and random ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.circuits.planted import pairs_of, planted, random_pairs
from tests.models import families
from torch import Tensor

from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_knockout import EdgeKnockout
from microtome.circuits.edge_pairs import Direction, EdgePairs
from microtome.circuits.random_circuits import missing_edge, random_circuit, random_path
from microtome.core.errors import InputError
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.models.transformer import Block, Transformer


def knockout(
    model: Model, pairs: Pairs, direction: Direction = "noise", kind: str = "resample"
) -> EdgeKnockout:
    return EdgeKnockout(
        EdgePairs(model, EdgeGraph.of(model), pairs, metrics.DEFAULT, kind, direction, rows=3)
    )


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama", "gemma2", "microtome_attention_only"])
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_everything_is_the_clean_run_and_nothing_the_corrupt_one_bit_for_bit(
    name: str, direction: Direction
) -> None:
    model, pairs = families.model(name), random_pairs()
    run = knockout(model, pairs, direction)
    every = run.graph.allowed
    batches = [pairs.rows(range(3)), pairs.rows(range(3, 4))]

    def plain(tokens: str) -> Tensor:
        found = []
        for part in batches:
            metric = metrics.build(metrics.DEFAULT, part)
            value = model.run(getattr(part, tokens), metric=metric, mask=part.mask).metric
            assert value is not None
            found.append(value.float())
        return torch.cat(found).detach()

    scores = run.scores([every, torch.zeros_like(every)])
    assert torch.equal(scores[0], plain("clean"))
    assert torch.equal(scores[1], plain("corrupt"))
    assert torch.equal(run.share(scores), torch.tensor([1.0, 0.0], dtype=torch.float64))


@torch.no_grad()
def written_out(
    module: Transformer, clean: Tensor, corrupt: Tensor, graph: EdgeGraph, kept: Tensor
) -> Tensor:
    """A circuit by definition, one receiver at a time: the corrupt stream plus kept sources' present differences."""
    there = [module.embed(corrupt) + module.pos_embed.weight[: corrupt.shape[1]]]
    here = [module.embed(clean) + module.pos_embed.weight[: clean.shape[1]]]
    row, heads, width = 0, module.config.num_attention_heads, module.config.head_dim

    def read(written: list[Tensor], constant: Tensor) -> Tensor:
        nonlocal row
        total = sum(there[: len(written)]) + constant
        for column, (now, then) in enumerate(zip(written, there, strict=False)):
            if kept[row, column]:
                total = total + now - then
        row += 1
        return total

    constant = torch.zeros(module.config.hidden_size)

    def head(block: Block, number: int, streams: list[Tensor]) -> Tensor:
        at = slice(number * width, (number + 1) * width)
        q, k, v = (
            torch.nn.functional.linear(
                block.attn_norm(stream) if hasattr(block, "attn_norm") else stream,
                linear.weight[at],
                None if linear.bias is None else linear.bias[at],
            )
            for stream, linear in zip(streams, (block.attn.q, block.attn.k, block.attn.v), strict=True)
        )
        z = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return z @ block.attn.o.weight[:, at].T

    for block in module.blocks:
        assert block.mlp is None
        assert block.attn.o.bias is None
        streams = [[read(here, constant) for _ in range(heads)] for _ in range(3)]
        before = sum(there) + constant
        new = [head(block, number, [kind[number] for kind in streams]) for number in range(heads)]
        there += [head(block, number, [before] * 3) for number in range(heads)]
        here += new
    return module.unembed(read(here, constant))[:, -1]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), share=st.floats(0.05, 0.95))
def test_a_circuit_is_what_a_forward_written_out_says(seed: int, share: float) -> None:
    model, pairs = planted()
    run = knockout(model, pairs)
    drawn = torch.rand(run.graph.allowed.shape, generator=torch.Generator().manual_seed(seed)) < share
    kept = drawn & run.graph.allowed
    module = model.module
    assert isinstance(module, Transformer)
    logits = written_out(module, pairs.clean, pairs.corrupt, run.graph, kept)
    right, wrong = (torch.tensor([ids[0] for ids in side]) for side in (pairs.answers, pairs.wrong))
    expected = logits.gather(1, right[:, None]) - logits.gather(1, wrong[:, None])
    scale = float((run.whole - run.empty).abs().max())
    torch.testing.assert_close(run.scores([kept])[0], expected[:, 0], rtol=0, atol=1e-6 * max(1.0, scale))


@pytest.mark.parametrize("kind", ["mean", "zero"])
def test_shares_of_other_ablations_end_at_nought_and_one(kind: str) -> None:
    run = knockout(families.model("gpt2"), random_pairs(), kind=kind)
    every = run.graph.allowed
    torch.testing.assert_close(
        run.shares([every, torch.zeros_like(every)]), torch.tensor([1.0, 0.0], dtype=torch.float64)
    )


def test_a_mean_of_ratios_is_undefined_where_a_pair_has_no_gap() -> None:
    model, pairs = planted()
    same = pairs_of(
        pairs.clean,
        torch.cat([pairs.clean[:1], pairs.corrupt[1:]]),
        [a[0] for a in pairs.answers],
        [w[0] for w in pairs.wrong],
    )
    whole = knockout(model, pairs).graph.allowed
    for data, defined in ((pairs, True), (same, False)):
        run = knockout(model, data)
        scores = run.scores([whole])
        assert float(run.share(scores)) == 1.0
        assert bool(run.share(scores, "mean of ratios").isfinite()) == defined


def test_no_gap_is_refused() -> None:
    model, pairs = planted()
    same = pairs_of(pairs.clean, pairs.clean, [0] * 8, [1] * 8)
    with pytest.raises(InputError, match="nothing to attribute"):
        knockout(model, same)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), edges=st.integers(1, 200))
def test_random_circuits_lie_on_paths_and_are_large_enough(seed: int, edges: int) -> None:
    graph = EdgeGraph.of(families.model("llama" if seed % 2 else "gptj"))
    edges = min(edges, len(graph))
    one, two = (random_circuit(graph, edges, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(one, two)
    assert edges <= int(one.sum())
    assert torch.equal(graph.connected(one), one)


def test_a_random_path_goes_through_its_edge_and_every_edge_may_be_drawn() -> None:
    graph = EdgeGraph.of(families.model("gpt2"))
    generator = torch.Generator().manual_seed(0)
    for row, column in graph.allowed.nonzero().tolist()[::7]:
        path = random_path(graph, (row, column), generator)
        assert bool(path[row, column])
        assert torch.equal(graph.connected(path), path)
    all_but_one = graph.allowed.clone()
    all_but_one[3, 0] = False
    assert missing_edge(graph, all_but_one, generator) == (3, 0)
    with pytest.raises(InputError, match="none to add"):
        missing_edge(graph, graph.allowed, generator)
    with pytest.raises(InputError, match="no random circuit"):
        random_circuit(graph, len(graph) + 1, generator)
