"""Training on the model's outputs: gradients are those through the model, and the model stays as it was."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from microtome.bases.splice import splice
from microtome.core.edits import Zero
from microtome.core.errors import InputError, StoreError
from microtome.core.site import Site
from microtome.dictionaries.activations import ReLU
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.end_to_end import ModelLoss, TokenStream, divergence, unexplained
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.scene import squared_error
from microtome.dictionaries.trainer import Trained, train
from microtome.models.model import Model
from models import families


def plain(model: Model, site: Site, decoder: Tensor) -> Dictionary:
    """A dictionary whose decoder may carry gradients; the rest is drawn."""
    d, units = decoder.shape[1], len(decoder)
    source = torch.Generator().manual_seed(4)
    encoder, bias = torch.randn(units, d, generator=source), torch.randn(d, generator=source)
    zeros = torch.zeros(d)
    return Dictionary(
        "plain", (site,), (site,), (d,), (d,), ReLU(), encoder, zeros[:1].expand(units), decoder, bias, zeros
    )


@pytest.mark.parametrize(
    ("name", "site"), [("gpt2", "resid_post.0"), ("llama", "z.1"), ("gemma2", "mlp_out.1")]
)
def test_the_gradient_is_the_one_through_the_spliced_model(name: str, site: str) -> None:
    model, tokens = families.model(name), families.ids(rows=4)
    stream = TokenStream(model, tokens, [site], together=3, also=["resid_post.2"])
    x = next(stream)
    decoder = torch.randn(20, x.shape[1], generator=torch.Generator().manual_seed(6)).requires_grad_()
    basis = plain(model, Site.parse(site), decoder)
    loss = ModelLoss(stream, later=["resid_post.2"], downstream=0.7).loss(basis.decode(basis.encode(x)), x)
    (mine,) = torch.autograd.grad(loss, decoder)

    own = model.run(stream.tokens, ["resid_post.2"], logits=True)
    run = model.run(stream.tokens, ["resid_post.2"], splice(basis, error="drop"), logits=True)
    assert own.logits is not None
    assert run.logits is not None
    p = own.logits.softmax(-1)
    kl = (p * (own.logits.log_softmax(-1) - run.logits.log_softmax(-1))).sum(-1).mean()
    late, mid = own["resid_post.2"], own["resid_post.2"].flatten(0, 1).mean(0)
    error = (run["resid_post.2"] - late).square().sum() / (late - mid).square().sum()
    (theirs,) = torch.autograd.grad(kl + 0.7 * error, decoder)
    torch.testing.assert_close(loss, (kl + 0.7 * error).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mine, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=1e-3)
    assert float(theirs.abs().max()) > 0
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_a_token_that_begins_a_row_is_left_as_it_is() -> None:
    model, tokens = families.model("gpt2"), families.ids(rows=4)
    stream = TokenStream(model, tokens, ["z.0"], together=4, also=["resid_post.1"], begins=True)
    x = next(stream)
    assert len(x) == stream.batch_rows == 4 * (tokens.shape[1] - 1)
    loss = ModelLoss(stream, later=["resid_post.1"]).loss(x * 0, x)
    at = Site.parse("z.0").at(*range(1, tokens.shape[1]))
    run = model.run(stream.tokens, ["resid_post.1"], [Zero(at)], logits=True)
    assert run.logits is not None
    expected = divergence(stream.logits, run.logits[:, 1:])
    expected += unexplained(run["resid_post.1"][:, 1:], stream.values[Site.parse("resid_post.1")])
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)


def test_what_is_rebuilt_perfectly_costs_nothing() -> None:
    model, tokens = families.model("gpt2"), families.ids(rows=4)
    stream = TokenStream(model, tokens, ["resid_post.0"], together=4, also=["resid_post.1"])
    x = next(stream)
    loss = ModelLoss(stream, later=["resid_post.1"], local=1.0)
    assert float(loss.loss(x, x)) == pytest.approx(0.0, abs=1e-6)
    assert float(loss.loss(x * 0, x)) > 0.01
    # The mean of the batch explains nothing of its variance.
    assert float(unexplained(x.mean(0).expand_as(x), x)) == pytest.approx(1.0, abs=1e-5)


def test_divergence_is_not_negative_and_zero_for_itself() -> None:
    one, other = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3, 7)
    assert float(divergence(one, one)) == pytest.approx(0.0, abs=1e-6)
    p = one.softmax(-1)
    assert float(divergence(one, other)) == pytest.approx(float((p * (p * 7).log()).sum(-1).mean()), abs=1e-6)


def taught(end_to_end: bool, recipes: Sequence[Recipe]) -> list[Trained]:
    model, tokens = families.model("gpt2"), families.ids(rows=64)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    stream = TokenStream(model, tokens, ["resid_post.1"], together=16, also=["resid_post.2"])
    target = ModelLoss(stream, later=["resid_post.2"]) if end_to_end else squared_error
    found = train(stream, recipes, target=target)
    after = model.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    return found


def kept(found: Trained) -> float:
    model, tokens = families.model("gpt2"), families.ids(rows=64, seed=1)
    own = model.run(tokens).logits
    run = model.run(tokens, edit=splice(found.dictionary, error="drop")).logits
    assert own is not None
    assert run is not None
    return float(divergence(own, run))


def test_it_lowers_the_divergence() -> None:
    recipe = Recipe(width=64, l0=4, steps=35, rate=1e-2)
    untrained, trained = (kept(taught(True, [recipe.model_copy(update={"steps": s})])[0]) for s in (1, 35))
    assert trained < untrained / 2
    # The same seed gives the same dictionary; prefixes are each put into the model.
    short = recipe.model_copy(update={"steps": 3})
    nested = short.model_copy(update={"prefixes": (16, 64)})
    one, again, other = (taught(True, [r])[0].dictionary for r in (short, short, nested))
    assert torch.equal(one.decoder, again.decoder)
    assert not torch.equal(one.decoder, other.decoder)


def test_a_training_on_outputs_is_taken_up_with_the_same_loss_alone(tmp_path: Path) -> None:
    model, tokens = families.model("gpt2"), families.ids(rows=4)
    recipe = Recipe(width=8, l0=2, steps=2)

    def go_on(local: float | None) -> Trained:
        stream = TokenStream(model, tokens, ["resid_post.1"], together=2)
        target = squared_error if local is None else ModelLoss(stream, local=local)
        return train(stream, [recipe], folder=tmp_path, target=target)[0]

    first = go_on(0.5)
    for other in (None, 0.0, 0.4):
        with pytest.raises(StoreError, match="its target differ"):
            go_on(other)
    assert torch.equal(go_on(0.5).dictionary.decoder, first.dictionary.decoder)


def test_the_seed_and_the_epoch_decide_the_order() -> None:
    model, tokens = families.model("gpt2"), families.ids(rows=12, seed=3)

    def order(seed: int) -> list[Tensor]:
        stream = TokenStream(model, tokens, ["resid_post.0"], together=4, seed=seed, epochs=2)
        return [stream.tokens.clone() for _ in stream]

    one, again, other = order(0), order(0), order(1)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one[:3], one[3:], strict=True))


def test_bad_input() -> None:
    model, tokens = families.model("gpt2"), families.ids(rows=4)
    with pytest.raises(InputError, match="give more rows"):
        TokenStream(model, tokens, ["resid_post.1"], together=5)
    stream = TokenStream(model, tokens, ["resid_post.1"], together=2, epochs=1)
    with pytest.raises(InputError, match=r"does not keep resid_post\.2"):
        ModelLoss(stream, later=["resid_post.2"])
    assert len(list(stream)) == 2
    stream.seek(1)
    again = next(stream)
    stream.seek(1)
    assert torch.equal(again, next(stream))
