"""The scores are right where the right answer is known: an oracle, its opposite, and a model that knows nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from microtome.core.errors import InputError
from microtome.testbeds.stories.behaviours import measure
from microtome.testbeds.stories.corpus import documents
from microtome.testbeds.stories.grammar import TOKEN_ID, VOCABULARY

COUNT = 150


class Oracle(nn.Module):
    """Says of every held-out document what comes next, with a given confidence; a negative one denies it."""

    def __init__(self, seed: int, confidence: float) -> None:
        super().__init__()
        self.confidence = nn.Parameter(torch.tensor(confidence))
        rows = torch.from_numpy(documents(seed, 0, COUNT, "held-out").tokens.astype(np.int64))
        self.known = {tuple(row[:-1].tolist()): row for row in rows}

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        following = torch.stack([self.known[tuple(row[:-1].tolist())] for row in input_ids]).roll(-1, dims=1)
        return SimpleNamespace(
            logits=self.confidence * nn.functional.one_hot(following, len(VOCABULARY)).float()
        )


class LaterYears(nn.Module):
    """Gives all its probability to one number, whatever it reads."""

    def __init__(self, number: str) -> None:
        super().__init__()
        self.number = TOKEN_ID[number]
        self.confidence = nn.Parameter(torch.tensor(50.0))

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, len(VOCABULARY))
        logits[..., self.number] = self.confidence.detach()
        return SimpleNamespace(logits=logits)


def test_an_oracle_scores_one_everywhere() -> None:
    report = measure(Oracle(4, 60.0), 4, COUNT)
    assert report.loss == pytest.approx(0, abs=1e-6)
    for name, score in report.behaviours.items():
        assert score.score == pytest.approx(1, abs=1e-6), name


def test_its_opposite_scores_nothing() -> None:
    report = measure(Oracle(4, -60.0), 4, COUNT)
    years = report.behaviours.pop("greater_than")
    assert -1 < years.score < 1
    assert {score.score for score in report.behaviours.values()} == {0.0}


def test_greater_than_is_the_mass_after_minus_the_mass_before() -> None:
    assert measure(LaterYears("99"), 4, COUNT).behaviours["greater_than"].score == pytest.approx(1)
    assert measure(LaterYears("00"), 4, COUNT).behaviours["greater_than"].score == pytest.approx(-1)


def test_a_model_that_knows_nothing_pays_the_vocabulary() -> None:
    report = measure(Oracle(4, 0.0), 4, COUNT)
    assert report.loss == pytest.approx(np.log(len(VOCABULARY)), rel=1e-5)
    assert report.behaviours["agreement"].score == 0


def test_the_model_keeps_its_mode() -> None:
    model = LaterYears("99").train()
    measure(model, 4, COUNT)
    assert model.training


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(InputError, match="ask for more documents"):
        measure(LaterYears("99"), 4, 1)
