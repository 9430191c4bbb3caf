"""Labels agree with the text they are about."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from microtome.data import lexicon
from microtome.testbeds.stories.corpus import LATENTS, Corpus, documents
from microtome.testbeds.stories.grammar import POOLS, ROLES, TOKEN_ID, VOCABULARY
from microtome.testbeds.stories.labels import labels


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return documents(3, 0, 40, "held-out")


def test_every_latent_has_a_value_for_every_token(corpus: Corpus) -> None:
    found = labels(corpus)
    assert set(LATENTS) < set(found)
    assert {"place", "feeling", "person"} <= set(found)
    assert {values.shape for values in found.values()} == {torch.Size(corpus.tokens.shape)}
    assert all((values >= 0).any() for values in found.values())


def test_a_pool_says_which_of_its_words_stands_here(corpus: Corpus) -> None:
    found = labels(corpus)
    for pool in ("place", "feeling", "food", "colour"):
        for row, at in torch.nonzero(found[pool] >= 0).tolist():
            assert POOLS[pool][found[pool][row, at]] == VOCABULARY[corpus.tokens[row, at]]
        missed = (found["role"] == ROLES.index(pool)) & (found[pool] < 0)
        assert not missed.any()


@given(seed=st.integers(0, 2**31))
def test_a_person_is_the_one_named_and_a_pronoun_means_a_person_of_its_gender(seed: int) -> None:
    corpus = documents(seed, 0, 2, "held-out")
    found = labels(corpus)
    pronouns = {TOKEN_ID[form] for p in lexicon.PRONOUNS.values() for form in (p.subject, p.object)}
    for row, at in torch.nonzero(found["person"] >= 0).tolist():
        name = lexicon.NAMES[found["person"][row, at]]
        token = int(corpus.tokens[row, at])
        assert found["gender"][row, at] == int(lexicon.GENDER[name] == "male")
        assert (
            VOCABULARY[token] == name
            or token in pronouns
            or VOCABULARY[token] in ("girl", "boy", "his", "her")
        )
        same = (found["entity"][row] == found["entity"][row, at]) & (found["person"][row] >= 0)
        assert set(found["person"][row][same].tolist()) == {lexicon.NAMES.index(name)}


def test_names_in_chants_are_nobody(corpus: Corpus) -> None:
    found = labels(corpus)
    chants = found["role"] == ROLES.index("chant")
    names = torch.from_numpy(np.isin(corpus.tokens, [TOKEN_ID[name] for name in lexicon.NAMES]))
    assert (chants & names).any()
    assert (found["person"][chants] == -1).all()
