"""A task in a file is a task like any other, and what cannot be one is refused with the reason."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from microtome.core.errors import InputError
from microtome.data import metrics, tasks
from microtome.data.pairs import Pairs
from microtome.data.tasks.task import Task, combinations, share

FILE: dict[str, Any] = {
    "name": "who-went",
    "question": "Who went there?",
    "templates": ["{name} went to the {place} and {name} was {feeling}", "When {name} came home,"],
    "cases": [
        {"clean": {"name": a}, "corrupt": {"name": b}, "answers": [" {name}"], "wrong": [f" {b}", " Max"]}
        for a, b in (("Mary", "Tom"), ("John", "Kate"), ("Anna", "Paul"), ("Lucy", "Mark"))
    ],
    "fillers": {"feeling": ["happy", "sad"], "place": ["park", "school", "beach"]},
}
TOML = """
name = "who-went"
question = "Who went there?"
templates = ["When {name} came home,"]
[[cases]]
clean = {name = "Mary"}
corrupt = {name = "Tom"}
answers = [" she"]
wrong = [" he"]
[[cases]]
clean = {name = "Anna"}
corrupt = {name = "Paul"}
answers = [" she"]
[[cases]]
clean = {name = "Kate"}
corrupt = {name = "Mark"}
answers = [" she"]
"""


def _written(folder: Path, content: Any, name: str = "task.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_file_makes_every_combination_once(tmp_path: Path, words: PreTrainedTokenizerBase) -> None:
    task = Task.from_file(_written(tmp_path, FILE))
    assert (task.name, task.question, task.slots, task.varies) == (
        "who-went",
        "Who went there?",
        ("name",),
        "name",
    )
    train = task.pairs(words, 3 * (6 + 1), split="train")
    assert len(set(train.texts)) == 21, "three cases in six wordings of one template and one of the other"
    test = task.pairs(words, 7, split="test")
    assert {text for texts in test.answer_texts for text in texts} == {" Anna"}, (
        "the third case is for the test"
    )
    assert not {*train.texts, *train.corrupt_texts} & {*test.texts, *test.corrupt_texts}
    with pytest.raises(InputError, match=r"expected 8 pairs .* there are 7 distinct prompts"):
        task.pairs(words, 8, split="test")


def test_slots_in_answers_are_filled_with_the_clean_words(
    tmp_path: Path, words: PreTrainedTokenizerBase
) -> None:
    pairs = Task.from_file(_written(tmp_path, FILE)).pairs(words, 10)
    for row in range(10):
        (answer,) = pairs.answer_texts[row]
        assert answer == pairs.tokens_as_text(row)[slice(*pairs.slots[row]["name"])][0]
        changed = pairs.tokens_as_text(row, corrupt=True)[slice(*pairs.slots[row]["name"])][0]
        assert pairs.wrong_texts[row] == (changed, " Max")


def test_mirrored_cases_stay_on_one_side(tmp_path: Path, words: PreTrainedTokenizerBase) -> None:
    couples = [("Mary", "Tom"), ("Anna", "Paul"), ("Kate", "Mark"), ("Lucy", "Jack"), ("Jane", "Max")]
    cases = [
        {"clean": {"name": a}, "corrupt": {"name": b}, "answers": [" she"]}
        for couple in couples
        for a, b in (couple, couple[::-1])
    ]
    content = {**_without("fillers"), "templates": ["When {name} came home,"], "cases": cases}
    task = Task.from_file(_written(tmp_path, content))
    train, test = task.pairs(words, 8, split="train"), task.pairs(words, 2, split="test")
    assert set(test.texts) == set(test.corrupt_texts) == {"When Kate came home,", "When Mark came home,"}
    assert not {*train.texts, *train.corrupt_texts} & set(test.texts)


def test_toml_says_the_same(tmp_path: Path, words: PreTrainedTokenizerBase) -> None:
    pairs = Task.from_file(_written(tmp_path, TOML, "task.toml")).pairs(words, 1, split="test")
    assert (pairs.texts, pairs.corrupt_texts) == (("When Kate came home,",), ("When Mark came home,",))


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in FILE.items() if name != key}


def _case(**change: Any) -> dict[str, Any]:
    return FILE | {"cases": [FILE["cases"][0] | change, *FILE["cases"][1:]]}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold an object with the keys name, question"),
        (_without("templates"), "templates: Field required"),
        (FILE | {"metric": "kl"}, "metric: Extra inputs are not permitted"),
        (FILE | {"name": "Who went"}, "name: String should match"),
        (FILE | {"cases": FILE["cases"][:2]}, "cases: Tuple should have at least 3 items"),
        (FILE | {"templates": ["{name"]}, "cannot be read"),
        (FILE | {"templates": ["{name} and {other}"]}, "expected fillers for the slots name, other"),
        (_case(corrupt={"nane": "Tom"}), "no template has the slot nane"),
        (FILE | {"cases": FILE["cases"][:1] * 4}, r"its 4 cases make 1 group\(s\) that share no fillers"),
        (_case(answers=[]), r"cases\.0\.answers"),
        (_case(answers=[" {who}"]), "expected fillers for the slots who"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: Any, problem: str) -> None:
    path = _written(tmp_path, content)
    with pytest.raises(InputError, match=problem) as refusal:
        Task.from_file(path)
    assert str(path) in str(refusal.value)


def test_files_that_are_not_task_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ending in \.json or \.toml"):
        Task.from_file(tmp_path / "task.yaml")
    with pytest.raises(InputError, match="cannot be opened: No such file"):
        Task.from_file(tmp_path / "task.json")
    (tmp_path / "task.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not valid TOML"):
        Task.from_file(tmp_path / "task.toml")


def test_combinations_are_all_there_once_in_an_order_of_the_seed() -> None:
    pools = ("ab", (1, 2, 3), "xy")
    orders = [list(combinations(random.Random(seed), *pools)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted((a, n, x) for a in "ab" for n in (1, 2, 3) for x in "xy")


@pytest.mark.parametrize("count", [2, 3, 7, 60])
def test_the_shares_divide_the_words(count: int) -> None:
    train, test = share(range(count), "train"), share(range(count), "test")
    assert sorted(train + test) == list(range(count))
    assert len(test) == count // 3


@torch.no_grad()
def _logit_differences(model: torch.nn.Module, pairs: Pairs, corrupt: bool) -> torch.Tensor:
    tokens = pairs.corrupt if corrupt else pairs.clean
    metric = metrics.build(None, pairs)
    rows = []
    for row, length in enumerate(pairs.lengths):
        logits = model(input_ids=tokens[row : row + 1, :length]).logits[0, -1:]
        rows.append(logits[:, list(metric.needs.tokens[row])])  # type: ignore[index,call-overload]
    return metric(torch.stack(rows))


@pytest.mark.truth
def test_a_model_nobody_here_trained_knows_its_pronouns(shared_models: Path, tmp_path: Path) -> None:
    """Its known fact: after a name it prefers the right one of he and she, 12 of 12 times, by several nats."""
    folder = shared_models / "stories260K"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    twin = AutoModelForCausalLM.from_config(model.config).eval()

    children = (
        ("Lily", "Tim"),
        ("Mia", "Max"),
        ("Sara", "Bob"),
        ("Sue", "Leo"),
        ("Ella", "Jack"),
        ("Kate", "Fred"),
    )
    cases = []
    for names in children:
        girl, boy = (
            {"child": child, "name": name} for child, name in zip(("girl", "boy"), names, strict=True)
        )
        cases.append({"clean": girl, "corrupt": boy, "answers": [" she"], "wrong": [" he"]})
        cases.append({"clean": boy, "corrupt": girl, "answers": [" he"], "wrong": [" she"]})
    content = {
        "name": "pronoun",
        "question": "Which pronoun goes with the child of the story?",
        "templates": ["Once upon a time, there was a little {child} named {name}. One day,"],
        "cases": cases,
    }
    task = Task.from_file(_written(tmp_path, content))
    parts = task.pairs(tokenizer, 8, split="train"), task.pairs(tokenizer, 4, split="test")
    clean = torch.cat([_logit_differences(model, pairs, corrupt=False) for pairs in parts])
    assert len(clean) == 12
    assert (clean > 0).all()
    assert clean.mean() > 3
    corrupt = torch.cat([_logit_differences(model, pairs, corrupt=True) for pairs in parts])
    assert (corrupt < 0).all(), "the corrupt name turns the answer round"
    assert _logit_differences(twin, parts[0], corrupt=False).abs().max() < 0.5, (
        "an untrained twin knows nothing"
    )

    built_in = tasks.get("gendered-pronoun-story").pairs(tokenizer, 20, split="test")
    assert (_logit_differences(model, built_in, corrupt=False) > 0).float().mean() >= 0.9
