"""Which head steps in when another is gone? A head that says a token, and a backup that speaks only if it does not.

The last place asks for the token at one place, the source, which stands somewhere among fillers and is marked.

    layer 0   head 0 looks at the source and says its token                                      main head
    layer 1   head 0 looks at the source too, unless its token is said already; then it rests     backup head
              on the first place, which has nothing to say

In `backup` the second head is held off by what is said: with head 0.0 ablated in any way it says the token in its
place. In `no_backup`, the control, nothing holds it off: it always says the token, ablation or not. Further heads say
nothing. The directions that stand for tokens are drawn by the seed.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.core.circuit import Circuit, Edge
from microtome.core.draws import generator
from microtome.core.edits import Zero
from microtome.core.site import Site
from microtome.data.pairs import Pairs
from microtome.models.load import load
from microtome.models.model import Model
from microtome.testbeds.algorithmic.network import contrast
from microtome.testbeds.case import Case, Evidence, Truth
from microtome.testbeds.edge_ablation import unshown
from microtome.testbeds.hand_set.writing import Network, beside

WORDS, LENGTH, HEADS, ROWS = 10, 6, 3, 24
FIRST, LAST = (
    2 * WORDS,
    2 * WORDS + 1,
)  # words, words that are marked as the source, the first and the last token
TOKENS: Final = LAST + 1
SHARP, LOUD = 30.0, 6.0
MAIN, BACKUP = "z.0.h0", "z.1.h0"


def network(held_off: bool, seed: int) -> Network:
    """The network above. held_off: whether what is said keeps the second head away."""
    width = WORDS + 2
    made = Network(
        {"word": WORDS, "mark": 1, "first": 1, "one": 1, "said": WORDS},
        vocab_size=TOKENS,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        head_dim=width,
        intermediate_size=0,
        positions="none",
        max_position_embeddings=LENGTH,
    )
    word, one, code = torch.eye(WORDS), torch.ones(1, 1), directions(seed)
    marked = torch.zeros(TOKENS, 1)
    marked[WORDS : 2 * WORDS] = 1.0
    made.embed(
        {
            "word": torch.cat([code, code, torch.zeros(2, WORDS)]),
            "mark": marked,
            "first": torch.eye(TOKENS)[:, [FIRST]],
            "one": torch.ones(TOKENS, 1),
        }
    )
    loud = SHARP * width**0.5
    same, sought, rest = beside([word, one, one], width)
    value, speaks = {"word": word}, {"said": word}
    # The main head: the mark draws it. Words that are not marked say nothing to it.
    made.head(0, 0, {"one": loud * sought}, {"mark": sought}, value, speaks)
    # The backup: the mark draws it with two, the first place with one, and its token, once said, pushes it off by two.
    reads = {"one": loud * (2 * sought + rest)} | ({"said": -2 * loud * same} if held_off else {})
    made.head(1, 0, reads, {"mark": sought, "first": rest, "word": same}, value, speaks)
    made.unembed({"said": LOUD * torch.cat([code, code, torch.zeros(2, WORDS)])})
    return made


def directions(seed: int) -> Float[Tensor, "word d"]:
    """The direction of each word: at right angles, of length one, drawn by the seed."""
    drawn = torch.randn(WORDS, WORDS, generator=generator(seed, 0), dtype=torch.float64)
    return torch.linalg.qr(drawn).Q.float()


def rows(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clean rows, corrupt ones with another source, and the tokens that each asks for."""
    source = generator(seed, 1)
    clean = torch.randint(WORDS, (count, LENGTH), generator=source)
    clean[:, 0], clean[:, -1] = FIRST, LAST
    place = torch.randint(1, LENGTH - 1, (count, 1), generator=source)
    right = torch.randint(WORDS, (count, 1), generator=source)
    wrong = (right + torch.randint(1, WORDS, (count, 1), generator=source)) % WORDS
    corrupt = clean.scatter(1, place, WORDS + wrong)
    return clean.scatter(1, place, WORDS + right), corrupt, right[:, 0], wrong[:, 0]


def edges(held_off: bool) -> tuple[tuple[str, str, str], ...]:
    """All edges over which something comes that reaches the logits."""
    heads = (MAIN, BACKUP)
    return (
        *(("embed", head, kind) for head in heads for kind in "qkv"),
        *(((MAIN, BACKUP, "q"),) if held_off else ()),
        *((head, "logits", "logits") for head in heads),
    )


def build(name: str, seed: int) -> Case:
    """`backup` or `no_backup`, by the last word of the name."""
    held_off = not name.endswith("no_backup")
    module = network(held_off, seed).module
    model = load(module)
    model.name = name
    clean, corrupt, right, wrong = rows(ROWS, seed)
    pairs = contrast(clean, corrupt, right, wrong, words=_word, task=name, seed=seed)
    circuit = Circuit.of(["embed", MAIN, BACKUP, "logits"], [Edge(*ends) for ends in edges(held_off)])
    beside_main, alone = (
        _said(model, pairs, directions(seed), without_main) for without_main in (False, True)
    )
    return Case(
        name=name,
        task="The marked token of a row, said by one head, and by another where the first does not.",
        model=model,
        truth=Truth(
            circuit=circuit,
            unshown=unshown(model, circuit, pairs),
            roles={"main": (MAIN,), **({"backup": (BACKUP,)} if held_off else {})},
        ),
        evidence=(
            Evidence(
                "least that the second head says when the first is gone", float(alone.min()), least=0.999
            ),
            Evidence("most that it says while the first speaks", float(beside_main.max()), most=1e-3)
            if held_off
            else Evidence("least that it says while the first speaks", float(beside_main.min()), least=0.999),
        ),
        pairs=pairs,
        tokens=clean,
        seed=seed,
        twin="drawn",
    )


@torch.no_grad()
def _said(model: Model, pairs: Pairs, code: Tensor, without_main: bool) -> Float[Tensor, " row"]:
    """How much the second head says of the right token."""
    site = Site.parse(BACKUP).at(-1)
    value = model.run(pairs.clean, [site], [Zero(Site.parse(MAIN))] if without_main else [])[site][:, 0, 0]
    return (value[:, :WORDS] * code[[answer[0] for answer in pairs.answers]]).sum(-1)


def _word(token: int) -> str:
    if token in (FIRST, LAST):
        return "first" if token == FIRST else "last"
    return f"w{token}" if token < WORDS else f"*w{token - WORDS}"
