"""How well can the next token be foretold from the present one alone? What every member of the family must beat.

1. Bigrams of training documents are counted.
2. What has not followed a word gets the weight of as many bigrams as the word has kinds of followers, shared out by
   how often each comes at all (Witten and Bell, 1991).
3. The table is asked about held-out documents.
"""

from functools import cache

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from microtome.testbeds.stories.corpus import documents
from microtome.testbeds.stories.grammar import VOCABULARY

COUNTED = 400


@cache
def table() -> Float[NDArray[np.floating], "present next"]:
    """Probabilities of the next token, counted on the first `COUNTED` training documents of seed 0."""
    tokens = documents(0, 0, COUNTED).tokens
    counts = np.zeros((len(VOCABULARY), len(VOCABULARY)))
    np.add.at(counts, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1)
    often = np.bincount(tokens.ravel(), minlength=len(VOCABULARY)) + 1
    smooth = counts + np.maximum((counts > 0).sum(1, keepdims=True), 1) * often / often.sum()
    return smooth / smooth.sum(1, keepdims=True)


def bigram_loss(seed: int, count: int) -> float:
    """Mean loss of the table in nats per token, on so many held-out documents of a seed."""
    tokens = documents(seed, 0, count, "held-out").tokens
    return float(-np.log(table()[tokens[:, :-1], tokens[:, 1:]]).mean())
