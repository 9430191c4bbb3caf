"""What is true of every token of a story? The latents that made it, as labels a method can be held to.

Beside those that come with the text (`corpus.LATENTS`), some that follow from them:

* for each pool of words, such as `place`, `feeling` or `food`: which word of it stands here, or -1;
* `person`: which name of the lexicon the token is about, by name or by pronoun, or -1.
"""

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from microtome.data import lexicon
from microtome.testbeds.stories.corpus import Corpus
from microtome.testbeds.stories.grammar import POOLS, ROLES, TOKEN_ID

_NAMES = {TOKEN_ID[name]: index for index, name in enumerate(lexicon.NAMES)}


def labels(corpus: Corpus) -> dict[str, Int[Tensor, "row position"]]:
    """Every latent of a corpus by name, -1 where it is undefined."""
    found = {name: torch.from_numpy(values.astype(np.int64)) for name, values in corpus.latents.items()}
    tokens = torch.from_numpy(corpus.tokens.astype(np.int64))
    for pool, words in POOLS.items():
        if pool in ROLES:
            found[pool] = _which(tokens, words).where(found["role"] == ROLES.index(pool), torch.tensor(-1))
    return found | {"person": _person(tokens, found["entity"], found["gender"])}


def _which(tokens: Int[Tensor, "row position"], words: tuple[str, ...]) -> Int[Tensor, "row position"]:
    index = torch.full((len(TOKEN_ID),), -1)
    index[[TOKEN_ID[word] for word in words]] = torch.arange(len(words))
    return index[tokens]


def _person(
    tokens: Int[Tensor, "row position"],
    entity: Int[Tensor, "row position"],
    gender: Int[Tensor, "row position"],
) -> Int[Tensor, "row position"]:
    """A person's pronouns carry their entity and gender, and each story names whom it speaks of."""
    name = torch.full((len(TOKEN_ID),), -1)
    name[list(_NAMES)] = torch.tensor(list(_NAMES.values()))
    named = name[tokens].where(gender >= 0, torch.tensor(-1))
    found = torch.full_like(tokens, -1)
    for row in range(len(tokens)):
        known = {int(e): int(n) for e, n in zip(entity[row], named[row], strict=True) if n >= 0}
        for place in torch.nonzero(gender[row] >= 0)[:, 0].tolist():
            found[row, place] = known.get(int(entity[row, place]), -1)
    return found
