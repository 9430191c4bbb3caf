"""The model computes what its tables say, and each of its features has a dimension of its own; others' do not."""

import math
from pathlib import Path

import pytest
import torch

from microtome.core.draws import generator
from microtome.core.errors import NotFiniteError, StoreError
from microtome.models.load import load
from microtome.models.model import Model
from microtome.testbeds.stories import network
from microtome.testbeds.stories import superposition_free as free
from microtome.testbeds.stories.superposition_free import (
    STREAM,
    TOKENS,
    Settings,
    Tables,
    assemble,
    dimensionality,
    features,
    keep,
    misreading,
    train,
)
from microtome.testbeds.training import seeded

BRIEF = Settings(steps=6, batch=2, warmup=2)


@pytest.fixture(scope="module")
def tables() -> Tables:
    return train(BRIEF)[0]


@pytest.fixture(scope="module")
def model(tables: Tables) -> Model:
    return load(assemble(tables))


def tokens(seed: int) -> torch.Tensor:
    return torch.randint(0, TOKENS, (3, 40), generator=generator(seed))


def test_the_model_computes_what_the_tables_say(tables: Tables, model: Model) -> None:
    assert tables.attended.abs().max() > 0
    ids = tokens(0)
    with torch.no_grad():
        said = tables(ids)
    assert torch.allclose(model.module(ids).logits, said, atol=1e-5)


def test_it_attends_as_the_tables_do_and_never_ahead(model: Model, tables: Tables) -> None:
    ids = tokens(1)
    pattern = model.run(ids, read=["pattern.0"])["pattern.0"][:, 0]
    assert (pattern.triu(1) == 0).all()
    query, key = (table[ids[0]] + table[TOKENS : TOKENS + 40] for table in (tables.q, tables.k))
    scores = (query[9] @ key[:10].T) / free.RANK**0.5
    assert torch.allclose(pattern[0, 9, :10], scores.softmax(-1), atol=1e-5)


def test_every_feature_has_a_dimension_of_its_own(model: Model) -> None:
    known = torch.cat(list(features(model).values()))
    assert known.shape == (STREAM, STREAM)
    assert torch.equal(dimensionality(known), torch.ones(STREAM))
    assert misreading(model, tokens(2)) < 1e-5


def test_an_ordinary_model_has_less_than_its_width_to_share() -> None:
    ordinary = load(network.new_model(network.Settings(hidden=32, layers=1, heads=1, mlp=False)).eval())
    known = torch.cat(list(features(ordinary).values()))
    shares = dimensionality(known)
    assert len(known) == 2 * TOKENS + free.CONTEXT
    assert float(shares.max()) < 0.9
    # The sum of all dimensionalities never exceeds the width (Elhage et al. 2022).
    assert float(shares.sum()) <= 32 + 1e-3


@pytest.mark.parametrize(("corners", "share"), [(2, 1 / 2), (3, 2 / 3), (4, 1 / 2), (5, 2 / 5), (8, 1 / 4)])
def test_dimensionality_of_regular_polygons(corners: int, share: float) -> None:
    angles = torch.arange(corners, dtype=torch.double) * 2 * math.pi / corners
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert torch.allclose(dimensionality(3.0 * directions), torch.full((corners,), share, dtype=torch.double))


def test_a_feature_that_is_not_there_has_none() -> None:
    assert dimensionality(torch.tensor([[0.0, 0.0], [2.0, 0.0]])).tolist() == [0, 1]


def test_a_training_is_replayed_bit_for_bit(tables: Tables) -> None:
    torch.manual_seed(9)
    again, log = train(BRIEF, keep=(3,))
    assert all(
        torch.equal(one, two) for one, two in zip(tables.parameters(), again.parameters(), strict=True)
    )
    assert list(log.checkpoints) == [3, 6]
    other, _ = train(BRIEF.model_copy(update={"seed": 1}))
    assert not torch.equal(other.q, tables.q)


def test_it_learns() -> None:
    _, log = train(Settings(steps=30, batch=2, warmup=4, rate=0.1))
    assert sum(log.losses[-5:]) / 5 < log.losses[0] - 0.5


def test_it_is_kept_with_its_log_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free, "HELD_OUT_DOCUMENTS", 60)
    keep(tmp_path / "free.safetensors", BRIEF)
    found, record = free.model(BRIEF, tmp_path / "free.safetensors")
    assert record["settings"] == BRIEF.model_dump()
    assert record["held_out"]["loss"] < math.log(TOKENS)
    halves = train(BRIEF)[0].direct.half().float()
    assert torch.equal(found.weight("W_U")[:TOKENS], halves)
    with pytest.raises(StoreError, match="trained with"):
        free.model(Settings(seed=1), tmp_path / "free.safetensors")
    (tmp_path / "free.safetensors").write_bytes(b"nothing")
    with pytest.raises(StoreError, match="cannot be read"):
        free.model(BRIEF, tmp_path / "free.safetensors")
    with pytest.raises(StoreError, match="cannot be read"):
        free.model(BRIEF, tmp_path / "nowhere.safetensors")


def test_a_rate_that_diverges_is_an_error_not_a_model() -> None:
    with pytest.raises(NotFiniteError, match="at step"):
        train(Settings(steps=40, batch=1, warmup=0, rate=1e30))


def test_untrained_tables_know_nothing() -> None:
    with seeded(0):
        blank = Tables()
    with torch.no_grad():
        assert (blank(tokens(3)) == 0).all()


@pytest.mark.training
def test_what_ships_can_be_trained_again(tmp_path: Path) -> None:
    keep(tmp_path / "again.safetensors", Settings())
    again, shipped = free.model(file=tmp_path / "again.safetensors")[1], free.model()[1]
    assert again["held_out"]["loss"] == pytest.approx(shipped["held_out"]["loss"], abs=0.1)
