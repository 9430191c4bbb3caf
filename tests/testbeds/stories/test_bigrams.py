"""The table is a table of probabilities, and better than none."""

from itertools import pairwise

import numpy as np

from microtome.testbeds.stories.bigrams import bigram_loss, table
from microtome.testbeds.stories.corpus import documents
from microtome.testbeds.stories.grammar import BOS, TOKEN_ID, VOCABULARY


def test_rows_are_probabilities_and_none_is_zero() -> None:
    found = table()
    assert np.allclose(found.sum(1), 1)
    assert found.min() > 0


def test_what_always_follows_is_certain() -> None:
    # In stories "upon" is followed by "a"; only chants can say otherwise.
    assert table()[TOKEN_ID["upon"]].argmax() == TOKEN_ID["a"]
    assert table()[TOKEN_ID["Once"]].argmax() == TOKEN_ID["upon"]
    assert table()[BOS].max() < 0.5


def test_the_loss_is_that_of_the_table_and_below_a_guess() -> None:
    tokens = documents(1, 0, 20, "held-out").tokens
    by_hand = [-np.log(table()[a, b]) for row in tokens for a, b in pairwise(row)]
    assert np.isclose(bigram_loss(1, 20), np.mean(by_hand))
    assert bigram_loss(1, 20) < np.log(len(VOCABULARY)) - 1
