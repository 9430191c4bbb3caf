"""The stories' laws: reproducible, and every latent agrees with the text at every token."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microtome.core.errors import InputError
from microtome.data import lexicon
from microtome.testbeds.stories.corpus import CONTEXT, LATENTS, Corpus, Split, documents, name_group
from microtome.testbeds.stories.grammar import (
    BOS,
    KINDS,
    PAD,
    ROLES,
    TOKEN_ID,
    UNK,
    VOCABULARY,
    is_held_out_fact,
)

COUNT = 300
SPLITS: tuple[Split, ...] = ("train", "held-out")


@pytest.fixture(scope="module", params=SPLITS)
def split(request: pytest.FixtureRequest) -> Split:
    return request.param


@pytest.fixture(scope="module")
def corpus(split: Split) -> Corpus:
    return documents(3, 0, COUNT, split)


def where(corpus: Corpus, kind: str, answer: bool = False) -> np.ndarray:
    """[token, 2] document and position of every token of a kind of sentence."""
    chosen = corpus.latents["kind"] == KINDS.index(kind)
    if answer:
        chosen &= corpus.latents["answer"] == 1
    return np.argwhere(chosen)


def word(corpus: Corpus, document: int, position: int) -> str:
    return VOCABULARY[corpus.tokens[document, position]]


def sentence_words(corpus: Corpus, document: int, position: int) -> list[str]:
    """The words of the sentence before a position."""
    ordinal = corpus.latents["sentence"][document]
    start = int(np.argmax(ordinal == ordinal[position]))
    return [VOCABULARY[token] for token in corpus.tokens[document, start:position]]


@given(seed=st.integers(0, 2**40), first=st.integers(0, 10**6), cut=st.integers(0, 4))
def test_documents_are_a_pure_function_of_seed_and_index(seed: int, first: int, cut: int) -> None:
    whole = documents(seed, first, 4)
    parts = [documents(seed, first, cut), documents(seed, first + cut, 4 - cut)]
    assert np.array_equal(whole.tokens, np.concatenate([part.tokens for part in parts]))
    for name in LATENTS:
        assert np.array_equal(whole.latents[name], np.concatenate([part.latents[name] for part in parts])), (
            name
        )


def test_another_process_writes_the_same_documents() -> None:
    program = (
        "import hashlib\n"
        "from microtome.testbeds.stories.corpus import documents\n"
        "corpus = documents(5, 0, 20)\n"
        "data = corpus.tokens.tobytes() + b''.join(corpus.latents[k].tobytes() for k in sorted(corpus.latents))\n"
        "print(hashlib.sha256(data).hexdigest())"
    )
    hashes = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(hashes) == 1


def test_seeds_and_splits_differ() -> None:
    texts = [documents(seed, 0, 3, split).tokens.tobytes() for seed in (0, 1) for split in SPLITS]
    assert len(set(texts)) == 4


def test_every_latent_has_the_shape_of_the_tokens(corpus: Corpus) -> None:
    assert corpus.tokens.shape == (COUNT, CONTEXT)
    assert list(corpus.latents) == list(LATENTS)
    assert all(values.shape == corpus.tokens.shape for values in corpus.latents.values())


def test_every_document_begins_and_only_begins_with_bos(corpus: Corpus) -> None:
    assert (corpus.tokens[:, 0] == BOS).all()
    assert not np.isin(corpus.tokens[:, 1:], (BOS, PAD, UNK)).any()


def test_a_repeat_equals_its_earlier_source(corpus: Corpus) -> None:
    document, position = np.nonzero(corpus.latents["source"] >= 0)
    source = corpus.latents["source"][document, position]
    assert len(source) > 1000
    assert (source < position).all()
    assert (corpus.tokens[document, source] == corpus.tokens[document, position]).all()


def test_a_chant_repeats_its_run_in_order(corpus: Corpus) -> None:
    answers = where(corpus, "chant", answer=True)
    assert len(answers) > 1000
    source = corpus.latents["source"]
    for document, position in answers:
        assert source[document, position] == source[document, position - 1] + 1


def test_the_indirect_object_is_the_name_said_once(corpus: Corpus) -> None:
    answers = where(corpus, "indirect_object", answer=True)
    assert len(answers) > 100
    for document, position in answers:
        names = [word for word in sentence_words(corpus, document, position) if word in lexicon.NAMES]
        assert len(names) == 3
        assert len(set(names)) == 2
        assert names.count(word(corpus, document, position)) == 1


def test_both_orders_of_names_occur(corpus: Corpus) -> None:
    first_said = []
    for document, position in where(corpus, "indirect_object", answer=True):
        names = [w for w in sentence_words(corpus, document, position) if w in lexicon.NAMES]
        first_said.append(names[0] == word(corpus, document, position))
    assert 0.35 < np.mean(first_said) < 0.65


def test_the_verb_agrees_with_its_subject_not_with_the_noun_between(corpus: Corpus) -> None:
    verbs = {v.singular: 0 for v in lexicon.AGREEMENTS} | {v.plural: 1 for v in lexicon.AGREEMENTS}
    plural = {noun.plural for noun in lexicon.NOUNS}
    answers = where(corpus, "agreement", answer=True)
    misled = 0
    for document, position in answers:
        subject = corpus.latents["antecedent"][document, position]
        number = verbs[word(corpus, document, position)]
        assert (word(corpus, document, subject) in plural) == number
        assert corpus.latents["number"][document, position] == number
        assert corpus.latents["number"][document, subject] == number
        between = corpus.latents["number"][document, subject + 1 : position]
        misled += bool((between == 1 - number).any())
    assert misled > len(answers) / 5


def test_a_city_follows_from_its_landmark(corpus: Corpus) -> None:
    answers = where(corpus, "fact", answer=True)
    assert len(answers) > 50
    for document, position in answers:
        landmark = lexicon.LANDMARKS[corpus.latents["fact"][document, position]]
        antecedent = int(corpus.latents["antecedent"][document, position])
        length = len(landmark.name.split())
        said = [word(corpus, document, at) for at in range(antecedent - length + 1, antecedent + 1)]
        assert " ".join(said) == landmark.name
        assert word(corpus, document, position) == landmark.city


def test_the_later_year_is_later_in_the_same_century(corpus: Corpus) -> None:
    ends = [
        (d, p)
        for d, p in where(corpus, "greater_than", answer=True)
        if corpus.latents["role"][d, p] == ROLES.index("year.end")
    ]
    assert len(ends) > 50
    for document, position in ends:
        value = corpus.latents["value"][document]
        begun = corpus.latents["antecedent"][document, position]
        assert value[begun] < value[position]
        assert value[begun - 1] == value[position - 1]


def test_a_pronoun_has_the_gender_of_its_name(corpus: Corpus) -> None:
    answers = where(corpus, "pronoun", answer=True)
    assert len(answers) > 50
    for document, position in answers:
        name = word(corpus, document, corpus.latents["antecedent"][document, position])
        assert word(corpus, document, position) == lexicon.PRONOUNS[lexicon.GENDER[name]].subject


def test_arguments_are_described_in_the_order_of_the_list(corpus: Corpus) -> None:
    described = [
        (d, p)
        for d, p in where(corpus, "argument")
        if corpus.latents["source"][d, p] >= 0 and word(corpus, d, p)
    ]
    described = [(d, p) for d, p in described if word(corpus, d, p) in lexicon.PARAMETERS]
    assert len(described) > 50
    for (d, p), (e, q) in pairwise(described):
        if d == e and corpus.latents["sentence"][d, p] == corpus.latents["sentence"][e, q]:
            assert corpus.latents["source"][e, q] == corpus.latents["source"][d, p] + 2


def test_an_entity_keeps_its_gender_and_names_theirs(corpus: Corpus) -> None:
    for document in range(COUNT):
        for entity in range(4):
            gender = corpus.latents["gender"][document][corpus.latents["entity"][document] == entity]
            assert len(set(gender[gender >= 0])) <= 1
    document, position = np.nonzero(corpus.latents["gender"] >= 0)
    for d, p in zip(document, position, strict=True):
        if word(corpus, d, p) in lexicon.NAMES:
            assert corpus.latents["gender"][d, p] == (lexicon.GENDER[word(corpus, d, p)] == "male")


def test_values_are_what_the_digits_say(corpus: Corpus) -> None:
    expected = [int(text) if text.isdigit() else -1 for text in VOCABULARY]
    assert (corpus.latents["value"] == np.array(expected)[corpus.tokens]).all()


def test_held_out_pairs_of_names_never_meet_in_training(corpus: Corpus, split: Split) -> None:
    names = {TOKEN_ID[name]: name for name in lexicon.NAMES}
    pairs = 0
    for row in corpus.tokens.tolist():
        present = {names[token] for token in row if token in names}
        groups = {name_group(name) for name in present}
        pairs += len(present) > 1
        assert len(groups) == len(present) if split == "train" else len(groups) <= 1
    assert pairs > COUNT / 2


def test_held_out_facts_are_told_in_held_out_stories_only(corpus: Corpus, split: Split) -> None:
    told = where(corpus, "fact", answer=True)
    held = [
        is_held_out_fact(int(corpus.latents["fact"][d, p]), int(corpus.latents["wording"][d, p]))
        for d, p in told
    ]
    assert set(held) == {split == "held-out"}


def test_every_kind_and_every_word_is_written() -> None:
    corpus = documents(0, 0, 800)
    assert set(np.unique(corpus.latents["kind"])) == set(range(len(KINDS)))
    assert set(np.unique(corpus.tokens)) == set(range(len(VOCABULARY))) - {PAD, UNK}


def test_a_negative_index_is_refused() -> None:
    with pytest.raises(InputError, match="at least 0, got -1"):
        documents(0, -1, 2)
