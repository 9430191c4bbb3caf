"""The pass over edges is the network's own pass, and a swapped edge is what the edit of the model's one verb does."""

import pytest
import torch

from microtome.core.edits import Add, Set
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.core.weight import Weight
from microtome.models.load import load
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds.interchange.wiring import Wiring, traced
from microtome.testbeds.training import seeded

LAYERS, HEADS, PLACES = 2, 2, 5
# Sums of some hundred products in float32, in another order.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def network(seed: int = 0, **sizes: object) -> Transformer:
    config = {
        "vocab_size": 7,
        "hidden_size": 12,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "head_dim": 4,
        "intermediate_size": 16,
        "max_position_embeddings": PLACES,
        "norm": "none",
        "initializer_range": 0.4,
        **sizes,
    }
    with seeded(seed):
        module = Transformer(TransformerConfig(**config))
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
    return module.eval().requires_grad_(False)


def rows(seed: int) -> torch.Tensor:
    return torch.randint(7, (6, PLACES), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"causal": False},
        {"intermediate_size": 0},
        {"bias": False},
        {"positions": "none"},
        {"hidden_act": "solu"},
    ],
    ids=str,
)
def test_the_pass_is_the_networks(sizes: dict[str, object]) -> None:
    module = network(**sizes)
    logits, written = traced(module, rows(0))
    assert torch.allclose(logits, module(rows(0)).logits, **CLOSE)
    assert len(written) == len(Wiring.of(module).sources)


def test_what_is_written_is_what_the_model_reads() -> None:
    module = network()
    _, written = traced(module, rows(0))
    run = load(module).run(rows(0), read=["embed", "z.1", "mlp_out.0"])
    names = Wiring.of(module).sources
    assert torch.equal(written[names.index("embed")], run["embed"])
    assert torch.allclose(written[names.index("mlp_out.0")], run["mlp_out.0"], **CLOSE)
    result = run["z.1"][:, :, 1] @ load(module).weight("W_O.1")[1]
    assert torch.allclose(written[names.index("z.1.h1")], result, **CLOSE)


def test_all_edges_out_of_a_node_are_the_node() -> None:
    module = network()
    model, wiring = load(module), Wiring.of(module)
    _, other = traced(module, rows(1))
    source = model.run(rows(1), read=list(wiring.nodes))
    unchanged = module(rows(0)).logits
    for node in wiring.nodes:
        patched = model.run(rows(0), edit=[Set(node, value=source[node])], logits=True).logits
        mine, _ = traced(module, rows(0), other, wiring.out_of([node]).expand(6, -1, -1))
        assert patched is not None
        assert torch.allclose(mine, patched, **CLOSE), node
        assert not torch.allclose(mine, unchanged, atol=1e-3), node


def test_an_edge_is_its_sources_change_through_the_targets_weights() -> None:
    module = network()
    model, wiring = load(module), Wiring.of(module)
    _, mine = traced(module, rows(0))
    _, other = traced(module, rows(1))
    for source, target, kind in wiring.edges:
        change = (other - mine)[wiring.sources.index(source)]
        if kind == "logits":
            edit = Add(Site("resid_post", LAYERS - 1), vector=change)
        elif kind == "mlp":
            layer = Site.parse(target).layer
            edit = Add(Site("mlp_pre", layer), vector=change @ model.weight(Weight("W_in", layer)))
        else:
            site = Site.parse(target)
            matrix = model.weight(Weight(f"W_{kind.upper()}", site.layer))[site.heads[0]]
            projected = Site(f"{kind}_proj", site.layer, heads=site.heads)
            edit = Add(projected, vector=(change @ matrix)[:, :, None])
        expected = model.run(rows(0), edit=[edit], logits=True).logits
        edges = wiring.mask([(source, target, kind)])
        swapped, _ = traced(module, rows(0), other, edges.expand(6, -1, -1))
        assert expected is not None
        assert torch.allclose(swapped, expected, **CLOSE), (source, target, kind)


def test_every_edge_swapped_is_the_other_run_and_none_is_this_one() -> None:
    module = network()
    wiring = Wiring.of(module)
    logits, _ = traced(module, rows(0))
    others, other = traced(module, rows(1))
    every, none = wiring.mask(wiring.edges), wiring.mask([])
    assert torch.allclose(traced(module, rows(0), other, every.expand(6, -1, -1))[0], others, **CLOSE)
    assert torch.equal(traced(module, rows(0), other, none.expand(6, -1, -1))[0], logits)


def test_each_row_has_edges_of_its_own() -> None:
    module = network()
    wiring = Wiring.of(module)
    _, other = traced(module, rows(1))
    edges = torch.stack([wiring.mask([edge]) for edge in wiring.edges[:6]])
    together, _ = traced(module, rows(0), other, edges)
    for row in range(6):
        alone, _ = traced(module, rows(0), other, edges[row].expand(6, -1, -1))
        assert torch.allclose(together[row], alone[row], **CLOSE)


@pytest.mark.parametrize(
    ("layers", "heads", "mlps"), [(1, 1, False), (1, 4, True), (2, 3, True), (3, 2, False)]
)
def test_edges_are_counted(layers: int, heads: int, mlps: bool) -> None:
    # Each layer's heads read, in three ways each, all that is written before; its MLP that and the layer's heads.
    written, expected = 1, 0
    for _ in range(layers):
        expected += 3 * heads * written
        written += heads
        expected += written * mlps
        written += mlps
    wiring = Wiring(layers, heads, mlps)
    assert len(wiring.edges) == len(set(wiring.edges)) == expected + written
    assert len(wiring.sources) == written


def test_what_cannot_be_is_told() -> None:
    wiring = Wiring(2, 2)
    with pytest.raises(InputError, match=r"no edge from z\.1\.h0 to z\.0\.h0 through 'v'"):
        wiring.mask([("z.1.h0", "z.0.h0", "v")])
    with pytest.raises(InputError, match=r"has no \['z\.0\.h2'\]; there are embed, z\.0\.h0"):
        wiring.out_of(["z.0.h2"])
    for sizes in ({"norm": "rms"}, {"positions": "rotary"}):
        with pytest.raises(InputError, match="without norms and rotations"):
            Wiring.of(network(**sizes))
