"""Edges are what freezing and patching by hand do; on a linear network they add up to the effect of their node."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from microtome.core.edits import Edit, Function
from microtome.core.errors import FamilyError, InputError, SiteError
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.patching import activation_patching
from microtome.patching import path_patching as method

EXACT = 1e-5
SENDERS = ("z.0.h1", "mlp_out.0", "z.1.h2")


def held(site: str, value: torch.Tensor) -> Edit:
    return Function(Site.parse(site), function=lambda _: value)


def metric_of(model: Model, pairs: Pairs, tokens: torch.Tensor, edits: list[Edit]) -> torch.Tensor:
    found = model.run(tokens, edit=edits, metric=metrics.build(None, pairs), mask=pairs.mask).metric
    assert found is not None
    return found


def values(model: Model, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    sites = [f"{part}.{layer}" for part in ("attn_out", "mlp_out") for layer in range(3)]
    run = model.run(tokens, read=[*sites, *SENDERS])
    return {site: run[site] for site in (*sites, *SENDERS)}


def between(model: Model, sender: str, layer: int, mlp: bool) -> list[str]:
    """What is frozen on the way from a sender to the attention (or the MLP) of a layer, spelt out."""
    parallel = model.anatomy.family.residual == "parallel"
    site = Site.parse(sender)
    assert site.layer is not None
    passed = [f"attn_out.{n}" for n in range(site.layer + 1, layer)] + [
        f"mlp_out.{n}" for n in range(site.layer + 1, layer)
    ]
    if site.part == "z" and not parallel and (site.layer < layer):
        passed.append(f"mlp_out.{site.layer}")
    if mlp and not parallel and site.layer < layer:
        passed.append(f"attn_out.{layer}")
    return passed


@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_edges_to_the_logits(model: Model, pairs: Pairs, direction: str) -> None:
    found = method.run(model, pairs, method.Config(direction=direction, senders=SENDERS))  # type: ignore[arg-type]
    base, other = (pairs.clean, pairs.corrupt) if direction == "noise" else (pairs.corrupt, pairs.clean)
    still, patched = values(model, base), values(model, other)
    moved = []
    for sender in SENDERS:
        frozen = between(model, sender, 3, mlp=False)
        edits = [held(sender, patched[sender]), *(held(site, still[site]) for site in frozen)]
        expected = metric_of(model, pairs, base, edits) - metric_of(model, pairs, base, [])
        effect = found.data["effect"].sel(receiver="logits", sender=sender).values
        assert effect == pytest.approx(expected.numpy(), abs=EXACT)
        moved.append(np.abs(effect).max() > 1e-3)
    # Some edges rightly do nothing: a first MLP that sees no attention, a head whose window ends before the difference.
    assert any(moved), "edges that do nothing prove nothing"


@pytest.mark.parametrize("receiver", ["q.2.h1", "k.2.h1", "v.2.h0", "mlp_in.2"])
def test_edges_to_heads_and_mlps(model: Model, pairs: Pairs, receiver: str) -> None:
    found = method.run(model, pairs, method.Config(receivers=(receiver,), senders=SENDERS))
    still, patched = values(model, pairs.clean), values(model, pairs.corrupt)
    before = metric_of(model, pairs, pairs.clean, [])
    moved = []
    for sender in SENDERS:
        frozen = between(model, sender, 2, mlp=receiver == "mlp_in.2")
        edits = [held(sender, patched[sender]), *(held(site, still[site]) for site in frozen)]
        arrived = model.run(pairs.clean, read=[receiver], edit=edits)[receiver]
        expected = metric_of(model, pairs, pairs.clean, [held(receiver, arrived)]) - before
        effect = found.data["effect"].sel(receiver=receiver, sender=sender).values
        assert effect == pytest.approx(expected.numpy(), abs=EXACT)
        moved.append(np.abs(effect).max() > 1e-4)
    assert any(moved), "edges that do nothing prove nothing"


def test_several_receivers_together(model: Model, pairs: Pairs) -> None:
    pair = "v.1.h0 v.2.h1"
    found = method.run(model, pairs, method.Config(receivers=(pair,), senders=("z.0.h1",)))
    still, patched = values(model, pairs.clean), values(model, pairs.corrupt)
    first = [*between(model, "z.0.h1", 2, mlp=False)]
    edits = [held("z.0.h1", patched["z.0.h1"]), *(held(site, still[site]) for site in first)]
    run = model.run(pairs.clean, read=pair.split(), edit=edits)
    both = [held(site, run[site]) for site in pair.split()]
    expected = metric_of(model, pairs, pairs.clean, both) - metric_of(model, pairs, pairs.clean, [])
    assert found.data["effect"].values.ravel() == pytest.approx(expected.numpy(), abs=EXACT)


def test_edges_sum_to_the_node_on_a_linear_network(linear: Model, pairs: Pairs) -> None:
    """A sender's effect is that of its direct edge and of its edges to every value and MLP after it."""
    receivers = (
        "logits",
        *(f"v.{n}.h{h}" for n in (1, 2) for h in range(4)),
        *(f"mlp_in.{n}" for n in range(3)),
    )
    senders = tuple(f"z.0.h{head}" for head in range(4))
    found = method.run(linear, pairs, method.Config(receivers=receivers, senders=senders)).data["effect"]
    node = activation_patching.run(linear, pairs, activation_patching.Config(parts=("z",), direction="noise"))
    for head in range(4):
        total = node.data["z"].sel(direction="noise", layer=0, head=head).values
        edges = found.sel(sender=f"z.0.h{head}")
        assert edges.sum("receiver").values == pytest.approx(total, abs=EXACT)
        assert np.abs(edges.sel(receiver="logits").values - total).max() > 1e-3, (
            "one edge alone is not the node"
        )


def test_edges_do_not_sum_where_the_network_bends(models: Callable[[str], Model], pairs: Pairs) -> None:
    receivers = (
        "logits",
        *(f"v.{n}.h{h}" for n in (1, 2) for h in range(4)),
        *(f"mlp_in.{n}" for n in range(3)),
    )
    found = method.run(models("gpt2"), pairs, method.Config(receivers=receivers, senders=("z.0.h2",))).data[
        "effect"
    ]
    node = activation_patching.run(
        models("gpt2"), pairs, activation_patching.Config(parts=("z",), direction="noise")
    )
    total = node.data["z"].sel(direction="noise", layer=0, head=2).values
    assert np.abs(found.sel(sender="z.0.h2").sum("receiver").values - total).max() > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_edge_to_the_logits_is_direct_attribution(
    models: Callable[[str], Model], pairs: Pairs, name: str
) -> None:
    """What a head writes differently, through the model's own final norm and unembedding at the last token."""
    model = models(name)
    found = method.run(model, pairs, method.Config(senders=("z.1.h2",)))
    site = "result.1.h2@-1"
    written = [model.run(ids, read=[site])[site][:, :, 0] for ids in (pairs.clean, pairs.corrupt)]
    stream = model.run(pairs.clean, read=["resid_post.2@-1"])["resid_post.2@-1"]
    metric = metrics.build(None, pairs)
    tokens = torch.tensor(metric.needs.tokens)
    with torch.no_grad():
        after, before = (
            metric(model.unembed(s).gather(-1, tokens[:, None]))
            for s in (stream + written[1] - written[0], stream)
        )
    effect = found.data["effect"].values.ravel()
    assert effect == pytest.approx((after - before).numpy(), abs=EXACT)


def test_there_are_no_edges_backwards(model: Model, pairs: Pairs) -> None:
    parallel = model.anatomy.family.residual == "parallel"
    backwards = [
        ("z.2.h0", "q.1.h0"),
        ("z.1.h0", "q.1.h0"),
        ("mlp_out.2", "mlp_in.2"),
        ("mlp_out.1", "v.1.h0"),
    ]
    if parallel:
        backwards.append(("z.1.h0", "mlp_in.1"))
    for sender, receiver in backwards:
        with pytest.raises(SiteError, match=f"there is no edge from {sender} to {receiver}"):
            method.run(model, pairs, method.Config(senders=(sender,), receivers=(receiver,)))
    found = method.run(model, pairs, method.Config(receivers=("q.1.h0", "mlp_in.1")))
    missing = np.isnan(found.data["effect"].values).all(axis=2)
    named = {
        (str(found.data["receiver"].values[r]), str(found.data["sender"].values[s]))
        for r, s in np.argwhere(missing)
    }
    late = {f"z.2.h{h}" for h in range(4)} | {"mlp_out.2", "mlp_out.1"}
    same = {f"z.1.h{h}" for h in range(4)}
    expected = {("q.1.h0", s) for s in late | same} | {
        ("mlp_in.1", s) for s in late | (same if parallel else set())
    }
    assert named == expected


def test_a_sender_that_writes_nothing_has_no_edges(fresh: Callable[[str], Model], pairs: Pairs) -> None:
    model = fresh("llama")
    with torch.no_grad():
        model.weight("W_O.0")[1] = 0
    found = method.run(
        model, pairs, method.Config(receivers=("logits", "v.1.h0", "mlp_in.2"), senders=("z.0.h1",))
    )
    assert np.abs(found.data["effect"].values).max() <= EXACT
    assert not found.data["significant"].values.any()


def test_prompts_of_different_lengths(model: Model, uneven: Pairs) -> None:
    found = method.run(model, uneven, method.Config(receivers=("logits", "v.2.h0"), senders=("z.0.h1",)))
    for row in (0, 1):
        alone = method.run(
            model, uneven.rows([row]), method.Config(receivers=("logits", "v.2.h0"), senders=("z.0.h1",))
        )
        assert found.data["effect"].values[..., row] == pytest.approx(
            alone.data["effect"].values[..., 0], abs=EXACT
        )


def test_what_it_tells(models: Callable[[str], Model], pairs: Pairs) -> None:
    found = method.run(models("gpt2"), pairs, method.Config(receivers=("logits", "q.1.h0")))
    shapes = {shape.title: shape for shape in found.shapes()}
    assert next(iter(shapes)) == "path patching: effect by sender"
    assert "of 20 edges" in shapes["largest edges"].caption
    assert any("Frozen at the base" in note for note in found.notes)


@pytest.mark.parametrize(
    ("receivers", "error", "told"),
    [
        (("q.1.h7",), SiteError, r"q has 4 heads \(0 … 3\)"),
        (("k.1.h2",), SiteError, r"k has 2 heads \(0 … 1\)"),
        (("resid_post.1",), InputError, "resid_post.1 is no receiver"),
        (("logits q.1.h0",), Exception, "logits"),
        (("q.1.h0@3",), InputError, "without positions"),
        (("",), InputError, "names no receiver"),
        (("q.5.h0",), SiteError, "q.5"),
    ],
)
def test_refuses_what_is_no_receiver(
    models: Callable[[str], Model],
    pairs: Pairs,
    receivers: tuple[str, ...],
    error: type[Exception],
    told: str,
) -> None:
    with pytest.raises(error, match=told):
        method.run(models("llama"), pairs, method.Config(receivers=receivers))


def test_refuses_unknown_senders(models: Callable[[str], Model], pairs: Pairs) -> None:
    with pytest.raises(SiteError, match=r"attn_out\.0 is not a component"):
        method.run(models("llama"), pairs, method.Config(senders=("attn_out.0",)))


def test_cross_attention_cannot_be_frozen() -> None:
    import transformers

    from microtome.models.load import load
    from microtome.patching import components

    config = transformers.T5Config(vocab_size=61, d_model=32, d_kv=8, num_heads=4, num_layers=2, d_ff=48)
    model = load(transformers.T5ForConditionalGeneration(config).eval())
    with pytest.raises(FamilyError, match="cross-attention"):
        components.between(model, (-1, 0), components.END)
