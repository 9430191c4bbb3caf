"""What does a small transformer learn by itself, and how is the same one had again? A task, trained and kept.

1. A `Task` says what the network is asked, which rows it learns from at each step and which it never sees.
2. `fit` initialises our own transformer from a seed and trains it; the same seed, machine and number of threads give
   the same weights bit for bit.
3. `network` reads the trained network that ships, or trains it where none does. Whether it does its task is measured
   on rows kept from it each time it is served as a case.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.errors import InputError
from microtome.data import causal_model
from microtome.data.pairs import Pairs
from microtome.models.load import load
from microtome.models.model import Model
from microtome.models.transformer import Block, Transformer, TransformerConfig
from microtome.testbeds import kept
from microtome.testbeds.case import Evidence
from microtome.testbeds.training import Training, seeded, train

UNASKED = causal_model.UNASKED
SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of ids, and the id that is right at each place; `UNASKED` where nothing is asked."""

    tokens: Int[Tensor, "row column"]
    targets: Int[Tensor, "row column"]


def whole(module: nn.Module, tokens: Int[Tensor, "row column"]) -> Float[Tensor, "row column token"]:
    """Logits at every place."""
    return module(input_ids=tokens, use_cache=False).logits


def last_of_one_layer(module: nn.Module, tokens: Int[Tensor, "row column"]) -> Float[Tensor, "row one token"]:
    """Logits at the last place of a one-layer network: the same numbers, without the MLP at places that no one asks."""
    assert isinstance(module, Transformer)
    (block,) = module.blocks
    assert isinstance(block, Block)
    assert block.mlp is not None
    assert block.mlp_norm is not None
    place = torch.arange(tokens.shape[1])[None]
    stream = module.embed(tokens)
    if module.pos_embed is not None:
        stream = stream + module.pos_embed(place)
    last = (stream + block.attn(block.attn_norm(stream), None, place, None))[:, -1:]
    return module.unembed(module.final_norm(last + block.mlp(block.mlp_norm(last))))


@dataclass(frozen=True, eq=False)
class Task:
    """What a network is asked, and how it is trained for it.

    testbed, case: whose it is. sizes: of the `TransformerConfig`.
    batch: the rows of step `n` under a seed. held_out: rows that no step of that seed has.
    rate, weight_decay, steps: of AdamW, the steps at most; in the last third of them the rate falls to nothing.
    accuracy: the share of held-out rows that must be right in every place. loss: the mean loss on them, in nats, at
    which training ends.
    forward: logits of ids in training, `whole` or, where nothing but the last place is asked, `last_of_one_layer`.
    """

    testbed: str
    case: str
    sizes: Mapping[str, Any]
    batch: Callable[[int, int], Examples]
    held_out: Callable[[int], Examples]
    rate: float
    weight_decay: float
    steps: int
    loss: float
    accuracy: float = 0.99
    check_every: int = 100
    named: Mapping[str, Any] = field(default_factory=dict)
    forward: Callable[[nn.Module, Tensor], Tensor] = whole

    @property
    def settings(self) -> dict[str, Any]:
        """All that the trained weights depend on, besides the seed and the code."""
        names = ("testbed", "case", "rate", "weight_decay", "steps", "loss", "check_every")
        return {name: getattr(self, name) for name in names} | {"sizes": dict(self.sizes), **self.named}


def full_batch(split: Callable[[int], tuple[Examples, Examples]]) -> dict[str, Any]:
    """`batch` and `held_out` of a task whose every step learns from the same rows: `split(seed)` gives those rows and
    the ones kept from it."""
    kept_split = cache(split)
    return {"batch": lambda seed, step: kept_split(seed)[0], "held_out": lambda seed: kept_split(seed)[1]}


def new_module(task: Task, seed: int) -> Transformer:
    """The network before training."""
    with seeded(seed):
        module: Transformer = Transformer(TransformerConfig(**task.sizes))
    return module


def fit(
    task: Task,
    seed: int = 0,
    *,
    steps: int | None = None,
    keep: Collection[int] = (),
    make: Callable[[Task, int], nn.Module] = new_module,
    title: str = "",
) -> tuple[nn.Module, Training]:
    """Train a new network. steps: fewer than the task's, if given. keep: after how many steps weights are kept.

    make: the network before training, where it is not the plain one. Whether the target was reached is in `Training`.
    """
    module = make(task, seed)
    optimizer = torch.optim.AdamW(
        module.parameters(), task.rate, betas=(0.9, 0.98), weight_decay=task.weight_decay
    )
    unseen = task.held_out(seed)
    training = train(
        module,
        optimizer,
        lambda step: task.batch(seed, step),
        lambda module, rows: mean_loss(module, rows, task.forward),
        task.steps if steps is None else steps,
        rate=lambda step: min(1.0, (step + 1) / 10, 3 * (task.steps - step) / task.steps),
        keep=keep,
        done=lambda module: bool(mean_loss(module, unseen, task.forward) < task.loss),
        check_every=task.check_every,
        title=title,
    )
    return module, training


def path(task: Task, seed: int, folder: Path = SHIPPED) -> Path:
    """Where the trained network lies; its checkpoints lie in a folder of the same name beside it."""
    return folder / task.testbed / f"{task.case}-seed{seed}.safetensors"


def network(task: Task, seed: int = 0, folder: Path = SHIPPED) -> Model:
    """The trained network: the one that ships, or, for another seed, one that is trained here and now.

    Raises `StoreError` for a file that was trained with other settings, or cannot be read.
    """
    file = path(task, seed, folder)
    if file.exists():
        module = new_module(task, seed)
        kept.restore(file, module, task.settings)
    else:
        fitted, _ = fit(task, seed, title=f"{task.testbed}/{task.case}, seed {seed}")
        assert isinstance(fitted, Transformer)
        module = fitted
    model = load(module.eval())
    model.name = f"{task.testbed}/{task.case} (seed {seed})"
    return model


def mean_loss(
    module: nn.Module, examples: Examples, forward: Callable[[nn.Module, Tensor], Tensor] = whole
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats over the places that are asked. In double precision: late in training, differences of
    the loss are smaller than single precision holds."""
    logits = forward(module, examples.tokens)
    targets = examples.targets[:, -logits.shape[1] :]
    return functional.cross_entropy(logits.double().flatten(0, 1), targets.flatten(), ignore_index=UNASKED)


@torch.no_grad()
def right(module: nn.Module, examples: Examples) -> Float[Tensor, " row"]:
    """1 for a row that is answered right in every place that is asked, else 0."""
    answered = whole(module, examples.tokens).argmax(-1)
    return ((answered == examples.targets) | (examples.targets == UNASKED)).all(-1).float()


def evidence(task: Task, model: Model, seed: int) -> Evidence:
    """That the network does its task on rows that it never saw."""
    correct = right(model.module, task.held_out(seed))
    return Evidence(
        "share of unseen rows answered right", float(correct.mean()), least=task.accuracy, n=len(correct)
    )


def contrast(
    clean: Int[Tensor, "row column"],
    corrupt: Int[Tensor, "row column"],
    answers: Int[Tensor, " row"],
    wrong: Int[Tensor, " row"],
    words: Callable[[int], str] = str,
    task: str = "",
    seed: int | None = None,
) -> Pairs:
    """Pairs of rows that differ in what is right at their last place: `answers` for clean, `wrong` for corrupt.

    words: an id as text. Raises `InputError` where a pair does not differ in its answer.
    """
    if bool((answers == wrong).any()):
        raise InputError("a pair whose two rows have one answer cannot tell right from wrong; leave it out")
    used = torch.cat([clean.flatten(), corrupt.flatten(), answers, wrong]).unique().tolist()
    text = {token: words(token) for token in used}
    return Pairs(
        clean=clean,
        corrupt=corrupt,
        mask=None,
        answers=tuple((token,) for token in answers.tolist()),
        wrong=tuple((token,) for token in wrong.tolist()),
        slots=tuple({} for _ in range(len(clean))),
        texts=tuple(" ".join(text[token] for token in row) for row in clean.tolist()),
        corrupt_texts=tuple(" ".join(text[token] for token in row) for row in corrupt.tolist()),
        token_strings=text,
        task=task,
        seed=seed,
    )
