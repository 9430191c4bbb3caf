"""Whatever the user has becomes prompts, and what cannot is refused."""

import pytest
import torch

from microtome.core.errors import InputError
from microtome.data.observed import as_prompts
from microtome.data.prompts import Prompts


def test_ids_without_a_tokenizer_are_shown_by_number() -> None:
    ids = torch.tensor([[3, 1], [2, 3]])
    found = as_prompts(ids, None)
    assert torch.equal(found.tokens, ids)
    assert found.texts == (" 3 1", " 2 3")
    assert found.tokens_as_text(1) == (" 2", " 3")
    assert as_prompts(found, None) is found


def test_texts_need_a_tokenizer(tokenizer: object) -> None:
    text = "to"
    assert isinstance(as_prompts([text], tokenizer), Prompts)
    assert as_prompts(text, tokenizer).texts == (text,)
    with pytest.raises(InputError, match="no tokenizer"):
        as_prompts(["to"], None)


@pytest.mark.parametrize("nothing", [None, [], ""])
def test_nothing_is_refused(nothing: object) -> None:
    with pytest.raises(InputError, match="got nothing"):
        as_prompts(nothing, None)


def test_ids_that_are_no_matrix_are_refused() -> None:
    with pytest.raises(InputError, match="integer ids"):
        as_prompts(torch.zeros(0, 3, dtype=torch.long), None)
