"""Channels of known meaning: what the readout's weights say is what happens when channels are taken out."""

import pytest
import torch

from microtome.core.edits import Function, Zero
from microtome.core.errors import SiteError
from microtome.testbeds.case import Case
from microtome.testbeds.others import images


@pytest.fixture(scope="module")
def by_channel() -> Case:
    return images.build("digits_by_channel")


@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_kept_back_is_not_learned_from(seed: int) -> None:
    seen, unseen = ({tuple(image.flatten().tolist()) for image in part.images} for part in images.split(seed))
    assert seen.isdisjoint(unseen)
    assert [len(part.images) for part in images.split(seed)] == [1438, 359]
    kept = images.split(seed)[1]
    assert set(kept.digits.tolist()) == set(range(10))
    assert 0 <= float(kept.images.min()) <= float(kept.images.max()) == 1


def test_another_seed_keeps_others_back() -> None:
    assert not torch.equal(images.split(0)[1].images, images.split(1)[1].images)


@pytest.mark.parametrize("digit", range(10))
def test_without_its_channels_a_digit_loses_its_logit_and_no_other_does(by_channel: Case, digit: int) -> None:
    model, tokens = by_channel.model, by_channel.tokens
    plain = model.run(tokens).logits
    nodes = by_channel.truth.roles[f"digit_{digit}"]
    without = model.run(tokens, edit=[Zero(node) for node in nodes]).logits
    assert plain is not None
    assert without is not None
    others = [other for other in range(10) if other != digit]
    assert torch.equal(without[:, others], plain[:, others])
    assert not without[:, digit].any()
    assert (plain[:, digit] > 0).any()


@pytest.mark.parametrize("case", images.cases())
def test_a_pooled_unit_is_a_channel_of_the_last_convolution(case: str) -> None:
    built = images.build(case)

    def silence(channels: torch.Tensor) -> torch.Tensor:
        kept = torch.ones(images.CHANNELS)
        kept[7] = 0
        return channels * kept[:, None, None]

    after_pool = built.model.run(built.tokens, edit=[Zero(f"{images.POOL}.u7")]).logits
    in_map = built.model.run(built.tokens, edit=[Function("path:layers.relu2", function=silence)]).logits
    assert after_pool is not None
    assert in_map is not None
    assert torch.equal(after_pool, in_map)


def test_every_channel_stands_for_one_digit(by_channel: Case) -> None:
    nodes = [node for named in by_channel.truth.roles.values() for node in named]
    assert sorted(nodes) == sorted(f"path:pool:out.u{unit}" for unit in range(images.CHANNELS))
    # Training leaves the readout as it was fixed.
    readout = by_channel.model.module.get_parameter("readout.weight")
    assert torch.equal(readout.nonzero()[:, 0], torch.arange(10).repeat_interleave(3))
    assert set(readout.unique().tolist()) == {0.0, 1.0}


def test_the_ordinary_network_claims_no_such_channels() -> None:
    built = images.build("digits")
    assert not built.truth.roles
    # Nor has it any: without the channels of that number, most digits are seen as before.
    tokens, digits = built.tokens["images"], built.truth.labels["digit"]
    right = sum(
        int(
            (
                (images.answers(built.model, tokens, images.channels(digit)) == digits) & (digits == digit)
            ).sum()
        )
        for digit in range(10)
    )
    assert right / len(digits) > 0.5


def test_channels_that_do_not_exist_are_refused(by_channel: Case) -> None:
    with pytest.raises(SiteError, match="unit 30 is out of range"):
        by_channel.model.run(by_channel.tokens, edit=[Zero("path:pool:out.u30")])
