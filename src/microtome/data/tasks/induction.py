"""What came next the last time? Random tokens `… A B … A` -> `B`.

The tokens are ordinary ones of the vocabulary, all different, drawn at random, so that nothing but the earlier
occurrence tells what follows. In the corrupt prompt the first `A` is another random token: `B` still stands in
its place, but nothing says that it follows `A`. Wrong answers are the other tokens of the prompt.

Elhage et al. (2021); Olsson et al. (2022), In-context Learning and Induction Heads, arXiv:2209.11895.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from microtome.core.errors import InputError
from microtome.data.pairs import Pair
from microtome.data.tasks.task import Split, Task, share
from microtome.data.templates import AlignedPrompts
from microtome.data.tokens import encode

LENGTH = 10
"""Distinct tokens before the second `A`."""


@dataclass(frozen=True)
class RandomTokens:
    """`tokens`: all different; the one at `place` comes again at the end. `other` replaces it in the corrupt prompt."""

    start: tuple[int, ...]
    tokens: tuple[int, ...]
    place: int
    other: int

    def pair(self, tokenizer: PreTrainedTokenizerBase) -> Pair:
        first, following = self.tokens[self.place : self.place + 2]
        corrupted = (*self.tokens[: self.place], self.other, *self.tokens[self.place + 1 :])
        clean = (*self.start, *self.tokens, first)
        corrupt = (*self.start, *corrupted, first)
        at = len(self.start) + self.place
        spans = {"A": (at, at + 1), "B": (at + 1, at + 2), "A#2": (len(clean) - 1, len(clean))}
        texts = (str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) for ids in (clean, corrupt))
        prompts = AlignedPrompts(clean, corrupt, spans, ("A",), *texts)
        return Pair(prompts, (following,), tuple(t for t in self.tokens if t not in (first, following)))


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids of tokens made of letters and digits: no special token, no punctuation, no part of a character."""
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return tuple(t for t, text in enumerate(texts) if t not in special and text.strip().isalnum())


def _cases(tokenizer: PreTrainedTokenizerBase, split: Split, rng: random.Random) -> Iterator[RandomTokens]:
    pool = share(ordinary_tokens(tokenizer), split)
    if len(pool) < LENGTH + 1:
        raise InputError(
            f"induction needs {LENGTH + 1} ordinary tokens in the split {split}, this tokenizer has {len(pool)}"
        )
    # What the tokenizer puts before any text, such as a token of beginning.
    start = encode(tokenizer, str(tokenizer.decode([pool[0]])).strip())
    while True:
        *tokens, other = rng.sample(pool, LENGTH + 1)
        yield RandomTokens(start.ids[: start.span(0, 1)[0]], tuple(tokens), rng.randrange(LENGTH // 2), other)


TASK = Task(
    name="induction",
    question="Which token followed the last time that this one occurred?",
    reference="Olsson et al. (2022), In-context Learning and Induction Heads, arXiv:2209.11895",
    varies="the first A becomes another token, so that nothing was seen before",
    slots=("A", "B", "A#2"),
    cases=_cases,
)
