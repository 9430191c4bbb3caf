"""What is known of the story models? Cases with answer keys: the latents of every token, the heads that do induction,
a model whose every feature has its own dimension, and the tasks that the fruit fly does.

1. `fruitfly`: held-out stories with the latents of every token.
2. Tiny members of the `family`, on the same stories: what each can do, and what its depth forbids.
3. `superposition-free`: its true features, and what they cost beside an ordinary twin.
4. One case for each task of `microtome.data`: pairs, how often the fruit fly is right, and the parts it needs.

A case's seed chooses the stories and prompts, and, where a member ships several, the network: seed modulo their number.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from microtome.core.edits import Set
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.data import tasks
from microtome.data.metrics import build as build_metric
from microtome.models.model import Model
from microtome.models.sweep import Variant, sweep
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth
from microtome.testbeds.stories import family, superposition_free
from microtome.testbeds.stories.behaviours import Report, measure
from microtome.testbeds.stories.bigrams import bigram_loss
from microtome.testbeds.stories.corpus import Corpus, documents
from microtome.testbeds.stories.division import worth
from microtome.testbeds.stories.induction_heads import account
from microtome.testbeds.stories.labels import labels
from microtome.testbeds.stories.superposition_free import dimensionality, features, misreading

card = TestbedCard(
    name="stories",
    title="Story models with planted latents",
    question="Does a method find in a language model what made its text, and what is known of how it works?",
    reference="Elhage et al. (2021), A Mathematical Framework for Transformer Circuits; Olsson et al. (2022), "
    "In-context Learning and Induction Heads; Elhage et al. (2022), Toy Models of Superposition",
    kinds=("labels", "roles", "features", "quantities"),
    misleads=(
        "Labels say what made a token, not that the model represents it. A role says where heads look and that they "
        "are needed together, not that they do nothing else or that no other head is needed. A part that is needed "
        "alone is not all of the circuit: parts that stand in for each other are missed."
    ),
)

ROWS, SAMPLE, PAIRS = 16, 60, 24
"""Stories of a case, held-out stories for its evidence, and prompts of a task."""
MANY = 64
"""Stories of the fruit fly's case: dictionaries that are held to its latents have to be learnt from them."""
NEEDED = 0.1
TINY = tuple(name for name, settings in family.MEMBERS.items() if settings.layers < 3)
FREE = "superposition-free"
TASKS = (
    "indirect-object",
    "indirect-object-abc",
    "induction",
    "agreement",
    "greater-than",
    "factual-recall",
    "gendered-pronoun",
    "gendered-pronoun-story",
    "argument-copying",
)
FLUENT = ("induction", "indirect_object", "agreement", "fact", "pronoun", "argument", "song")


def cases() -> tuple[str, ...]:
    """`fruitfly`, the tiny members, `superposition-free`, and the tasks."""
    shipped = {name for name, _ in family.shipped()}
    return (family.BUNDLED, *(name for name in TINY if name in shipped), FREE, *TASKS)


def build(case: str, seed: int = 0) -> Case:
    """A case by name. Raises `InputError` for a name there is not, `TruthError` where the evidence does not hold."""
    if case == FREE:
        return _free(seed)
    if case in TASKS:
        return _task(case, seed)
    if case not in cases():
        raise InputError(f"the testbed {card.name} has the cases {', '.join(cases())}; got {case!r}")
    seeds = [found for name, found in family.shipped() if name == case]
    return member(case, seeds[seed % len(seeds)], sample=seed)


def member(name: str, seed: int = 0, folder: Path | None = None, sample: int = 0) -> Case:
    """The case of any trained member: shipped, or from the folder where it was trained.

    Raises as `family.model` does, and `TruthError` for one that was trained too little for what is claimed of it.
    """
    model = family.model(name, seed, folder)
    shape = family.settings(name, seed)
    report = measure(model.module, sample, SAMPLE)
    evidence = [
        Evidence("nats below a bigram table", bigram_loss(sample, SAMPLE) - report.loss, least=1.0, n=SAMPLE)
    ]
    roles: Mapping[str, tuple[str, ...]] = {}
    if shape.layers == 1 and not shape.mlp:
        # One layer cannot foretell a repeat: its heads see what words there were, not which word followed which.
        evidence.append(_score(report, "induction", most=0.25))
    if shape.layers == 1 and shape.mlp:
        evidence += _division(model, sample)
    if shape.layers >= 2:
        # Two layers learn it late, and ship before they have it to perfection; chance is below 1/12.
        roles, more = _induction(model, sample, least=0.5 if shape.layers == 2 else 0.9)
        evidence += more
    if shape.layers >= 3:
        evidence += [_score(report, behaviour, least=0.95) for behaviour in FLUENT]
    task, rows = "foretells the next token of a story", MANY if name == family.BUNDLED else ROWS
    return _stories(name, task, model, evidence, sample, Truth(roles=roles), rows)


def _stories(
    name: str, task: str, model: Model, evidence: list[Evidence], seed: int, truth: Truth, rows: int = ROWS
) -> Case:
    corpus = documents(seed, 0, rows, "held-out")
    known = replace(truth, labels=labels(corpus))
    return Case(f"{card.name}/{name}", task, model, known, tuple(evidence), tokens=_tokens(corpus), seed=seed)


def _tokens(corpus: Corpus) -> Tensor:
    return torch.from_numpy(corpus.tokens.astype(np.int64))


def _score(report: Report, name: str, least: float | None = None, most: float | None = None) -> Evidence:
    found = report.behaviours[name]
    return Evidence(f"{name.replace('_', ' ')}, held out", found.score, least, most, found.count)


def _induction(model: Model, seed: int, least: float) -> tuple[dict[str, tuple[str, ...]], list[Evidence]]:
    """Roles that ablation confirms, and the evidence: the behaviour, that it needs them, and the algorithm."""
    found = account(model, seed=seed)

    def share(what: str, value: float, least: float | None = None, most: float | None = None) -> Evidence:
        return Evidence(f"random words repeated{what}", value, least, most, found.count)

    half = found.behaviour / 2
    evidence = [
        share("", found.behaviour, least=least),
        *(share(f" without the {role} heads", value, most=half) for role, value in found.without.items()),
        # Not bounded: where many heads share a role, those below the mark may be needed too.
        *(
            share(f" without the other heads of the {role} heads' layers", value)
            for role, value in found.without_others.items()
            if not np.isnan(value)
        ),
        share(", keys cut off from previous-token heads", found.cut["k"], most=half),
        share(", more of them with queries cut off than keys", found.cut["q"] - found.cut["k"], least=0.1),
        share(", more of them with values cut off than keys", found.cut["v"] - found.cut["k"], least=0.1),
    ]
    return found.nodes, evidence


def _division(model: Model, seed: int) -> list[Evidence]:
    found = worth(model, seed, SAMPLE)
    attention, mlp = found["attn_out.0"], found["mlp_out.0"]
    more = "nats by which {} is worth more than {} in {}"
    return [
        Evidence(
            more.format("attention", "the MLP", "chants"), attention["chants"] - mlp["chants"], least=0.0
        ),
        Evidence(
            more.format("the MLP", "attention", "stories"), mlp["stories"] - attention["stories"], least=0.0
        ),
    ]


def _free(seed: int) -> Case:
    model, _ = superposition_free.model()
    twin = family.model("attention-1-head")
    report, ordinary = (measure(one.module, seed, SAMPLE) for one in (model, twin))
    own, shared = (dimensionality(torch.cat(list(features(one).values()))) for one in (model, twin))
    tokens = _tokens(documents(seed, 0, ROWS, "held-out"))
    evidence = [
        Evidence("least dimensionality of a feature", float(own.min()), least=1 - 1e-6, n=len(own)),
        Evidence(
            "largest error of a feature read along its direction",
            misreading(model, tokens),
            most=1e-5,
            n=ROWS,
        ),
        Evidence("mean dimensionality in the ordinary twin", float(shared.mean()), most=0.5, n=len(shared)),
        Evidence("nats below a bigram table", bigram_loss(seed, SAMPLE) - report.loss, least=0.7, n=SAMPLE),
        Evidence("nats above the ordinary twin", report.loss - ordinary.loss, n=SAMPLE),
    ]
    known = features(model)
    truth = Truth(
        features={
            "embed": known["token"],
            "pos_embed": known["position"],
            "resid_post.0": torch.cat(list(known.values())),
        },
        quantities={"mean dimensionality": float(own.mean())},
    )
    return _stories(
        FREE, "foretells the next token, each feature in its own dimension", model, evidence, seed, truth
    )


def _task(name: str, seed: int) -> Case:
    model, task = family.model(family.BUNDLED), tasks.get(name)
    pairs = task.pairs(model.tokenizer, PAIRS, seed)
    metric = build_metric("logit-difference", pairs)
    nodes = [f"z.{n}.h{h}" for n in range(model.n_layers) for h in range(model.n_heads)]
    nodes += [f"mlp_out.{n}" for n in range(model.n_layers)]
    corrupt = model.run(pairs.corrupt, read=nodes, metric=metric, mask=pairs.mask)
    swaps = [Variant((Set(Site.parse(node), value=corrupt[node], origin="patch"),)) for node in nodes]
    swept = sweep(model, pairs.clean, swaps, metric, mask=pairs.mask)
    assert corrupt.metric is not None
    gap = float((swept.base - corrupt.metric).mean())
    lost = {
        node: float((swept.base - one).mean()) / gap for node, one in zip(nodes, swept.metric, strict=True)
    }
    needed = tuple(node for node, share in lost.items() if share >= NEEDED)
    places = {
        f"{slot} at": torch.tensor([spans.get(slot, (-1, -1))[0] for spans in pairs.slots])
        for slot in task.slots
    }
    answers = {"answer": torch.tensor([answers[0] for answers in pairs.answers])}
    return Case(
        f"{card.name}/{name}",
        task.question,
        model,
        Truth(
            candidates=tuple(nodes),
            roles={"needed": needed},
            labels=places | answers,
            quantities={f"{node} needed": share for node, share in lost.items()},
        ),
        (
            Evidence("right answer above the wrong, clean", _share(swept.base), least=0.9, n=PAIRS),
            Evidence("parts needed alone", len(needed), least=1, n=len(nodes)),
            Evidence("logit difference lost in the corrupt prompts", gap, least=1.0, n=PAIRS),
        ),
        pairs=pairs,
        seed=seed,
    )


def _share(metric: Tensor) -> float:
    return float((metric > 0).double().mean())
