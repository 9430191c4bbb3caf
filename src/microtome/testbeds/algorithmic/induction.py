"""What does it take to continue a text that repeats? Induction, by two attention layers of one head each.

1. Each row tiles a block of distinct random tokens, with a period of its own, so that no fixed distance helps. From
   the second time on, the next token is certain; it is asked there.
2. The known algorithm (Elhage et al. 2021; Olsson et al. 2022): the first head writes at each place which token stood
   before it; the second looks for the place whose predecessor is the present token, and copies what stands there.
3. With no norm the stream is a plain sum, so each edge of that account can be cut by itself: what one part adds to
   what another reads, through queries, keys or values, is replaced by its mean over the rows. An edge without which
   the answers stay right is not in the circuit; one without which they fall to chance is.
"""

import torch

from microtome.core.circuit import Circuit, Edge
from microtome.core.draws import generator
from microtome.core.edits import Edit
from microtome.core.errors import InputError
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.testbeds.algorithmic.network import UNASKED, Examples, Task, contrast, evidence, network
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth
from microtome.testbeds.edge_ablation import Ends, candidate_edges, cut, unshown, writes

card = TestbedCard(
    name="induction",
    title="Induction, two layers of one head",
    question="Which head finds the place to copy from, and which tells it what stood before?",
    reference="Olsson et al. (2022), In-context Learning and Induction Heads",
    kinds=("circuit", "roles", "labels"),
    misleads=(
        "Random tokens leave nothing to do but copy; heads of models of text do more. The first head need not look "
        "sharply at the token before: a lesser attention there does as well, and only ablation tells."
    ),
)

TOKENS, LENGTH, PERIODS = 64, 64, (10, 30)

# (source, target, through what). The first head needs places to look back by one; the second needs what the first says.
ALGORITHM = frozenset(
    {
        ("pos_embed", "z.0.h0", "q"),
        ("pos_embed", "z.0.h0", "k"),
        ("embed", "z.0.h0", "v"),
        ("embed", "z.1.h0", "q"),
        ("z.0.h0", "z.1.h0", "k"),
        ("embed", "z.1.h0", "v"),
        ("z.1.h0", "logits", "logits"),
    }
)


def cases() -> tuple[str, ...]:
    """`two_layers`."""
    return ("two_layers",)


def repeats(count: int, source: torch.Generator) -> Examples:
    """Rows of a block tiled, each with a period of its own; asked from the second time on."""
    low, high = PERIODS
    period = torch.randint(low, high + 1, (count, 1), generator=source)
    order = torch.rand(count, TOKENS, generator=source).argsort(-1)
    place = torch.arange(LENGTH).expand(count, -1)
    tokens = order.gather(1, place % period)
    following = order.gather(1, (place + 1) % period)
    return Examples(tokens, torch.where(place >= period, following, UNASKED))


def task(case: str = "two_layers") -> Task:
    """How it is trained. Accuracy is of whole rows."""
    if case not in cases():
        raise InputError(f"induction has the case two_layers, not {case!r}")
    return Task(
        testbed=card.name,
        case=case,
        sizes={
            "vocab_size": TOKENS,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "head_dim": 64,
            "intermediate_size": 0,
            "max_position_embeddings": LENGTH,
            "norm": "none",
            "bias": False,
            "initializer_range": 0.125,
        },
        batch=lambda seed, step: repeats(64, generator(seed, step)),
        held_out=lambda seed: repeats(256, generator(seed, -1)),
        rate=2e-3,
        weight_decay=0.0,
        steps=2500,
        loss=1e-3,
    )


def words(token: int) -> str:
    """A token as text."""
    return f"t{token}"


def pairs(count: int, seed: int) -> Pairs:
    """Rows cut where the next token is certain. In the corrupt twin that token is another, wherever it stands."""
    source = generator(seed, -2)
    rows = repeats(count, source)
    width = PERIODS[1] + 2  # the shortest at which every row has come round
    clean, due = rows.tokens[:, :width], rows.targets[:, width - 1]
    drawn = torch.rand(count, TOKENS, generator=source).scatter(1, clean, -1.0)
    new = drawn.argmax(-1)
    corrupt = torch.where(clean == due[:, None], new[:, None], clean)
    return contrast(clean, corrupt, due, new, words=words, task=card.name, seed=seed)


def build(case: str = "two_layers", seed: int = 0) -> Case:
    """A network that continues repeats. Its circuit is what was found by cutting each edge."""
    asked = task(case)
    model = network(asked, seed)
    shown = repeats(64, generator(seed, -3))
    whole, without = accuracy_without(model, shown)
    needed = {edge: accuracy for edge, accuracy in without.items() if edge in ALGORITHM}
    spared = {edge: accuracy for edge, accuracy in without.items() if edge not in ALGORITHM}
    count = int((shown.targets != UNASKED).sum())
    found, data = circuit(without, whole, lost=0.5), pairs(64, seed)
    shown_period = shown.tokens.shape[1] - (shown.targets != UNASKED).sum(-1)
    return Case(
        name=f"{card.name}/{case}",
        task="The next token of a block of random tokens that repeats.",
        model=model,
        truth=Truth(
            circuit=found,
            unshown=unshown(model, found, data),
            candidates=("embed", "pos_embed", "z.0.h0", "z.1.h0"),
            roles={"previous_token": ("z.0.h0",), "induction": ("z.1.h0",)},
            labels={"period": shown_period},
        ),
        evidence=(
            evidence(asked, model, seed),
            Evidence(
                "largest accuracy without one edge of the algorithm", max(needed.values()), most=0.5, n=count
            ),
            Evidence("smallest accuracy without another edge", min(spared.values()), least=0.9, n=count),
        ),
        pairs=data,
        tokens=shown.tokens,
        seed=seed,
    )


@torch.no_grad()
def accuracy_without(model: Model, examples: Examples) -> tuple[float, dict[Ends, float]]:
    """Share of the places asked that are answered right: with nothing cut, and with what each edge carries replaced by
    its mean over all rows and places."""
    change = {name: wrote.mean((0, 1)) - wrote for name, wrote in writes(model, examples.tokens).items()}
    asked = examples.targets != UNASKED

    def accuracy(edits: list[Edit]) -> float:
        logits = model.run(examples.tokens, edit=edits, logits=True).logits
        assert logits is not None
        return float((logits[asked].argmax(-1) == examples.targets[asked]).double().mean())

    return accuracy([]), {edge: accuracy([cut(model, change, edge)]) for edge in candidate_edges(model)}


def circuit(accuracies: dict[Ends, float], whole: float, lost: float) -> Circuit:
    """The edges without which more than `lost` of the accuracy is lost; an edge weighs what is lost with it."""
    needed = [(edge, whole - rest) for edge, rest in accuracies.items() if whole - rest > lost]
    nodes = {end for (source, target, _), _ in needed for end in (source, target)}
    return Circuit.of(sorted(nodes), [Edge(*edge, weight) for edge, weight in needed])
