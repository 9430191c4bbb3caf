"""The word lists are what their documentation says: distinct, consistent, one token each."""

import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer

from microtome.data import lexicon

GROUPS: dict[str, tuple[str, ...]] = {
    "NAMES": lexicon.NAMES,
    "PLACES": lexicon.PLACES,
    "OBJECTS": lexicon.OBJECTS,
    "FOODS": lexicon.FOODS,
    "FEELINGS": lexicon.FEELINGS,
    "COLOURS": lexicon.COLOURS,
    "TRANSFERS": lexicon.TRANSFERS,
    "CITIES": lexicon.CITIES,
    "EVENTS": lexicon.EVENTS,
    "CENTURIES": lexicon.CENTURIES,
    "TWO_DIGITS": lexicon.TWO_DIGITS,
    "COUNT_WORDS": lexicon.COUNT_WORDS,
    "PARAMETERS": lexicon.PARAMETERS,
    "FUNCTIONS": lexicon.FUNCTIONS,
}


def test_no_list_holds_a_word_twice() -> None:
    for name, words in GROUPS.items():
        assert len(set(words)) == len(words), name
        assert all(word and word == word.strip() and " " not in word for word in words), name


def test_every_name_has_one_gender() -> None:
    assert not set(lexicon.FEMALE_NAMES) & set(lexicon.MALE_NAMES)
    assert len(lexicon.FEMALE_NAMES) >= 24
    assert len(lexicon.MALE_NAMES) >= 24
    assert set(lexicon.GENDER) == set(lexicon.NAMES)
    assert all(lexicon.GENDER[name] == "female" for name in lexicon.FEMALE_NAMES)
    assert set(lexicon.PRONOUNS) == set(lexicon.GENDER.values())


def test_singular_and_plural_never_coincide() -> None:
    forms = [form for noun in lexicon.NOUNS for form in (noun.singular, noun.plural)]
    assert len(set(forms)) == len(forms) == 2 * len(lexicon.NOUNS)
    assert all(verb.singular != verb.plural for verb in lexicon.AGREEMENTS)


def test_landmarks_are_facts_with_one_answer() -> None:
    names = [landmark.name for landmark in lexicon.LANDMARKS]
    assert len(set(names)) == len(names) >= 20
    assert set(lexicon.CITIES) == {landmark.city for landmark in lexicon.LANDMARKS}
    assert ("Eiffel Tower", "Paris") in {(landmark.name, landmark.city) for landmark in lexicon.LANDMARKS}


def test_the_words_need_no_torch() -> None:
    program = "import sys, microtome.data.lexicon; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_no_name_is_also_another_word() -> None:
    others = {word for name, words in GROUPS.items() if name != "NAMES" for word in words}
    others.update(word for landmark in lexicon.LANDMARKS for word in landmark.name.split())
    assert not others & set(lexicon.NAMES)


def test_every_word_is_one_token_of_gpt2(shared_models: Path) -> None:
    tokenizer = Tokenizer.from_file(str(shared_models / "gpt2-tokenizer" / "tokenizer.json"))
    words = {word for words in GROUPS.values() for word in words}
    words.update(form for noun in lexicon.NOUNS for form in (noun.singular, noun.plural))
    split = [word for word in words if len(tokenizer.encode(" " + word, add_special_tokens=False).ids) != 1]
    assert split == []
