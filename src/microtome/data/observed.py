"""What is a method asked to look at? Prompts from whatever the user has: prompts, pairs, texts, or token ids.

Texts need the model's tokenizer. Ids do without one: their tokens are then shown by number.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from microtome.core.errors import InputError
from microtome.data.pairs import Pairs
from microtome.data.prompts import Prompts
from microtome.data.tokens import token_text

Observed = Prompts | Pairs | Int[Tensor, "row column"] | str | Sequence[str]


def as_prompts(data: Observed | None, tokenizer: Any) -> Prompts:
    """Prompts from what was given; of pairs, the clean ones.

    Raises `InputError` for nothing, for text without a tokenizer, and for ids that are no matrix of integers.
    """
    if isinstance(data, Prompts):
        return data
    if isinstance(data, Pairs):
        return Prompts.clean(data)
    if isinstance(data, Tensor):
        return _of_ids(data, tokenizer)
    if data is None or not len(data):
        raise InputError("expected prompts, pairs, texts or token ids [row, column] to look at, got nothing")
    if tokenizer is None:
        raise InputError("the model has no tokenizer to read text with; give token ids [row, column]")
    return Prompts.of([data] if isinstance(data, str) else list(data), tokenizer)


def _of_ids(ids: Int[Tensor, "row column"], tokenizer: Any) -> Prompts:
    if ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        raise InputError(
            f"expected integer ids [row, column] with at least one token, got {ids.dtype} {list(ids.shape)}"
        )
    used = torch.unique(ids).tolist()
    strings = {
        token: f" {token}" if tokenizer is None else token_text(tokenizer, int(token)) for token in used
    }
    texts = tuple("".join(strings[token] for token in row) for row in ids.tolist())
    return Prompts(ids, None, texts, strings)
