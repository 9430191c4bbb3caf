"""The model's own head: norm, projection, caps and scales, for all tokens or for some."""

import pytest
import torch
from tests.models import families

from microtome.core.errors import InputError, SiteError
from microtome.core.logits import LogitSelection
from microtome.models.load import load


@pytest.mark.parametrize("name", families.ALL)
def test_the_last_stream_gives_the_logits(name: str) -> None:
    model = families.model(name)
    last = f"resid_post.{model.n_layers - 1}"
    run = model.run(families.inputs(name), read=[last], logits=True)
    assert torch.allclose(model.unembed(run[last]), run.logits, atol=1e-5)
    assert torch.allclose(model.unembed(run[last][0, -1]), run.logits[0, -1], atol=1e-5)
    some = model.unembed(run[last], tokens=[5, 3, 5])
    assert torch.allclose(some, run.logits[..., [5, 3, 5]], atol=1e-5)


@pytest.mark.parametrize("name", families.ALL)
def test_logits_are_selected_by_position_and_token(name: str) -> None:
    model = families.model(name)
    whole = model.run(families.inputs(name)).logits
    for positions in (None, (-1,), (2, 0)):
        columns = slice(None) if positions is None else list(positions)
        for tokens in (None, (7, 1), ((7, 1), (2, 3))):
            found = model.run(families.inputs(name), logits=LogitSelection(positions, tokens)).logits
            expected = whole[:, columns]
            if tokens is not None:
                ids = torch.tensor(tokens if isinstance(tokens[0], tuple) else (tokens, tokens))
                expected = expected.gather(-1, ids[:, None].expand(-1, expected.shape[1], -1))
            assert torch.allclose(found, expected, atol=1e-5)


def test_selections_keep_to_the_rows_they_are_given() -> None:
    selection = LogitSelection((-1,), ((1, 2), (3, 4)))
    assert selection.for_rows([1, 1, 0]).tokens == ((3, 4), (3, 4), (1, 2))
    assert LogitSelection((-1,), (1, 2)).for_rows([1, 0]).tokens == (1, 2)
    assert LogitSelection().for_rows([0]) == LogitSelection()


def test_caps_bite() -> None:
    logits = families.model("gemma2").run(families.ids()).logits
    assert float(logits.abs().max()) <= 1.0
    uncapped = load(families.make("gemma2", final_logit_softcapping=None)).run(families.ids()).logits
    assert torch.allclose(torch.tanh(uncapped), logits, atol=1e-5)


def test_tokens_out_of_range_and_models_without_a_head_are_refused() -> None:
    model = families.model("gpt2")
    with pytest.raises(InputError, match="token ids go from"):
        model.unembed(torch.zeros(1, 32), tokens=[families.VOCABULARY])
    with pytest.raises(InputError, match="token ids go from"):
        model.run(families.ids(), logits=LogitSelection((-1,), (-1,)))
    base = load(families.make("gpt2").transformer)
    with pytest.raises(SiteError, match="no unembedding"):
        base.unembed(torch.zeros(1, 32))
    with pytest.raises(InputError, match="returns no logits"):
        base.run(families.ids())
