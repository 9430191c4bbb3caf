"""What behaviour is under study, and which prompts show it?

A task makes clean/corrupt pairs for any tokenizer:

1. It divides its words into a train and a test share, before any tokenizer is asked, so that no prompt of one
   split can be made of the other's words.
2. It proposes cases in a random order that the seed fixes.
3. Each case is built for the tokenizer at hand: prompts aligned, answers one token each. What does not fit is left
   out and the reason remembered.
4. It stops at the number asked for; when the cases run out first, it says how many there are and why others fell out.
"""

import json
import math
import random
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, runtime_checkable

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from microtome.core.config import Config
from microtome.core.errors import InputError
from microtome.data.pairs import Pair, Pairs, groups
from microtome.data.templates import Template
from microtome.data.tokens import single_tokens

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
T = TypeVar("T")

_PATIENCE = 2000
"""Refused cases in a row after which a task gives up: more than all landmarks or names paired with all others."""


@runtime_checkable
class Case(Protocol):
    """A proposed pair, not yet known to suit a tokenizer."""

    def pair(self, tokenizer: PreTrainedTokenizerBase) -> Pair:
        """Build it. Raises `InputError` where the prompts do not align or an answer is not one token."""
        ...


@dataclass(frozen=True)
class TemplateCase:
    """A template filled twice. answers, wrong: continuations of the clean text, with their leading space."""

    template: Template
    clean: Mapping[str, str]
    corrupt: Mapping[str, str]
    answers: tuple[str, ...]
    wrong: tuple[str, ...]

    def pair(self, tokenizer: PreTrainedTokenizerBase) -> Pair:
        prompts = self.template.pair(tokenizer, self.clean, self.corrupt)
        answers, wrong = (
            single_tokens(tokenizer, words, after=prompts.text) for words in (self.answers, self.wrong)
        )
        return Pair(prompts, answers, wrong)


@dataclass(frozen=True)
class Task:
    """A behaviour and the prompts that show it.

    name: one hyphenated word. question: what the model must work out, one sentence. reference: the paper.
    varies: what differs between a clean prompt and its corrupt twin. slots: the slots that matter, in order.
    cases: proposes cases for a tokenizer, a split and a random generator, lazily.
    """

    name: str
    question: str
    reference: str
    varies: str
    slots: tuple[str, ...]
    cases: Callable[[PreTrainedTokenizerBase, Split, random.Random], Iterator[Case]]

    def pairs(
        self, tokenizer: PreTrainedTokenizerBase, n: int, seed: int = 0, split: Split = "train"
    ) -> Pairs:
        """`n` pairs with distinct clean prompts. The same arguments give the same pairs.

        Raises `InputError` when there are fewer, saying how many and why others were refused.
        """
        if n < 1:
            raise InputError(f"expected at least one pair, got n={n}")
        if split not in SPLITS:
            raise InputError(f"expected the split to be one of {', '.join(SPLITS)}, got {split!r}")
        found: dict[tuple[int, ...], Pair] = {}
        refused, refused_in_a_row, reason = 0, 0, ""
        for case in self.cases(tokenizer, split, random.Random(f"{self.name} {split} {seed}")):
            try:
                pair = case.pair(tokenizer)
            except InputError as error:
                refused, refused_in_a_row, reason = refused + 1, refused_in_a_row + 1, reason or str(error)
                if refused_in_a_row == _PATIENCE:
                    reason += f" (given up after {_PATIENCE} refusals in a row)"
                    break
                continue
            refused_in_a_row = 0
            found.setdefault(pair.prompts.clean, pair)
            if len(found) == n:
                return Pairs.of(list(found.values()), tokenizer, self.name, seed)
        why = f"; {refused} were refused, the first because {reason}" if reason else ""
        raise InputError(
            f"expected {n} pairs for the task {self.name}, split {split}, but there are {len(found)} distinct "
            f"prompts for this tokenizer and seed{why}"
        )

    @classmethod
    def from_file(cls, path: str | Path) -> "Task":
        """A task described in a `.json` or `.toml` file with the keys of `TaskFile`.

        Raises `InputError` naming the file, the key and what was expected.
        """
        return cls(**_read(Path(path)))


def share(words: Sequence[T], split: Split) -> tuple[T, ...]:
    """The words of a split: every third is kept for the test."""
    return tuple(word for index, word in enumerate(words) if (index % 3 == 2) == (split == "test"))


def combinations(rng: random.Random, *pools: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Every way to take one item from each pool, once, in a random order, made as they are asked for."""
    total = math.prod(map(len, pools))
    seen: set[int] = set()
    while len(seen) < total:
        number = rng.randrange(total)
        if number not in seen:
            seen.add(number)
            chosen = []
            for pool in pools:
                number, index = divmod(number, len(pool))
                chosen.append(pool[index])
            yield tuple(chosen)


def filled(template: Template, fillers: Mapping[str, str]) -> dict[str, str]:
    """The fillers that this template has slots for."""
    return {slot: fillers[slot] for slot in template.slots if slot in fillers}


Words = Annotated[tuple[str, ...], Field(min_length=1)]


class FileCase(Config):
    """What one case of a task file fills in."""

    clean: dict[str, str] = Field(description="Fillers of the clean prompt, by slot.")
    corrupt: dict[str, str] = Field(
        description="Fillers of the corrupt prompt that differ from the clean one's, by slot."
    )
    answers: Words = Field(
        description="Right continuations of the clean prompt, with their leading space. Slots in braces are filled."
    )
    wrong: tuple[str, ...] = Field((), description="Wrong continuations, likewise.")


class TaskFile(Config):
    """A task in a file."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$", description="One hyphenated word.")
    question: str = Field(description="What the model must work out, one sentence.")
    reference: str = Field("", description="Where the task comes from.")
    varies: str = Field("", description="What differs between clean and corrupt.")
    templates: Words = Field(description="Prompts with slots in braces; each case is tried in each template.")
    cases: tuple[FileCase, ...] = Field(
        min_length=3,
        description="At least three; of those that share no fillers, every third is for the test.",
    )
    fillers: dict[str, Words] = Field(
        default_factory=dict,
        description="Words for slots that are the same in clean and corrupt; each is combined with each case.",
    )


def _read(path: Path) -> dict[str, Any]:
    """The fields of the task that a file describes."""
    readers: dict[str, Callable[[str], Any]] = {".json": json.loads, ".toml": tomllib.loads}
    if path.suffix not in readers:
        raise InputError(f"expected a task file ending in {' or '.join(readers)}, got {path}")
    try:
        settings = readers[path.suffix](path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the task file {path} cannot be opened: {error.strerror}") from error
    except ValueError as error:  # also what is not UTF-8
        raise InputError(f"the task file {path} is not valid {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(
            f"the task file {path} must hold an object with the keys {', '.join(TaskFile.model_fields)}"
        )
    try:
        file = TaskFile.read(settings)
        templates = tuple(map(Template, file.templates))
        for case in file.cases:
            clean = {slot: words[0] for slot, words in file.fillers.items()} | case.clean
            for template in (*templates, *map(Template, (*case.answers, *case.wrong))):
                template.text_with(filled(template, clean))
            if unknown := set(clean | case.corrupt) - {
                slot for template in templates for slot in template.slots
            }:
                raise InputError(f"no template has the slot {', '.join(sorted(unknown))}")
        apart = groups([(_key(case.clean), _key(case.clean | case.corrupt)) for case in file.cases])
        if len(apart) < 3:
            raise InputError(
                f"its {len(file.cases)} cases make {len(apart)} group(s) that share no fillers, clean or corrupt; "
                "at least 3 are needed to keep some for the test"
            )
    except InputError as error:
        raise InputError(f"the task file {path} cannot be used: {error}") from error

    def cases(_: PreTrainedTokenizerBase, split: Split, rng: random.Random) -> Iterator[Case]:
        ours = [file.cases[index] for group in share(apart, split) for index in group]
        for template, case, *words in combinations(rng, templates, ours, *file.fillers.values()):
            clean = dict(zip(file.fillers, words, strict=True)) | case.clean
            answers, wrong = (
                tuple(Template(word).text_with(filled(Template(word), clean)) for word in side)
                for side in (case.answers, case.wrong)
            )
            yield TemplateCase(
                template, filled(template, clean), filled(template, clean | case.corrupt), answers, wrong
            )

    changed = tuple(dict.fromkeys(slot for case in file.cases for slot in case.corrupt))
    return {
        "name": file.name,
        "question": file.question,
        "reference": file.reference,
        "varies": file.varies or ", ".join(changed),
        "slots": changed,
        "cases": cases,
    }


def _key(fillers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(fillers.items()))
