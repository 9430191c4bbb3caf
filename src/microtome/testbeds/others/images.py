"""Which digit is it? Convolutional networks on images of 8 × 8 points, one of them with channels of known meaning.

1. The images are the 1797 handwritten digits that come with scikit-learn; a fifth of them, chosen by the seed, is kept
   from training.
2. Three convolutions, the mean of each channel over the image (`pool`), and a linear readout. A channel of the last
   convolution acts through its mean alone, so a unit of `path:pool:out` is a channel, and zeroing it takes it out.
3. `digits` is trained as usual. In `digits_by_channel` the readout is fixed: each digit is the sum of three channels
   that nothing else reads. Which channels stand for which digit is known before training, and true of the function.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.draws import generator
from microtome.core.edits import Zero
from microtome.core.errors import InputError
from microtome.models.model import Model
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth
from microtome.testbeds.others.network import Recipe, network

card = TestbedCard(
    name="images",
    title="Convolutional networks on images of digits",
    question="Does a method that works on any module find the channels that stand for a digit?",
    reference="Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits; as in scikit-learn",
    kinds=("labels", "roles"),
    misleads="That three channels decide about a digit says nothing of the strokes they answer to; and ordinary "
    "networks, such as the first case, have no such channels.",
)

DIGITS, CHANNELS_EACH = 10, 3
CHANNELS = DIGITS * CHANNELS_EACH
POOL = "path:pool:out"

Images = Float[Tensor, "row 1 8 8"]


class Convolutional(nn.Module):
    """Images in, a logit for each digit out. by_channel: the readout is fixed, three channels a digit."""

    def __init__(self, by_channel: bool = False) -> None:
        super().__init__()
        widths = (1, 16, 24, CHANNELS)
        self.layers = nn.Sequential(
            OrderedDict(
                (name, module)
                for i in range(3)
                for name, module in (
                    (f"conv{i}", nn.Conv2d(widths[i], widths[i + 1], 3, padding=1)),
                    (f"relu{i}", nn.ReLU()),
                )
            )
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.readout = nn.Linear(CHANNELS, DIGITS, bias=not by_channel)
        if by_channel:
            with torch.no_grad():
                self.readout.weight.copy_(torch.eye(DIGITS).repeat_interleave(CHANNELS_EACH, 1))
            self.readout.weight.requires_grad_(False)

    def forward(self, images: Images) -> Float[Tensor, "row digit"]:
        found: Tensor = self.readout(self.pool(self.layers(images)))
        return found


@dataclass(frozen=True, eq=False)
class Examples:
    """Images, and the digit on each."""

    images: Images
    digits: Int[Tensor, " row"]

    def rows(self, rows: Int[Tensor, " some"]) -> "Examples":
        return Examples(self.images[rows], self.digits[rows])


@cache
def split(seed: int) -> tuple[Examples, Examples]:
    """Those to learn from, and those kept from it."""
    from sklearn.datasets import load_digits

    data = load_digits()
    every = Examples(torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target))
    order = torch.randperm(len(every.images), generator=generator(seed, -1))
    unseen, seen = order[: len(order) // 5], order[len(order) // 5 :]
    return every.rows(seen), every.rows(unseen)


def channels(digit: int) -> tuple[str, ...]:
    """The nodes that stand for a digit in `digits_by_channel`."""
    return tuple(f"{POOL}.u{digit * CHANNELS_EACH + i}" for i in range(CHANNELS_EACH))


def cases() -> tuple[str, ...]:
    """`digits`, `digits_by_channel`."""
    return ("digits", "digits_by_channel")


def recipe(case: str = "digits") -> Recipe:
    """How a case is trained. Raises `InputError` for an unknown case."""
    if case not in cases():
        raise InputError(f"images has the cases {', '.join(cases())}, not {case!r}")

    def batch(seed: int, step: int) -> Examples:
        seen = split(seed)[0]
        return seen.rows(torch.randint(0, len(seen.images), (64,), generator=generator(seed, step)))

    def loss(module: nn.Module, rows: Examples) -> Float[Tensor, ""]:
        return functional.cross_entropy(module(rows.images), rows.digits)

    by_channel = case == "digits_by_channel"
    return Recipe(
        testbed=card.name,
        case=case,
        make=lambda: Convolutional(by_channel),
        batch=batch,
        loss=loss,
        evidence=_evidence_by_channel if by_channel else _evidence,
        rate=5e-3,
        steps=1200,
        weight_decay=0.01,
    )


def answers(model: Model, images: Images, without: tuple[str, ...] = ()) -> Int[Tensor, " row"]:
    """The digits that the network sees, with some nodes set to zero."""
    logits = model.run({"images": images}, edit=[Zero(node) for node in without]).logits
    assert logits is not None
    return logits.argmax(-1)


def _evidence(model: Model, seed: int) -> tuple[Evidence, ...]:
    unseen = split(seed)[1]
    images, digits = unseen.images, unseen.digits
    right = (answers(model, images) == digits).float()
    return (Evidence("share of unseen images seen right", float(right.mean()), least=0.96, n=len(digits)),)


def _evidence_by_channel(model: Model, seed: int) -> tuple[Evidence, ...]:
    unseen = split(seed)[1]
    images, digits = unseen.images, unseen.digits
    own, others = 0, 0
    for digit in range(DIGITS):
        right = answers(model, images, channels(digit)) == digits
        own += int((right & (digits == digit)).sum())
        others += int((right & (digits != digit)).sum())
    count = len(digits)
    return (
        *_evidence(model, seed),
        # Each image is seen once without the channels of its digit, and nine times without those of another.
        Evidence("share seen right without the channels of the digit", own / count, most=0.02, n=count),
        Evidence(
            "share seen right without those of another digit", others / (9 * count), least=0.96, n=9 * count
        ),
    )


def build(case: str, seed: int = 0) -> Case:
    """A network that sees digits, and unseen images for it."""
    asked = recipe(case)
    model = network(asked, seed)
    unseen = split(seed)[1]
    images, digits = unseen.images, unseen.digits
    roles = {f"digit_{digit}": channels(digit) for digit in range(DIGITS)}
    return Case(
        name=f"{card.name}/{case}",
        task="The digit on an image of 8 × 8 points.",
        model=model,
        truth=Truth(labels={"digit": digits}, roles=roles if case == "digits_by_channel" else {}),
        evidence=asked.evidence(model, seed),
        tokens={"images": images},
        seed=seed,
    )
