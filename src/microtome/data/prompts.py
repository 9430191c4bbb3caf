"""Which texts does a method look at? `Prompts` is the data of every method that only observes.

A batch of tokenized texts with its padding mask: no twin, no answer. It holds tensors and plain values only, so it
needs no tokenizer and its hash says what was looked at.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from microtome.core.errors import InputError
from microtome.data.pairs import Pairs
from microtome.data.tokens import encode, token_text


@dataclass(frozen=True, eq=False)
class Prompts:
    """Tokenized texts.

    tokens: ids, padded on the right. mask: 1 at real tokens, 0 at padding; None where nothing is padded.
    texts: the prompts as text. token_strings: the text of every id that occurs.
    """

    tokens: Int[Tensor, "batch position"]
    mask: Int[Tensor, "batch position"] | None
    texts: tuple[str, ...]
    token_strings: dict[int, str]

    @classmethod
    def of(cls, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Self:
        """Tokenize texts. Raises `InputError` for none, an empty one, and words the tokenizer does not know."""
        if not texts or not all(text.strip() for text in texts):
            raise InputError(
                f"expected texts with something in each, got {list(texts)!r}; drop the empty ones"
            )
        rows = [encode(tokenizer, text).ids for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        tokens = torch.full(mask.shape, tokenizer.pad_token_id or 0)
        tokens[mask] = torch.tensor([token for row in rows for token in row])
        used = sorted({token for row in rows for token in row})
        return cls(
            tokens,
            None if mask.all() else mask.long(),
            tuple(texts),
            {token: token_text(tokenizer, token) for token in used},
        )

    @classmethod
    def clean(cls, pairs: Pairs) -> Self:
        """The clean prompts of pairs."""
        return cls(pairs.clean, pairs.mask, pairs.texts, pairs.token_strings)

    def __len__(self) -> int:
        return len(self.tokens)

    def tokens_as_text(self, row: int) -> tuple[str, ...]:
        """The real tokens of a row as text, in the order of the positions."""
        return tuple(self.token_strings[token] for token in self._rows[row])

    @cached_property
    def hash(self) -> str:
        """SHA-256 in hex over the texts and their real tokens."""
        contents = [self._rows, self.texts, sorted(self.token_strings.items())]
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()

    @cached_property
    def _rows(self) -> list[list[int]]:
        mask = torch.ones_like(self.tokens) if self.mask is None else self.mask
        return [row[real].tolist() for row, real in zip(self.tokens, mask.bool(), strict=True)]
