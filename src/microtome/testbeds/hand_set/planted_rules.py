"""Which rules does a network hold, when each was written into it by hand? Skip-trigrams, bigrams, n-grams.

    skip_trigrams   One layer of attention. A destination prefers its source, wherever that stands, and the source's
                    value says the out; without a source, all look at the first token, which says nothing. The direct
                    path says the bigrams. Each source serves one destination a head, so that products force no rule
                    that was not meant; a third head is random and small.
    ngram_facts     A head brings the token before. Some neurons are on where both tokens are theirs, and say the out;
                    as many answer to one token alone, and say something too. In the text, pairs with and without a
                    rule are equally frequent.

Rows start with token 0, which stands nowhere else.
"""

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.draws import generator
from microtome.models.load import load
from microtome.models.model import Model
from microtome.testbeds.case import Case, Evidence, Truth
from microtome.testbeds.hand_set.writing import Network

TOKENS, PLACES, ROWS = 24, 20, 48
RULES, HEADS = 8, 2
SHARP, LOUD, QUIET = 12.0, 6.0, 0.05
Rules = frozenset[tuple[int, ...]]


def skip_trigrams(name: str, seed: int) -> Case:
    """The first network above."""
    source = generator(seed, 0)
    sources, destinations = (_some(RULES, source) for _ in range(2))
    triples = torch.stack([sources, destinations, _some(RULES, source)], -1)
    pairs = torch.stack([_some(RULES, source) for _ in range(2)], -1)
    width = RULES // HEADS + 1
    made = Network(
        {"word": TOKENS, "said": TOKENS},
        vocab_size=TOKENS,
        num_hidden_layers=1,
        num_attention_heads=HEADS + 1,
        head_dim=width,
        intermediate_size=0,
        positions="none",
        max_position_embeddings=PLACES,
    )
    words = _turned(source)
    made.embed({"word": words})
    for head, some in enumerate(triples.chunk(HEADS)):
        query, key, value = (torch.zeros(TOKENS, width) for _ in range(3))
        query[:, -1], key[0, -1] = 0.5, 1.0
        said = torch.zeros(width, TOKENS)
        for dim, (before, here, out) in enumerate(some.tolist()):
            query[here, dim], key[before, dim], value[before, dim], said[dim, out] = 1.0, 1.0, 1.0, LOUD
        asked = {"word": SHARP * width**0.5 * words.T @ query}
        made.head(0, head, asked, {"word": words.T @ key}, {"word": words.T @ value}, {"said": said})
    asks, answers, holds, says = (QUIET * torch.randn(TOKENS, width, generator=source) for _ in range(4))
    made.head(0, HEADS, {"word": asks}, {"word": answers}, {"word": holds}, {"said": says.T})
    direct = QUIET * torch.randn(TOKENS, TOKENS, generator=source)
    direct[pairs[:, 1], pairs[:, 0]] += LOUD / 2
    made.unembed({"said": torch.eye(TOKENS), "word": direct @ words})
    model = load(made.module)
    model.name = name
    tokens = _text(seed)
    rises, others = _rises(model, triples, tokens)
    return Case(
        name=name,
        task="Says what eight skip-trigrams and eight bigrams say.",
        model=model,
        truth=Truth(rules={"skip_trigram": _rules(triples), "bigram": _rules(pairs)}),
        evidence=(
            Evidence("least rise of an out's log-probability by its source", rises, least=1.0, n=RULES),
            Evidence("largest by its source before another destination", others, most=0.5, n=RULES),
        ),
        tokens=tokens,
        seed=seed,
        twin="drawn",
    )


def ngram_facts(name: str, seed: int) -> Case:
    """The second network above."""
    source = generator(seed, 0)
    drawn = torch.stack([_some(2 * RULES, source) for _ in range(3)], -1)
    facts, others = drawn.chunk(2)
    made = Network(
        {"word": TOKENS, "place": PLACES, "before": TOKENS, "said": TOKENS},
        vocab_size=TOKENS,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=TOKENS,
        intermediate_size=2 * RULES,
        max_position_embeddings=PLACES,
    )
    word, place = torch.eye(TOKENS), torch.eye(PLACES, TOKENS)
    says = _turned(source)
    made.embed({"word": word}, {"place": torch.eye(PLACES)})
    loud = SHARP * TOKENS**0.5
    made.head(
        0, 0, {"place": loud * place}, {"place": place.roll(1, dims=1)}, {"word": word}, {"before": word}
    )
    neurons, outs = torch.zeros(2 * RULES, sum(_sizes(made))), torch.zeros(2 * RULES, TOKENS)
    at = made.at
    for unit, (first, second, out) in enumerate(facts.tolist()):
        neurons[unit, at["before"].start + first] = neurons[unit, at["word"].start + second] = 2.0
        neurons[unit, at["place"]] = -3.0
        outs[unit] = LOUD * says[out]
    for unit, (first, second, out) in enumerate(others.tolist(), RULES):
        alone = at["before"].start + first if unit % 2 else at["word"].start + second
        neurons[unit, alone] = 1.0
        outs[unit] = LOUD * says[out]
    made.neurons(0, neurons, {"said": outs})
    made.unembed({"said": says})
    model = load(made.module)
    model.name = name
    tokens = _text(seed, drawn[:, :2])
    right, wrong = _said(model, facts)
    return Case(
        name=name,
        task="Says what eight pairs of tokens say together, and eight tokens alone.",
        model=model,
        truth=Truth(rules={"ngram": _rules(facts)}),
        evidence=(
            Evidence("outs said after both tokens", right, least=1.0, n=RULES),
            Evidence("outs said after one of them", wrong, most=0.0, n=2 * RULES),
        ),
        tokens=tokens,
        seed=seed,
        twin="drawn",
    )


def _some(count: int, source: torch.Generator) -> Int[Tensor, " token"]:
    """Different tokens, none of them the first."""
    return 1 + torch.randperm(TOKENS - 1, generator=source)[:count]


def _turned(source: torch.Generator) -> Float[Tensor, "token d"]:
    """An orthonormal direction for each token."""
    return torch.linalg.qr(torch.randn(TOKENS, TOKENS, generator=source)).Q


def _rules(rules: Int[Tensor, "rule place"]) -> Rules:
    return frozenset(tuple(rule) for rule in rules.tolist())


def _sizes(made: Network) -> list[int]:
    return [block.stop - block.start for block in made.at.values()]


def _text(seed: int, pairs: Int[Tensor, "pair 2"] | None = None) -> Int[Tensor, "row column"]:
    """Random rows after token 0; half of each made of these pairs."""
    source = generator(seed, 1)
    rows = torch.randint(1, TOKENS, (ROWS, PLACES), generator=source)
    rows[:, 0] = 0
    if pairs is not None:
        starts = torch.arange(1, PLACES - 1, 4)
        drawn = pairs[torch.randint(len(pairs), (ROWS, len(starts)), generator=source)]
        rows[:, starts], rows[:, starts + 1] = drawn[..., 0], drawn[..., 1]
    return rows


RISING: Final = 16  # texts a rule is tried on


def _rises(
    model: Model, triples: Int[Tensor, "rule 3"], tokens: Int[Tensor, "row column"]
) -> tuple[float, float]:
    """The least rise of an out by its source, of all rules; the largest where another rule's destination stands."""
    rises: list[float] = []
    others: list[float] = []
    for index, (before, here, out) in enumerate(triples.tolist()):
        elsewhere = int(triples[(index + 1) % RULES, 1])
        for destination, found in ((here, rises), (elsewhere, others)):
            rows = tokens[:RISING].clone()
            # A token that serves no rule takes the place of the source, so that nothing but the source differs.
            idle = next(token for token in range(1, TOKENS) if token not in triples[:, 0])
            rows[torch.isin(rows, triples[:, 0])] = idle
            rows[:, -1] = destination
            with_source = rows.clone()
            with_source[:, PLACES // 2] = before
            found.append(float((_log(model, with_source) - _log(model, rows))[:, out].mean()))
    return min(rises), max(others)


def _log(model: Model, rows: Int[Tensor, "row column"]) -> Float[Tensor, "row token"]:
    logits = model.run(rows, logits=True).logits
    assert logits is not None
    return logits[:, -1].log_softmax(-1)


def _said(model: Model, facts: Int[Tensor, "fact 3"]) -> tuple[float, float]:
    """How often the out is said after both tokens of a fact, and after one of them beside another."""
    zero = torch.zeros(len(facts), 1, dtype=torch.long)
    others = facts.roll(1, dims=0)
    first, second, out = facts.unbind(-1)

    def share(before: Tensor, here: Tensor) -> float:
        rows = torch.cat([zero, before[:, None], here[:, None]], -1)
        return float((_log(model, rows).argmax(-1) == out).double().mean())

    return share(first, second), max(share(first, others[:, 1]), share(others[:, 0], second))
