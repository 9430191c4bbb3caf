"""What does the attention of a one-layer model do, and what its MLP? What each is worth, where only one can help.

1. In a chant nothing but the words said before tells what comes next; in a story, mostly grammar and the words that
   commonly follow one another do.
2. Replace what the attention adds, or what the MLP adds, by its mean, and see how much the loss rises in each.

A claim that can fail: the attention is worth more in chants, the MLP in stories.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from microtome.core.edits import Edit, Set
from microtome.models.model import Model
from microtome.testbeds.stories.corpus import documents
from microtome.testbeds.stories.grammar import KINDS

PARTS = ("attn_out.0", "mlp_out.0")


@torch.no_grad()
def worth(model: Model, seed: int, count: int) -> dict[str, dict[str, float]]:
    """By part and by sort of text (`chants`, `stories`), the nats per token that the model loses without the part."""
    corpus = documents(seed, 0, count, "held-out")
    tokens = torch.from_numpy(corpus.tokens.astype(np.int64))
    chanted = torch.from_numpy(corpus.latents["kind"][:, 1:] == KINDS.index("chant"))
    seen = model.run(tokens, read=PARTS)

    def losses(edits: list[Edit]) -> Float[Tensor, "row position"]:
        logits = model.run(tokens, edit=edits, logits=True).logits
        assert logits is not None
        return functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")

    whole = losses([])
    found = {}
    for part in PARTS:
        value = seen[part].mean((0, 1), keepdim=True)
        lost = losses([Set(part, value=value, origin="mean")]) - whole
        found[part] = {"chants": float(lost[chanted].mean()), "stories": float(lost[~chanted].mean())}
    return found
