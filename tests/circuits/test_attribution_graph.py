"""Attribution graphs: contributions sum to what drives each target, and an ablation moves it by what the edge says."""

from dataclasses import replace

import pytest
import torch
from jaxtyping import Float
from tests.models.families import make
from torch import Tensor, nn

import microtome
from microtome.bases.basis import Basis
from microtome.circuits import attribution_graph
from microtome.circuits.attribution_graph import Config
from microtome.circuits.frozen_stream import FrozenStream
from microtome.circuits.graph_tracing import likeliest, trace
from microtome.circuits.replaced_mlps import ReplacedMlps, replaced_mlps
from microtome.core.errors import FamilyError, InputError
from microtome.core.site import Site
from microtome.dictionaries.activations import ReLU, TopK
from microtome.dictionaries.dictionary import Dictionary
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds.training import seeded

TOKENS = torch.tensor([[7, 3, 41, 3, 19, 7]])
Row = Float[Tensor, "position d_model"]


def transcoder(model: microtome.Model, layer: int, seed: int = 0, skip: bool = False) -> Dictionary:
    """A random transcoder of one layer."""
    draw, width, units = torch.Generator().manual_seed(seed), model.sizes["d_model"], 40
    return Dictionary(
        name=f"transcoder.{layer}",
        reads=(Site("mlp_in", layer),),
        writes=(Site("mlp_out", layer),),
        read_widths=(width,),
        write_widths=(width,),
        activation=TopK(6),
        encoder=torch.randn(units, width, generator=draw),
        encoder_bias=torch.randn(units, generator=draw),
        decoder=torch.randn(units, width, generator=draw),
        decoder_bias=torch.randn(width, generator=draw),
        centre=torch.randn(width, generator=draw),
        read_scale=1.7,
        write_scale=0.6,
        skip=0.3 * torch.randn(width, width, generator=draw) if skip else None,
    )


def across(model: microtome.Model, seed: int = 0) -> Dictionary:
    """A random cross-layer transcoder: units of a layer read its MLP's input and write behind it and all later ones."""
    draw, width, depth, units = (
        torch.Generator().manual_seed(seed),
        model.sizes["d_model"],
        model.n_layers,
        15,
    )
    home = torch.arange(depth * units) // units
    reads = home[:, None] == torch.arange(depth)
    writes = home[:, None] <= torch.arange(depth)
    encoder = torch.randn(depth * units, depth, width, generator=draw) * reads[..., None]
    decoder = torch.randn(depth * units, depth, width, generator=draw) * writes[..., None]
    return Dictionary(
        name="across",
        reads=tuple(Site("mlp_in", layer) for layer in range(depth)),
        writes=tuple(Site("mlp_out", layer) for layer in range(depth)),
        read_widths=(width,) * depth,
        write_widths=(width,) * depth,
        activation=ReLU(),
        encoder=encoder.flatten(1),
        encoder_bias=torch.zeros(depth * units),
        decoder=decoder.flatten(1),
        decoder_bias=torch.randn(depth * width, generator=draw),
        centre=torch.zeros(depth * width),
        reads_of=reads,
        writes_of=writes,
    )


def account(model: microtome.Model, bases: list[Basis], neurons: int = 9) -> ReplacedMlps:
    return replaced_mlps(FrozenStream(model, TOKENS), bases, neurons)


def gap(parts: ReplacedMlps) -> float:
    """How far the contributions to units are from what drives them, relative to the largest."""
    directions, driven, _ = parts.driven(torch.arange(parts.n_units))
    return float((parts.contributions(directions).sum(-1) - driven).abs().max() / driven.abs().max())


@pytest.mark.parametrize(
    "name",
    ["gpt2", "gpt_neox", "llama", "gemma2", "qwen3", "phi", "opt_projected", "bloom", "microtome"],
)
def test_contributions_sum_to_what_drives_each_unit_and_each_logit(name: str) -> None:
    model = microtome.load(make(name))
    parts = account(model, [transcoder(model, 1, skip=True)])
    assert {group.basis is None for group in parts.groups} == {True, False}
    assert gap(parts) < 1e-5
    answers, probability = likeliest(parts.stream, 0.9, 3)
    traced = trace(parts, answers, probability, units=10_000, batch=64)
    assert traced.error < 1e-5
    logits = model.run(TOKENS, logits=True).logits
    assert logits is not None
    said = logits[0, -1] - logits[0, -1].mean()
    if traced.found.rows.isfinite().all() and parts.stream.head.cap is None:
        torch.testing.assert_close(traced.driven[: len(answers)], said[answers], rtol=1e-4, atol=1e-4)


def test_a_cross_layer_transcoder_is_accounted_for_too() -> None:
    model = microtome.load(make("gpt2"))
    parts = account(model, [across(model)])
    assert len(parts.groups) == 1
    assert gap(parts) < 1e-5


def norm(module: nn.LayerNorm, at: Row, moved: Row) -> Row:
    """What a frozen LayerNorm makes of a change, written out."""
    spread = (at.var(-1, unbiased=False, keepdim=True) + module.eps).sqrt()
    return (moved - moved.mean(-1, keepdim=True)) / spread * module.weight


@torch.no_grad()
def test_an_ablation_moves_a_unit_by_what_its_edge_says() -> None:
    """Beside a frozen GPT-2 written out: patterns and divisors of the plain run, MLPs unmoved."""
    module = make("gpt2")
    model = microtome.load(module)
    bases = [transcoder(model, layer, layer) for layer in range(model.n_layers)]
    parts = account(model, list(bases))
    columns = torch.arange(parts.n_units)
    directions, _, _ = parts.driven(columns)
    rows = parts.contributions(directions)
    reads = [Site(part, n) for n in range(3) for part in ("resid_pre", "resid_mid", "pattern")]
    run = model.run(TOKENS, reads)
    source = parts.groups[0]
    for index in (0, 7, 20):
        moved = torch.zeros(6, model.sizes["d_model"])
        moved[source.position[index]] = -source.value[index] * bases[0].direction(int(source.unit[index]))
        for layer in (1, 2):
            block = module.transformer.h[layer]
            normed = norm(block.ln_1, run[Site("resid_pre", layer)][0], moved)
            value = torch.einsum("pm,hmd->hpd", normed, model.weight(f"W_V.{layer}"))
            mixed = torch.einsum("hqk,hkd->hqd", run[Site("pattern", layer)][0], value)
            moved = moved + torch.einsum("hqd,hdm->qm", mixed, model.weight(f"W_O.{layer}"))
            read = norm(block.ln_2, run[Site("resid_mid", layer)][0], moved)
            target = parts.groups[layer]
            encoder = bases[layer].encoder[target.unit] * bases[layer].read_scale
            change = (encoder * read[target.position]).sum(-1)
            edge = rows[target.column : target.column + len(target.unit), source.column + index]
            assert float(change.abs().max()) > 0.1
            torch.testing.assert_close(change, -edge, rtol=1e-4, atol=1e-4)


def test_the_last_layer_without_norms_falls_by_what_the_graph_says() -> None:
    with seeded(3):
        config = TransformerConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
            intermediate_size=24, norm="none", hidden_act="relu", initializer_range=0.5,
        )  # fmt: skip
        model = microtome.load(Transformer(config).eval())
    found = attribution_graph.run(model, TOKENS, Config(neurons=24, checked=8, node_share=1.0))
    assert len(found.data["predicted"]) >= 4
    assert found.data["measured"].values == pytest.approx(found.data["predicted"].values, abs=1e-4)
    assert abs(found.data["measured"].values).max() > 0.1
    assert found.data.attrs["replacement"] == pytest.approx(1.0)


def test_a_graph_is_a_circuit_and_draws_itself() -> None:
    model = microtome.load(make("llama"))
    found = attribution_graph.run(model, TOKENS, Config(logits=2, units=60, batch=16))
    circuit = found.circuit()
    assert any(node.startswith("logits.u") for node in circuit.nodes)
    assert any("60 of" in note for note in found.notes)
    assert {shape.title for shape in found.shapes()} >= {
        "Attribution graph",
        "Units ablated in the model itself",
    }
    for edge in circuit.edges:
        assert not edge.target.startswith(("error:", "embed@"))
    again = attribution_graph.run(model, TOKENS, Config(logits=2, units=60, batch=16))
    assert found.data.equals(again.data)


def test_following_all_units_at_once_or_in_batches_is_the_same() -> None:
    model = microtome.load(make("gpt2"))
    one, many = (
        attribution_graph.run(model, TOKENS, Config(batch=batch, neurons=8)).data.attrs
        for batch in (10_000, 7)
    )
    assert one["replacement"] == pytest.approx(many["replacement"], rel=1e-5)
    assert one["completeness"] == pytest.approx(many["completeness"], rel=1e-5)
    assert one["followed"] == many["followed"]


def test_what_does_not_fit_is_refused() -> None:
    model = microtome.load(make("gpt2"))
    good = transcoder(model, 1)
    with pytest.raises(InputError, match="both write"):
        attribution_graph.run(model, TOKENS, bases=[good, transcoder(model, 1, 5)])
    with pytest.raises(InputError, match="needs bases that read mlp_in"):
        attribution_graph.run(model, TOKENS, bases=[moved(good, "resid_post")])
    with pytest.raises(InputError, match="row 4 is not among them"):
        attribution_graph.run(model, TOKENS, Config(row=4))
    with pytest.raises(InputError, match="does not have"):
        attribution_graph.run(model, TOKENS, bases=[transcoder(model, 9)])
    with pytest.raises(FamilyError, match="no MLP"):
        attribution_graph.run(microtome.load(make("microtome_attention_only")), TOKENS)


def moved(one: Dictionary, part: str) -> Dictionary:
    return replace(one, reads=(Site(part, 1),))
