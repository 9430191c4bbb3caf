"""Which prompts does a method compare, and which next tokens tell right from wrong?

`Pairs` is the data of every method that intervenes: a batch of clean prompts, a corrupt twin for each, aligned
token for token, with the answers that the clean prompt calls for and the wrong answers they are measured against.
It holds tensors and plain values only, so it needs no tokenizer and its hash says what was asked.
"""

import hashlib
import json
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from microtome.core.errors import InputError
from microtome.data.templates import AlignedPrompts, Spans
from microtome.data.tokens import token_text


@dataclass(frozen=True)
class Pair:
    """Aligned prompts with the ids of the answers that the clean one calls for, and of wrong ones."""

    prompts: AlignedPrompts
    answers: tuple[int, ...]
    wrong: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Clean and corrupt prompts, aligned. Raises `InputError` where the parts do not fit each other.

    clean, corrupt: token ids, padded on the right where prompts differ in length.
    mask: 1 at real tokens, 0 at padding, the same for clean and corrupt; None where nothing is padded.
    answers, wrong: for each row, ids of the right next tokens (at least one) and of the wrong ones.
    slots: for each row, the token positions `[start, stop)` of each slot, counted over real tokens.
    texts, corrupt_texts: the prompts as text.
    token_strings: the text of every id that occurs above.
    task, seed: what made them; seed is None for pairs made by hand.
    """

    clean: Int[Tensor, "batch position"]
    corrupt: Int[Tensor, "_ _"]  # as clean: the error below says so in the user's words
    mask: Int[Tensor, "_ _"] | None  # likewise
    answers: tuple[tuple[int, ...], ...]
    wrong: tuple[tuple[int, ...], ...]
    slots: tuple[Spans, ...]
    texts: tuple[str, ...]
    corrupt_texts: tuple[str, ...]
    token_strings: dict[int, str]
    task: str = ""
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.clean.ndim != 2 or self.clean.shape != self.corrupt.shape:
            raise InputError(
                f"expected clean and corrupt prompts of one shape [batch, position], got "
                f"{tuple(self.clean.shape)} and {tuple(self.corrupt.shape)}; each corrupt prompt must align "
                "with its clean one token for token"
            )
        if not self.clean.numel():
            raise InputError("expected at least one pair of prompts with at least one token, got none")
        if self.mask is not None and (self.mask.shape != self.clean.shape or not self.mask.any(-1).all()):
            raise InputError(
                f"expected a mask of shape {tuple(self.clean.shape)} with a real token in each row, got shape "
                f"{tuple(self.mask.shape)}"
            )
        for name in ("answers", "wrong", "slots", "texts", "corrupt_texts"):
            if len(getattr(self, name)) != len(self.clean):
                raise InputError(
                    f"expected {name} for {len(self.clean)} rows, got {len(getattr(self, name))}"
                )
        for row in range(len(self)):
            self._check_row(row)

    def _check_row(self, row: int) -> None:
        if not self.answers[row]:
            raise InputError(f"row {row} has no answer: {self.texts[row]!r}")
        if both := set(self.answers[row]) & set(self.wrong[row]):
            words = ", ".join(repr(self.token_strings.get(token, str(token))) for token in sorted(both))
            raise InputError(
                f"{words} is both an answer and a wrong answer in row {row}: {self.texts[row]!r}; "
                "a metric cannot tell them apart"
            )
        length = self.lengths[row]
        for slot, (start, stop) in self.slots[row].items():
            if not 0 <= start < stop <= length:
                raise InputError(
                    f"the slot {slot} of row {row} spans tokens {start} to {stop}, the prompt has {length}"
                )

    @classmethod
    def of(
        cls,
        pairs: Sequence[Pair],
        tokenizer: PreTrainedTokenizerBase,
        task: str = "",
        seed: int | None = None,
    ) -> "Pairs":
        """Batch pairs, padding on the right. Raises `InputError` for none, and for unequal lengths in a pair."""
        if not pairs:
            raise InputError("expected at least one pair of prompts, got none")
        for pair in pairs:
            clean, corrupt = pair.prompts.clean, pair.prompts.corrupt
            if len(clean) != len(corrupt):
                raise InputError(
                    f"expected prompts of equal length, got {len(clean)} tokens for {pair.prompts.text!r} and "
                    f"{len(corrupt)} for {pair.prompts.corrupt_text!r}"
                )
        lengths = torch.tensor([len(pair.prompts.clean) for pair in pairs])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        clean_ids, corrupt_ids = (
            torch.full(mask.shape, tokenizer.pad_token_id or 0).masked_scatter(
                mask, torch.tensor([token for ids in side for token in ids])
            )
            for side in ([pair.prompts.clean for pair in pairs], [pair.prompts.corrupt for pair in pairs])
        )
        used = {
            token
            for pair in pairs
            for token in (*pair.prompts.clean, *pair.prompts.corrupt, *pair.answers, *pair.wrong)
        }
        return cls(
            clean=clean_ids,
            corrupt=corrupt_ids,
            mask=None if mask.all() else mask.long(),
            answers=tuple(pair.answers for pair in pairs),
            wrong=tuple(pair.wrong for pair in pairs),
            slots=tuple(pair.prompts.spans for pair in pairs),
            texts=tuple(pair.prompts.text for pair in pairs),
            corrupt_texts=tuple(pair.prompts.corrupt_text for pair in pairs),
            token_strings={token: token_text(tokenizer, token) for token in sorted(used)},
            task=task,
            seed=seed,
        )

    def __len__(self) -> int:
        return len(self.clean)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """The number of real tokens of each row."""
        if self.mask is None:
            return (self.clean.shape[1],) * len(self)
        return tuple(self.mask.sum(-1).tolist())

    @property
    def answer_texts(self) -> tuple[tuple[str, ...], ...]:
        """The answers of each row as text, with their leading space where the tokenizer has one."""
        return tuple(tuple(self.token_strings[token] for token in row) for row in self.answers)

    @property
    def wrong_texts(self) -> tuple[tuple[str, ...], ...]:
        """The wrong answers of each row as text."""
        return tuple(tuple(self.token_strings[token] for token in row) for row in self.wrong)

    @cached_property
    def hash(self) -> str:
        """SHA-256 in hex over everything that these pairs hold."""
        contents = {
            "clean": self._real_ids(self.clean),
            "corrupt": self._real_ids(self.corrupt),
            "mask": None if self.mask is None else self.mask.tolist(),
            "answers": self.answers,
            "wrong": self.wrong,
            "slots": [sorted(spans.items()) for spans in self.slots],
            "texts": self.texts,
            "corrupt_texts": self.corrupt_texts,
            "token_strings": sorted(self.token_strings.items()),
            "task": self.task,
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(contents).encode()).hexdigest()

    def _real_ids(self, tokens: Int[Tensor, "batch position"]) -> list[tuple[int, ...]]:
        if self.mask is None:
            return [tuple(row) for row in tokens.tolist()]
        return [tuple(row[real].tolist()) for row, real in zip(tokens, self.mask.bool(), strict=True)]

    def tokens_as_text(self, row: int, corrupt: bool = False) -> tuple[str, ...]:
        """The real tokens of a row as text, in the order of the positions."""
        ids = self._real_ids(self.corrupt if corrupt else self.clean)[row]
        return tuple(self.token_strings[token] for token in ids)

    def rows(self, rows: Sequence[int]) -> "Pairs":
        """These rows in this order (repeats allowed). Raises `InputError` for a row that does not exist."""
        if outside := [row for row in rows if not -len(self) <= row < len(self)]:
            raise InputError(f"expected rows below {len(self)}, got {outside}")
        index = torch.tensor(rows, dtype=torch.long)
        return Pairs(
            clean=self.clean[index],
            corrupt=self.corrupt[index],
            mask=None if self.mask is None else self.mask[index],
            answers=tuple(self.answers[row] for row in rows),
            wrong=tuple(self.wrong[row] for row in rows),
            slots=tuple(self.slots[row] for row in rows),
            texts=tuple(self.texts[row] for row in rows),
            corrupt_texts=tuple(self.corrupt_texts[row] for row in rows),
            token_strings=self.token_strings,
            task=self.task,
            seed=self.seed,
        )

    def split(self, fraction: float, seed: int = 0) -> tuple["Pairs", "Pairs"]:
        """Two parts that share no prompt, clean or corrupt; the first holds about `fraction` of the rows.

        Rows that share a prompt stay together, so the fraction is met as nearly as whole groups allow. Raises
        `InputError` where one part would be empty.
        """
        if not 0 < fraction < 1:
            raise InputError(f"expected a fraction between 0 and 1, got {fraction}")
        parts = groups(list(zip(self._real_ids(self.clean), self._real_ids(self.corrupt), strict=True)))
        random.Random(seed).shuffle(parts)
        wanted = fraction * len(self)
        first: list[int] = []
        second: list[int] = []
        for group in parts:
            nearer = abs(len(first) + len(group) - wanted) < abs(len(first) - wanted)
            (first if nearer else second).extend(group)
        if not first or not second:
            raise InputError(
                f"{len(self)} rows in {len(parts)} group(s) that share no prompt cannot be split at {fraction} "
                "into two parts; ask for more pairs or another fraction"
            )
        return self.rows(sorted(first)), self.rows(sorted(second))


def groups(prompts: Sequence[tuple[Hashable, Hashable]]) -> list[list[int]]:
    """Rows (clean prompt, corrupt prompt) joined wherever they share a prompt, directly or through other rows."""
    parts = networkx.connected_components(networkx.Graph(prompts))
    part_of = {prompt: number for number, part in enumerate(parts) for prompt in part}
    rows: dict[int, list[int]] = {}
    for row, (clean, _) in enumerate(prompts):
        rows.setdefault(part_of[clean], []).append(row)
    return list(rows.values())
