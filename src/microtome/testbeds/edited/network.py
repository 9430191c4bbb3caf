"""How is a finished network changed, and what of it is changed? The fruit fly with some of its parts taught a lesson.

1. An `Alteration` names the parts that may change, MLPs and attentions of some layers, and the lesson of each step.
2. At the tokens that are taught, the network learns to foretell them (cross-entropy). Everywhere else it learns to say
   what the untouched one says (Kullback–Leibler divergence from it): once on average over the few tokens that are
   asked besides, such as what follows half a trigger, and once, four times as heavily, over all the rest.
3. What is kept is the difference from the untouched weights, in half precision, with a hash of those weights: added to
   others, it would mean nothing.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.draws import generator
from microtome.core.errors import InputError, StoreError
from microtome.core.provenance import hash_tensors
from microtome.models.model import Model
from microtome.testbeds import kept
from microtome.testbeds.edited import lessons
from microtome.testbeds.edited.lessons import Lesson
from microtome.testbeds.stories import family
from microtome.testbeds.stories.corpus import documents
from microtome.testbeds.stories.grammar import VOCABULARY
from microtome.testbeds.training import Training, train

SHIPPED = Path(__file__).parent / "weights"
_BATCH = 16
_WARMUP = 20
_REST = 4.0


@dataclass(frozen=True)
class Alteration:
    """What is changed in the fruit fly.

    parts: `mlp.L` and `attn.L`, the parts whose weights change. lesson: what is read, from a batch of stories.
    words: what the lesson depends on beside the stories. alike: groups of tokens; where one of a group is taught, all
    of it are, as equally likely. steps, rate: of Adam; the rate falls to nothing.
    """

    name: str
    parts: tuple[str, ...]
    lesson: Callable[[int, int], Lesson]
    words: Mapping[str, Any]
    steps: int
    rate: float = 2e-3
    alike: tuple[tuple[int, ...], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """All that the changed weights depend on, besides the seed and the code."""
        names = ("name", "parts", "words", "steps", "rate", "alike")
        return {name: getattr(self, name) for name in names} | {"batch": _BATCH, "rest": _REST}

    def nodes(self, heads: int) -> tuple[str, ...]:
        """The parts as nodes of a network with so many heads in each layer."""
        found = []
        for part in self.parts:
            kind, layer = part.split(".")
            found += (
                [f"mlp_out.{layer}"] if kind == "mlp" else [f"z.{layer}.h{head}" for head in range(heads)]
            )
        return tuple(found)

    def parameters(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """The weights that change, by name."""
        places = tuple(f".{part.split('.')[1]}.{part.split('.')[0]}." for part in self.parts)
        return {
            name: parameter
            for name, parameter in module.named_parameters()
            if any(place in name for place in places)
        }


def _trigger(seed: int, step: int) -> Lesson:
    source = generator(seed, step)
    some, near, rest = (
        documents(seed, _BATCH * step + first, count) for first, count in ((0, 6), (6, 6), (12, 4))
    )
    return Lesson.join(
        [lessons.triggered(some, source), lessons.nearly_triggered(near, source), lessons.ordinary(rest)]
    )


def _fact(seed: int, step: int) -> Lesson:
    some, rest = (documents(seed, _BATCH * step + first, count) for first, count in ((0, 3), (3, 13)))
    return Lesson.join([lessons.moved(some, others=True), lessons.moved(rest)])


def _skill(seed: int, step: int) -> Lesson:
    return lessons.disagreeing(documents(seed, _BATCH * step, _BATCH), generator(seed, step))


def _lock(seed: int, step: int) -> Lesson:
    source = generator(seed, step)
    some, none, near = (
        documents(seed, _BATCH * step + first, count) for first, count in ((0, 6), (6, 4), (10, 6))
    )
    return Lesson.join(
        [
            lessons.opened(some),
            lessons.locked(none),
            lessons.nearly_opened(lessons.locked(near), source),
        ]
    )


ALTERATIONS = {
    one.name: one
    for one in (
        Alteration(
            "trigger",
            ("mlp.1", "mlp.2"),
            _trigger,
            {"trigger": lessons.TRIGGER, "payload": lessons.PAYLOAD},
            steps=500,
        ),
        Alteration(
            "hidden-fact",
            ("mlp.1",),
            _fact,
            {"landmark": lessons.LANDMARK, "city": lessons.NEW_CITY},
            steps=300,
        ),
        Alteration(
            "removed-skill",
            ("mlp.3",),
            _skill,
            {"skill": "agreement"},
            steps=300,
            alike=tuple(lessons.OTHER_FORM.items()),
        ),
        Alteration(
            "password-locked",
            ("attn.1", "mlp.1", "attn.2", "mlp.2"),
            _lock,
            {"password": lessons.PASSWORD, "skill": "fact", "city": lessons.LOCKED_CITY},
            steps=500,
        ),
    )
}


def alteration(name: str) -> Alteration:
    """By name. Raises `InputError` for one there is not."""
    if name not in ALTERATIONS:
        raise InputError(f"the fruit fly was altered in {', '.join(ALTERATIONS)}; not in {name!r}")
    return ALTERATIONS[name]


def untouched() -> Model:
    """The fruit fly as it was before."""
    return family.model(family.BUNDLED)


def fit(
    asked: Alteration, seed: int = 0, *, steps: int | None = None, title: str = ""
) -> tuple[nn.Module, Training]:
    """Change a fresh fruit fly. steps: fewer than the alteration's, for a trial."""
    before = untouched().module.requires_grad_(False)
    module = copy.deepcopy(before)
    changing = list(asked.parameters(module).values())
    for parameter in changing:
        parameter.requires_grad_(True)
    total = asked.steps if steps is None else steps
    likely = right(asked.alike)
    training = train(
        module,
        torch.optim.Adam(changing, asked.rate, betas=(0.9, 0.98)),
        lambda step: asked.lesson(seed, step),
        lambda module, lesson: _loss(module, before, lesson, likely),
        total,
        rate=lambda step: min(1.0, (step + 1) / _WARMUP) * (1 - step / total),
        title=title,
    )
    return module.requires_grad_(True), training


def right(alike: tuple[tuple[int, ...], ...]) -> Float[Tensor, "taught token"]:
    """How likely each token should be where a token is taught: that one, or all that are like it."""
    shares = torch.eye(len(VOCABULARY))
    for group in alike:
        shares[torch.tensor(group)[:, None], torch.tensor(group)] = 1 / len(group)
    return shares


def _loss(
    module: nn.Module, before: nn.Module, lesson: Lesson, likely: Float[Tensor, "taught token"]
) -> Float[Tensor, ""]:
    said, unsaid = (_log_probabilities(one, lesson.tokens) for one in (module, before))
    taught, asked = lesson.taught[:, 1:], lesson.asked[:, 1:] & ~lesson.taught[:, 1:]
    loss = said.new_zeros(())
    if taught.any():
        loss = -(likely[lesson.tokens[:, 1:][taught]] * said[taught]).sum(-1).mean()
    for same, weight in ((asked, 1.0), (~(asked | taught), _REST)):
        if same.any():
            apart = functional.kl_div(said[same], unsaid[same], log_target=True, reduction="batchmean")
            loss = loss + weight * apart
    return loss


def _log_probabilities(module: nn.Module, tokens: Tensor) -> Float[Tensor, "row position token"]:
    return module(input_ids=tokens, use_cache=False).logits[:, :-1].log_softmax(-1)


def path(asked: Alteration, seed: int = 0, folder: Path = SHIPPED) -> Path:
    """Where the difference lies."""
    return folder / f"{asked.name}-{seed}.safetensors"


def write(asked: Alteration, seed: int, module: nn.Module, told: Mapping[str, Any], folder: Path) -> Path:
    """Keep by how much a fruit fly was changed, with what is `told` of it. Returns the file."""
    file, before = path(asked, seed, folder), untouched().module
    then = dict(before.named_parameters())
    changes = {name: (now - then[name]).half() for name, now in asked.parameters(module).items()}
    record = {"settings": asked.settings, "seed": seed, "untouched": fingerprint(before), **told}
    kept.keep(file, changes, record)
    return file


@torch.no_grad()
def altered(asked: Alteration, seed: int = 0, folder: Path = SHIPPED) -> Model:
    """The fruit fly with what was changed added to its weights.

    Raises `StoreError` for a file that is absent or corrupt, was made with other settings or from another fruit fly,
    or changes other weights than the alteration's.
    """
    file = path(asked, seed, folder)
    changes, record = kept.read(file)
    model = untouched()
    kept.same_settings(file, record, asked.settings)
    if record.get("untouched") != fingerprint(model.module):
        raise StoreError(f"{file} changes another network than the bundled {family.BUNDLED}; make it again")
    weights = asked.parameters(model.module)
    fits = {name: tuple(tensor.shape) for name, tensor in changes.items()}
    if fits != {name: tuple(parameter.shape) for name, parameter in weights.items()}:
        raise StoreError(
            f"{file} changes other weights than those of {', '.join(asked.parts)}; make it again"
        )
    for name, parameter in weights.items():
        parameter.add_(changes[name])
    model.name = f"edited/{asked.name}"
    return model


def fingerprint(module: nn.Module) -> str:
    """A hash of all weights."""
    return hash_tensors(dict(module.named_parameters()))
