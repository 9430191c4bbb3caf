"""How well can the next token be foretold from the present one alone? What every member of the family must beat.

Bigrams of training documents are counted, one is shared out among all words by how often each follows anything, and
the table is asked about held-out documents.
"""

from functools import cache

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from microtome.testbeds.stories.corpus import documents
from microtome.testbeds.stories.grammar import VOCABULARY

COUNTED = 200


@cache
def table(seed: int) -> Float[NDArray[np.floating], "present next"]:
    """Probabilities of the next token, counted on training documents of this seed."""
    tokens = documents(seed, 0, COUNTED).tokens
    counts = np.zeros((len(VOCABULARY), len(VOCABULARY)))
    np.add.at(counts, (tokens[:, :-1].ravel(), tokens[:, 1:].ravel()), 1)
    # Words that followed nothing here are given the share of one that followed once.
    follows = np.maximum(counts.sum(0), 1)
    smooth = counts + follows / follows.sum()
    return smooth / smooth.sum(1, keepdims=True)


def bigram_loss(seed: int, count: int) -> float:
    """Mean loss of the table in nats per token, on so many held-out documents of this seed."""
    tokens = documents(seed, 0, count, "held-out").tokens
    return float(-np.log(table(seed)[tokens[:, :-1], tokens[:, 1:]]).mean())
