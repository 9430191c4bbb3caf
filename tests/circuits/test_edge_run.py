"""Edges cut on the untouched module, against node patches, path patches, finite differences and the two plain runs."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import families
from torch import Tensor

from microtome.circuits.edge_cut import Ablation
from microtome.circuits.edge_graph import EdgeGraph
from microtome.circuits.edge_run import EdgeRun
from microtome.core.circuit import Circuit
from microtome.core.edits import Function, Set
from microtome.core.errors import FamilyError, InputError, NotFiniteError
from microtome.core.logits import LogitSelection
from microtome.core.site import Site
from microtome.models.model import Model

CLOSE = 1e-5
# A norm behind the attention: there a head's share is what it adds with the divisor of its own run.
NORM_BEHIND = ("gemma2", "gemma3", "olmo2")
DECODERS = tuple(name for name in families.DECODERS if name != "opt_post_norm")
# Which experts are chosen is not differentiable.
SMOOTH = tuple(name for name in DECODERS if name != "mixtral")


class Difference:
    name = "difference"
    needs = LogitSelection((-1,))

    def __call__(self, logits: Tensor) -> Tensor:
        return logits[:, -1, 3].float() - logits[:, -1, 5].float()

    def for_rows(self, rows: list[int]) -> "Difference":
        return self


def setting(name: str) -> tuple[Model, EdgeGraph, EdgeRun, Tensor]:
    model = families.model(name)
    graph = EdgeGraph.of(model)
    return model, graph, EdgeRun(model, graph, families.ids(seed=0), Difference()), families.ids(seed=1)


def amounts(graph: EdgeGraph, *edges: tuple[str, str, str]) -> Tensor:
    return graph.mask(edges).float()


def metric(model: Model, tokens: Tensor, *edits: Set) -> Tensor:
    found = model.run(tokens, edit=edits, metric=Difference()).metric
    assert found is not None
    return found


@pytest.mark.parametrize("name", DECODERS)
def test_no_edge_cut_is_the_run_itself_and_every_edge_cut_the_other_bit_for_bit(name: str) -> None:
    model, graph, batch, corrupt = setting(name)
    ablation = batch.ablation("resample", corrupt)
    none, every = torch.zeros(graph.allowed.shape), graph.allowed.float()
    assert torch.equal(batch.score(none, ablation), metric(model, batch.tokens))
    assert torch.equal(batch.score(every, ablation), metric(model, corrupt))


@pytest.mark.parametrize("name", [name for name in DECODERS if name not in NORM_BEHIND])
@pytest.mark.parametrize("kind", ["resample", "zero", "mean"])
def test_all_edges_out_of_a_head_are_the_head_patched(name: str, kind: str) -> None:
    model, graph, batch, corrupt = setting(name)
    ablation = batch.ablation(kind, corrupt)
    site = Site("z", 1, heads=(1,))
    there = model.run(corrupt, [site])[site]
    value = {"resample": there, "zero": torch.zeros_like(there), "mean": there.mean(dim=0, keepdim=True)}[
        kind
    ]
    cut = torch.zeros(graph.allowed.shape)
    cut[:, graph.sources.index(str(site))] = 1
    expected = metric(model, batch.tokens, Set(site, value=value.expand_as(there)))
    torch.testing.assert_close(batch.score(cut, ablation), expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", DECODERS)
def test_all_edges_into_a_head_are_its_projections_patched(name: str) -> None:
    model, graph, batch, corrupt = setting(name)
    ablation = batch.ablation("resample", corrupt)
    sites = [Site(f"{letter}_proj", 1, heads=(0,)) for letter in "qkv"]
    there = model.run(corrupt, sites)
    into = [edge for edge in graph.edges() if edge[1].startswith("z.1.h0")]
    found = batch.score(amounts(graph, *into), ablation)
    # Query heads that share the key and value of head 0 read them too, but their own queries stay.
    expected = metric(
        model,
        batch.tokens,
        *(Set(site, value=there[site]) for site in sites),
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma2", "microtome_attention_only"])
@pytest.mark.parametrize(
    ("edge", "receiver"),
    [
        (("z.0.h1", "z.2.h0", "q"), "q_proj.2.h0"),
        (("embed", "z.1.h1", "q"), "q_proj.1.h1"),
    ],
)
def test_one_edge_is_the_stream_of_one_receiver_changed_by_hand(
    name: str, edge: tuple[str, str, str], receiver: str
) -> None:
    model, graph, batch, corrupt = setting(name)
    ablation = batch.ablation("resample", corrupt)
    here = batch.ablation("resample", batch.tokens)
    number = graph.sources.index(edge[0])
    site = Site.parse(receiver)
    assert site.layer is not None
    stream = model.run(batch.tokens, [f"resid_pre.{site.layer}"])[Site("resid_pre", site.layer)]
    changed = stream + (ablation.writes - here.writes)[number]
    norm = model.anatomy.role("attn_norm", site.layer)
    inside = changed if norm is None else norm(changed)
    # The module's own attention reads the changed stream; only this head's query is taken from it.
    there = model.run(
        batch.tokens, [site], edit=[Function(f"attn_in.{site.layer}", function=lambda _: inside)]
    )[site]
    expected = metric(model, batch.tokens, Set(site, value=there))
    torch.testing.assert_close(batch.score(amounts(graph, edge), ablation), expected, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", SMOOTH)
def test_the_gradient_is_what_a_small_cut_does(name: str) -> None:
    _, graph, batch, corrupt = setting(name)
    ablation = batch.ablation("resample", corrupt)
    drawn = torch.Generator().manual_seed(3)
    direction = torch.randn(graph.allowed.shape, generator=drawn) * graph.allowed
    start = torch.rand(graph.allowed.shape, generator=drawn) * 0.5 * graph.allowed
    step = 4e-3
    for at in (None, start):
        scores, gradient = batch.gradient(ablation, cut=at)
        middle = torch.zeros(graph.allowed.shape) if at is None else at
        torch.testing.assert_close(scores, batch.score(middle, ablation), rtol=0, atol=CLOSE)
        up, down = (batch.score(middle + sign * step * direction, ablation) for sign in (1, -1))
        expected = float((up - down).double().sum() / (2 * step))
        scale = float((gradient * direction).abs().sum())
        assert float((gradient * direction).sum()) == pytest.approx(expected, abs=1e-2 * scale)


@pytest.mark.parametrize("name", ["gpt2", "gptj", "llama", "phi3", "gemma2", "bloom"])
def test_the_gradients_of_the_edges_out_of_a_source_add_up_to_that_of_the_source(name: str) -> None:
    model, graph, batch, corrupt = setting(name)
    ablation = batch.ablation("resample", corrupt)
    _, gradient = batch.gradient(ablation)
    mlp = Site("mlp_out", 0)
    run = model.run(batch.tokens, [mlp, mlp.grad], metric=Difference())
    there = model.run(corrupt, [mlp])[mlp]
    expected = float(((there - run[mlp]) * run[mlp.grad]).sum())
    found = float(gradient[:, graph.sources.index("mlp_out.0")].sum())
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_gradients_along_the_way_from_none_to_all_cut_add_up_to_the_difference() -> None:
    _, graph, batch, corrupt = setting("gpt2")
    ablation = batch.ablation("resample", corrupt)
    steps, total = 16, 0.0
    for step in range(steps):
        cut = graph.allowed.float() * (step + 0.5) / steps
        total += float(batch.gradient(ablation, cut=cut)[1].sum()) / steps
    none, every = torch.zeros(graph.allowed.shape), graph.allowed.float()
    difference = float((batch.score(every, ablation) - batch.score(none, ablation)).sum())
    assert total == pytest.approx(difference, rel=2e-2)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_cutting_is_the_same_whichever_way_it_is_summed(name: str, seed: int, share: float) -> None:
    """Few or many cut edges are summed in different ways; amounts next to one are never summed as all."""
    _, graph, batch, corrupt = setting(name)
    ablation = batch.ablation("resample", corrupt)
    plain = Ablation("resample", ablation.writes)
    drawn = torch.rand(graph.allowed.shape, generator=torch.Generator().manual_seed(seed))
    cut = ((drawn < share) & graph.allowed).float()
    near = cut * (1 - 1e-7)
    torch.testing.assert_close(batch.score(cut, ablation), batch.score(near, plain), rtol=0, atol=2 * CLOSE)


def test_padding_changes_nothing() -> None:
    model = families.model("llama")
    graph = EdgeGraph.of(model)
    tokens, corrupt = families.ids(seed=0), families.ids(seed=1)
    cut = (
        (torch.rand(graph.allowed.shape, generator=torch.Generator().manual_seed(0)) < 0.3) & graph.allowed
    ).float()
    whole = EdgeRun(model, graph, tokens, Difference())
    ablation = whole.ablation("resample", corrupt)
    expected, slope = whole.score(cut, ablation), whole.gradient(ablation)[1]
    pad = torch.zeros(2, 3, dtype=torch.long)
    for left in (True, False):
        mask = torch.cat(
            [torch.zeros(2, 3), torch.ones(tokens.shape)]
            if left
            else [torch.ones(tokens.shape), torch.zeros(2, 3)],
            1,
        ).long()

        here, there = (torch.cat([pad, ids] if left else [ids, pad], 1) for ids in (tokens, corrupt))
        batch = EdgeRun(model, graph, here, Difference(), mask)
        other = batch.ablation("resample", there)
        torch.testing.assert_close(batch.score(cut, other), expected, rtol=0, atol=CLOSE)
        torch.testing.assert_close(batch.gradient(other)[1], slope, rtol=1e-3, atol=1e-4)


def test_counts_of_gpt2_small() -> None:
    sources, layers, heads = 157, 12, 12
    model = families.model("gpt2")
    graph = EdgeGraph.of(model)
    n, h = model.n_layers, model.n_heads
    assert len(graph.sources) == 1 + n * (h + 1)
    assert len(graph.receivers) == n * (3 * h + 1) + 1

    def count(layers: int, heads: int) -> int:
        found = 0
        for layer in range(layers):
            before = 1 + layer * (heads + 1)
            found += 3 * heads * before + before + heads
        return found + 1 + layers * (heads + 1)

    assert len(graph) == count(n, h)
    assert (1 + layers * (heads + 1), count(layers, heads)) == (sources, 32_491)


def test_positions_may_be_a_source_of_their_own() -> None:
    model = families.model("gpt2")
    graph = EdgeGraph.of(model, split_positions=True)
    assert graph.sources[:2] == ("embed", "pos_embed")
    batch = EdgeRun(model, graph, families.ids(seed=0), Difference())
    ablation = batch.ablation("resample", families.ids(seed=1))
    cut = torch.zeros(graph.allowed.shape)
    cut[:, 1] = 1
    # The same positions stand in both runs, so there is nothing to cut.
    torch.testing.assert_close(batch.score(cut, ablation), metric(model, batch.tokens), rtol=0, atol=CLOSE)
    zero = batch.ablation("zero", batch.tokens)
    assert (batch.score(cut, zero) - metric(model, batch.tokens)).abs().min() > 1e-4
    with pytest.raises(InputError, match="no learned positions"):
        EdgeGraph.of(families.model("llama"), split_positions=True)


def test_circuits_and_matrices_are_the_same_thing() -> None:
    graph = EdgeGraph.of(families.model("llama"))
    drawn = torch.rand(graph.allowed.shape, generator=torch.Generator().manual_seed(1))
    kept = (drawn < 0.2) & graph.allowed
    circuit = graph.circuit(kept, drawn)
    assert torch.equal(graph.mask(circuit), kept)
    assert Circuit.from_json(circuit.to_json()) == circuit
    assert len(circuit.edges) == int(kept.sum())
    assert len(graph.edges()) == len(graph)


def test_only_what_lies_on_a_path_is_connected() -> None:
    graph = EdgeGraph.of(families.model("gpt2"))
    path = [("embed", "z.0.h1", "v"), ("z.0.h1", "mlp_out.1", "mlp"), ("mlp_out.1", "logits", "logits")]
    loose = [("z.0.h2", "logits", "logits"), ("embed", "z.1.h0", "q"), ("z.0.h1", "z.2.h3", "k")]
    found = graph.connected(graph.mask([*path, *loose]))
    assert torch.equal(found, graph.mask(path))
    for left_out in path:
        broken = graph.mask([edge for edge in path if edge != left_out])
        assert not graph.connected(broken).any()
    assert all(one[1] == two[0] for one, two in pairwise(path))


def test_what_is_no_edge_is_refused() -> None:
    graph = EdgeGraph.of(families.model("gpt2"))
    for edge, why in [
        (("z.1.h0", "z.0.h0", "q"), "does not come before"),
        (("z.1.h0", "z.1.h1", "q"), "does not come before"),
        (("z.9.h0", "logits", "logits"), "no source"),
        (("embed", "logits", "q"), "nothing called"),
    ]:
        with pytest.raises(InputError, match=why):
            graph.mask([edge])
    parallel = EdgeGraph.of(families.model("gptj"))
    with pytest.raises(InputError, match="does not come before"):
        parallel.mask([("z.1.h0", "mlp_out.1", "mlp")])
    with pytest.raises(FamilyError):
        EdgeGraph.of(families.model("opt_post_norm"))


def test_a_metric_without_a_finite_slope_is_refused() -> None:
    class Root(Difference):
        def __call__(self, logits: Tensor) -> Tensor:
            return (super().__call__(logits) * 0).sqrt()

    model, graph, _, corrupt = setting("gpt2")
    batch = EdgeRun(model, graph, families.ids(seed=0), Root())
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        batch.gradient(batch.ablation("resample", corrupt))


@pytest.mark.parametrize(
    "name", ["gpt2", "gptj", "llama", "gemma2", "bloom", "phi3", "microtome_attention_only"]
)
def test_single_edges_by_sweep_are_those_of_whole_passes(name: str) -> None:
    model, graph, batch, corrupt = setting(name)
    ablation = batch.ablation("resample", corrupt)
    places = graph.allowed.nonzero().tolist()
    drawn = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:12].tolist()
    chosen = [tuple(places[number]) for number in drawn] + [(len(graph.receivers) - 1, 0)]
    found, cost = batch.effects(chosen, ablation)
    base = metric(model, batch.tokens)
    for (row, column), effect in zip(chosen, found, strict=True):
        cut = torch.zeros(graph.allowed.shape)
        cut[row, column] = 1
        torch.testing.assert_close(effect, batch.score(cut, ablation) - base, rtol=0, atol=CLOSE)
    assert cost.passes > 0
