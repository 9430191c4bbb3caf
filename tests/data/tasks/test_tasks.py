"""Every task says what it means on every tokenizer, keeps train and test apart, and refuses what cannot be."""

import inspect
import re
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from microtome.core import plugins
from microtome.core.errors import InputError, MicrotomeError, PluginError
from microtome.data import lexicon, tasks
from microtome.data.pairs import Pairs
from microtome.data.tasks.task import SPLITS, Split

Maker = Callable[[str], PreTrainedTokenizerBase]
NAMES = tasks.names()


@pytest.fixture(params=["words", "bytes", "gpt2"])
def capable(request: pytest.FixtureRequest, make_tokenizer: Maker) -> PreTrainedTokenizerBase:
    """Tokenizers that have the words of every task."""
    if request.param == "gpt2":
        return AutoTokenizer.from_pretrained(request.getfixturevalue("shared_models") / "gpt2-tokenizer")
    return make_tokenizer(request.param)


def _said(pairs: Pairs, row: int, slot: str, corrupt: bool = False) -> str:
    return "".join(pairs.tokens_as_text(row, corrupt)[slice(*pairs.slots[row][slot])]).strip()


def _indirect_object(pairs: Pairs, row: int) -> None:
    (answer,), (wrong,) = pairs.answer_texts[row], pairs.wrong_texts[row]
    assert pairs.texts[row].count(answer) + pairs.texts[row].startswith(answer.strip()) == 1
    assert pairs.texts[row].count(wrong) == 2
    assert (pairs.corrupt_texts[row].count(answer), pairs.corrupt_texts[row].count(wrong)) == (2, 1)
    assert answer == f" {_said(pairs, row, 'IO')}"
    assert _said(pairs, row, "S1") == _said(pairs, row, "S2") == wrong.strip()


def _indirect_object_abc(pairs: Pairs, row: int) -> None:
    (answer,), (wrong,) = pairs.answer_texts[row], pairs.wrong_texts[row]
    assert (pairs.texts[row].count(answer), pairs.texts[row].count(wrong)) == (1, 2)
    third = _said(pairs, row, "S2", corrupt=True)
    assert third in lexicon.NAMES
    names = [pairs.corrupt_texts[row].count(name) for name in (answer, wrong, f" {third}")]
    assert names == [1, 1, 1]


def _induction(pairs: Pairs, row: int) -> None:
    clean, corrupt = pairs.clean[row].tolist(), pairs.corrupt[row].tolist()
    at = clean.index(clean[-1])
    assert clean.count(clean[-1]) == 2
    assert clean[at + 1] == pairs.answers[row][0]
    assert corrupt.count(corrupt[-1]) == 1, "nothing was seen before"
    assert [i for i, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b] == [at]
    assert set(pairs.wrong[row]) < set(clean) - {clean[-1]}


def _agreement(pairs: Pairs, row: int) -> None:
    forms = {noun.singular: "is" for noun in lexicon.NOUNS} | {noun.plural: "are" for noun in lexicon.NOUNS}
    assert pairs.answer_texts[row] == (f" {forms[_said(pairs, row, 'subject')]}",)
    assert pairs.wrong_texts[row] == (f" {forms[_said(pairs, row, 'subject', corrupt=True)]}",)
    assert pairs.answers[row] != pairs.wrong[row]


def _greater_than(pairs: Pairs, row: int) -> None:
    start = int(_said(pairs, row, "start"))
    assert _said(pairs, row, "century") == _said(pairs, row, "century#2") == pairs.texts[row][-2:]
    assert _said(pairs, row, "start", corrupt=True) == "01"
    assert all(int(year) > start for year in pairs.answer_texts[row])
    assert all(int(year) <= start for year in pairs.wrong_texts[row])


def _factual_recall(pairs: Pairs, row: int) -> None:
    city = {landmark.name: landmark.city for landmark in lexicon.LANDMARKS}
    assert pairs.answer_texts[row] == (f" {city[_said(pairs, row, 'landmark')]}",)
    assert pairs.wrong_texts[row] == (f" {city[_said(pairs, row, 'landmark', corrupt=True)]}",)


def _gendered_pronoun(pairs: Pairs, row: int) -> None:
    for corrupt, texts in ((False, pairs.answer_texts), (True, pairs.wrong_texts)):
        gender = lexicon.GENDER[_said(pairs, row, "name", corrupt)]
        assert texts[row] == (f" {lexicon.PRONOUNS[gender].subject}",)


def _gendered_pronoun_story(pairs: Pairs, row: int) -> None:
    for corrupt, texts in ((False, pairs.answer_texts), (True, pairs.wrong_texts)):
        assert texts[row] == ({"girl": " she", "boy": " he"}[_said(pairs, row, "child", corrupt)],)
        name = _said(pairs, row, "name", corrupt)
        if name in lexicon.GENDER:
            assert texts[row] == (f" {lexicon.PRONOUNS[lexicon.GENDER[name]].subject}",)


def _argument_copying(pairs: Pairs, row: int) -> None:
    listed = re.search(r"\((?:self, )?(\w+), (\w+), (\w+)\)", pairs.texts[row])
    assert listed
    described = re.findall(r"param (\w+):", pairs.texts[row])
    assert [*described, pairs.answer_texts[row][0].strip()] == list(listed.groups())
    assert [text.strip() for text in pairs.wrong_texts[row]] == described
    definition, description = pairs.corrupt_texts[row].split("): ")
    assert pairs.texts[row].endswith(description)
    assert not any(re.search(rf"\b{name}\b", definition.split("(")[1]) for name in listed.groups())


MEANING = {
    "indirect-object": _indirect_object,
    "indirect-object-abc": _indirect_object_abc,
    "induction": _induction,
    "agreement": _agreement,
    "greater-than": _greater_than,
    "factual-recall": _factual_recall,
    "gendered-pronoun": _gendered_pronoun,
    "gendered-pronoun-story": _gendered_pronoun_story,
    "argument-copying": _argument_copying,
}


@pytest.mark.parametrize("name", NAMES)
def test_prompts_and_answers_mean_what_the_task_says(name: str, capable: PreTrainedTokenizerBase) -> None:
    task = tasks.get(name)
    for split in SPLITS:
        pairs = task.pairs(capable, 12, seed=5, split=split)
        assert (len(pairs), pairs.task, pairs.seed) == (12, name, 5)
        assert len(set(pairs.texts)) == 12
        for row in range(12):
            MEANING[name](pairs, row)
            assert set(task.slots) & set(pairs.slots[row])
            start = capable.bos_token_id if capable("a")["input_ids"][0] == capable.bos_token_id else None
            assert (pairs.clean[row, 0].item() == capable.bos_token_id) == (start is not None)


def test_greater_than_counts_every_year_of_the_century(words: PreTrainedTokenizerBase) -> None:
    pairs = tasks.get("greater-than").pairs(words, 20)
    for row in range(20):
        start = int(_said(pairs, row, "start"))
        assert (len(pairs.answers[row]), len(pairs.wrong[row])) == (99 - start, start + 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_fixes_the_pairs_and_nothing_else_does(name: str, words: PreTrainedTokenizerBase) -> None:
    task = tasks.get(name)
    assert task.pairs(words, 6, seed=1).hash == task.pairs(words, 6, seed=1).hash
    assert task.pairs(words, 6, seed=1).texts != task.pairs(words, 6, seed=2).texts
    assert task.pairs(words, 9, seed=1).texts[:6] == task.pairs(words, 6, seed=1).texts


@pytest.mark.parametrize("name", NAMES)
def test_train_and_test_share_no_prompt_and_no_key_word(name: str, words: PreTrainedTokenizerBase) -> None:
    key = {
        "indirect-object": "IO", "indirect-object-abc": "IO", "induction": "A", "agreement": "subject",
        "greater-than": "event", "factual-recall": "landmark", "gendered-pronoun": "name",
        "gendered-pronoun-story": "name", "argument-copying": "C_def",
    }[name]  # fmt: skip
    prompts: dict[Split, set[str]] = {}
    fillers: dict[Split, set[str]] = {}
    for split in SPLITS:
        pairs = tasks.get(name).pairs(words, 25, seed=0, split=split)
        prompts[split] = {*pairs.texts, *pairs.corrupt_texts}
        fillers[split] = {_said(pairs, row, key, corrupt) for row in range(25) for corrupt in (False, True)}
    assert not prompts["train"] & prompts["test"]
    assert not fillers["train"] & fillers["test"]


@pytest.mark.parametrize("name", NAMES)
def test_a_character_tokenizer_is_refused_with_a_reason(
    name: str, characters: PreTrainedTokenizerBase
) -> None:
    if name == "induction":
        assert len(tasks.get(name).pairs(characters, 5)) == 5
        return
    with pytest.raises(
        InputError, match=r"(one token .*found 0 among \d+; for example, '.+' is \d tokens: )"
    ):
        tasks.get(name).pairs(characters, 5)


def test_more_prompts_than_there_are_is_refused_with_their_number(words: PreTrainedTokenizerBase) -> None:
    task = tasks.get("factual-recall")
    with pytest.raises(InputError, match=r"expected 10000 pairs .* not equally many tokens") as refusal:
        task.pairs(words, 10000, split="test")
    found = re.search(r"there are (\d+) distinct", str(refusal.value))
    assert found
    there_are = int(found.group(1))
    assert len(set(task.pairs(words, there_are, split="test").texts)) == there_are


def test_bad_requests_are_refused(words: PreTrainedTokenizerBase) -> None:
    task = tasks.get("agreement")
    with pytest.raises(InputError, match="at least one pair, got n=0"):
        task.pairs(words, 0)
    with pytest.raises(InputError, match="one of train, test, got 'validation'"):
        inspect.unwrap(tasks.Task.pairs)(task, words, 2, split="validation")  # type: ignore[arg-type]


def test_unknown_words_give_up_rather_than_search_forever(make_tokenizer: Maker) -> None:
    """A tokenizer that lacks one word of every prompt would otherwise be asked millions of times."""
    words = make_tokenizer("words")
    narrow = words.train_new_from_iterator([" ".join(lexicon.NAMES), "gave a ball to"], vocab_size=200)
    with pytest.raises(InputError, match=r"there are 0 distinct .* does not know .*given up after"):
        tasks.get("indirect-object").pairs(narrow, 2)


def test_each_task_says_what_it_is() -> None:
    assert set(NAMES) == set(MEANING)
    for name in NAMES:
        task = tasks.get(name)
        assert task.name == name
        assert task.question.endswith("?")
        assert re.search(r"\b(19|20)\d\d\b", task.reference)
        assert task.varies
        assert task.slots


def test_hyphens_and_underscores_are_the_same() -> None:
    assert tasks.get("factual_recall") is tasks.get("factual-recall")


def test_tasks_of_other_packages_enter_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    home = "microtome.data.tasks.agreement"
    points = (
        EntryPoint("their_task", f"{home}:TASK", "microtome.tasks"),
        EntryPoint("not_a_task", f"{home}:TEMPLATES", "microtome.tasks"),
        EntryPoint("missing", "no.such.module:TASK", "microtome.tasks"),
    )
    # What is installed has been read before, and is not read again.
    monkeypatch.setattr(plugins, "_points", lambda kind: points if kind == "tasks" else ())
    assert set(tasks.names()) == {*NAMES, "their-task", "not-a-task", "missing"}
    assert tasks.get("their-task") is tasks.get("agreement")
    with pytest.raises(PluginError, match="task not-a-task to name a Task"):
        tasks.get("not-a-task")
    with pytest.raises(PluginError, match="cannot be imported"):
        tasks.get("missing")


def test_an_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PluginError, match="no task is called 'chess'; there are indirect-object, "):
        tasks.get("chess")
    assert issubclass(PluginError, MicrotomeError)


def test_real_tokenizers_run_or_refuse(shared_models: Path) -> None:
    stories = AutoTokenizer.from_pretrained(shared_models / "stories260K")
    runs = {"induction", "gendered-pronoun", "gendered-pronoun-story"}
    for name in NAMES:
        if name in runs:
            assert len(tasks.get(name).pairs(stories, 10)) == 10
        else:
            with pytest.raises(InputError, match="one token"):
                tasks.get(name).pairs(stories, 10)


def test_induction_needs_no_particular_word() -> None:
    """A vocabulary without «a», with and without something that stands before any text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [f"{one}{two}{three}" for one in "klmnp" for two in "eiou" for three in "rst"]
    for framed in (False, True):
        inner = Tokenizer(
            models.WordLevel({word: i for i, word in enumerate(["<unk>", "<s>", *words])}, unk_token="<unk>")
        )
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        if framed:
            inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>")
        pairs = tasks.get("induction").pairs(tokenizer, 4)
        assert bool((pairs.clean[:, 0] == 1).all()) is framed
        assert 0 not in pairs.clean
