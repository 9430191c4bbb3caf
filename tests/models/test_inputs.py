"""What can be run, what is refused, and that padding changes nothing."""

from typing import Any

import pytest
import torch
from tests.models import families
from torch import Tensor

from microtome.core.errors import InputError
from microtome.models.load import load
from microtome.models.model import Model


class Letters:
    """A tokenizer of single letters; nothing but what `Model` uses."""

    pad_token_id = 0
    eos_token_id = 2

    def __init__(self, padding_side: str = "right") -> None:
        self.padding_side = padding_side

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - 90 for letter in text]}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "bloom", "roberta", "mistral"])
def test_texts_are_padded_on_the_tokenizers_side_and_give_what_they_give_alone(name: str, side: str) -> None:
    model = load(families.make(name), tokenizer=Letters(side))
    texts = ["abcdefg", "xyz"]
    both = model.run(texts, read=["resid_post.2@-1", "z.1@0"])
    for row, text in enumerate(texts):
        alone = model.run(text, read=["resid_post.2@-1", "z.1@0"])
        for site in ("resid_post.2@-1", "z.1@0"):
            assert torch.allclose(both[site][row : row + 1], alone[site], atol=2e-5, rtol=1e-3)


def test_keyword_inputs_are_treated_like_ids_and_mask() -> None:
    """What a tokenizer returns can be handed on, left padding included."""
    model = families.model("gpt2")
    ids = families.ids()
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    by_name = model.run({"input_ids": ids, "attention_mask": mask}, read=["resid_post.2@-1"])
    by_place = model.run(ids, read=["resid_post.2@-1"], mask=mask)
    assert torch.equal(by_name["resid_post.2@-1"], by_place["resid_post.2@-1"])
    alone = model.run(ids[1:, 4:], read=["resid_post.2@-1"])
    assert torch.allclose(by_name["resid_post.2@-1"][1:], alone["resid_post.2@-1"], atol=2e-5)


def _mask(*rows: list[int]) -> Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("tokens", "keywords", "says"),
    [
        (torch.zeros(2, 3), {}, "ids must be integers"),
        (torch.zeros(3, dtype=torch.long), {}, "ids must be integers of shape"),
        (torch.zeros(2, 0, dtype=torch.long), {}, "at least one token"),
        (torch.tensor([[3, 61]]), {}, "ids go from 3 to 61"),
        (torch.tensor([[-1, 5]]), {}, "ids go from -1 to 5"),
        (torch.ones(1, 33, dtype=torch.long), {}, "more than the 32 positions"),
        (torch.ones(1, 3, dtype=torch.long), {"mask": _mask([1, 1])}, "the mask has shape"),
        (torch.ones(1, 3, dtype=torch.long), {"mask": _mask([0, 0, 0])}, "no real token"),
        (torch.ones(1, 3, dtype=torch.long), {"mask": _mask([1, 0, 1])}, "holes"),
        ({"input_ids": torch.tensor([[99]])}, {}, "ids go from 99"),
        ({"input_ids": torch.tensor([[5]])}, {"mask": _mask([1])}, "their own mask"),
        ({}, {}, "no tensor among the inputs"),
        ("text", {}, "no tokenizer"),
    ],
)
def test_what_the_model_cannot_take_is_refused(tokens: Any, keywords: dict[str, Any], says: str) -> None:
    model = families.model("llama")
    with pytest.raises(InputError, match=says):
        model.run(tokens, **keywords)
    assert model.run(families.ids()).logits is not None


def test_texts_that_hold_nothing_are_refused() -> None:
    model = load(families.make("gpt2"), tokenizer=Letters())
    for texts in ([], [""], ["abc", ""]):
        with pytest.raises(InputError, match="at least one"):
            model.run(texts)
    with pytest.raises(InputError, match="take no mask"):
        model.run("abc", mask=torch.ones(1, 3, dtype=torch.long))


def test_both_ends_of_an_encoder_decoder_are_needed() -> None:
    model = families.model("t5")
    with pytest.raises(InputError, match="reads two texts"):
        model.run(families.ids())
    with pytest.raises(InputError, match="reads two texts"):
        model.run({"input_ids": families.ids()})
    with pytest.raises(InputError, match="rows"):
        model.run({"input_ids": families.ids(2), "decoder_input_ids": families.ids(3)})


def test_a_padded_encoder_gives_what_it_gives_alone() -> None:
    model = families.model("t5")
    given = families.inputs("t5")
    mask = torch.ones_like(given["input_ids"])
    mask[1, 5:] = 0
    sites = ["encoder/resid_post.2@-1", "resid_post.2", "encoder/z.0@0"]
    both = model.run(given | {"attention_mask": mask}, read=sites)
    short = {"input_ids": given["input_ids"][1:, :5], "decoder_input_ids": given["decoder_input_ids"][1:]}
    alone = model.run(short, read=sites)
    for site in sites:
        assert torch.allclose(both[site][1:], alone[site], atol=2e-5, rtol=1e-3)


def test_a_module_without_a_map_takes_one_tensor_or_its_own_arguments() -> None:
    module = families.make("gpt2")
    model = load(module, family=None)
    assert isinstance(model, Model)
    ids = families.ids()
    expected = families.untouched(module, ids)
    assert torch.allclose(model.run(ids).logits, expected, atol=1e-5)
    assert torch.equal(model.run({"input_ids": ids}).logits, expected)
    with pytest.raises(InputError, match="no map"):
        model.run(ids, mask=torch.ones_like(ids))
