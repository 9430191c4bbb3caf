"""The three phases of a network that learned to add are in its checkpoints; other networks have none to show."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from microtome.bases.modular_fourier import waves
from microtome.core.errors import InputError, StoreError
from microtome.core.result import Result
from microtome.development import progress_measures
from microtome.testbeds.algorithmic import modular_addition, network
from microtome.testbeds.case import Case

FOLDER = network.path(modular_addition.task(), 0).with_suffix("")


@pytest.fixture(scope="module")
def case() -> Case:
    return modular_addition.build("p53", 0)


@pytest.fixture(scope="module")
def found(case: Case) -> progress_measures.Result:
    return progress_measures.run(case.model, case.tokens, progress_measures.Config(checkpoints=str(FOLDER)))


def test_it_first_remembers_then_forms_the_circuit_then_cleans_up(found: progress_measures.Result) -> None:
    data = found.data
    remembers, circuit, adds = data["reached"].values
    assert circuit < adds
    assert remembers < adds
    loss, guess = data["loss"], np.log(53)
    # When the pairs given are remembered, the others are still worse than guessed or nearly so …
    given, others = (loss.sel(step=remembers, cut="whole", part=part) for part in ("given", "others"))
    assert given < 0.2
    assert others > 10 * given
    # … while the key waves alone already answer them; and what was remembered needs these waves.
    assert loss.sel(step=remembers, cut="restricted", part="others") < guess / 2
    assert (loss.sel(cut="excluded", part="given").values[-4:] > guess).all()
    # In the end the weights are smaller than at their largest, and the waves of the embedding fewer.
    assert data["weight_norm"].values[-1] < 0.9 * data["weight_norm"].values.max()
    assert (np.diff(data["embedding_gini"].values) > 0).all()


def test_the_circle_forms(found: progress_measures.Result) -> None:
    radius = np.linalg.norm(found.data["circle"].values, axis=-1)  # step, key, number
    uneven = radius.std(-1) / radius.mean(-1)
    assert (uneven[-1] < uneven[0] / 3).all()
    # Going from number to number turns by 2πk/p, to within a tenth of a full turn over p for the strongest.
    x, y = np.moveaxis(found.data["circle"].values[-1, 0], -1, 0)
    turn = np.diff(np.unwrap(np.arctan2(y, x)))
    k = int(found.data["key"].values[0])
    assert abs(abs(turn.mean()) - 2 * np.pi * k / 53) < 0.05


def test_the_plane_is_that_of_the_waves() -> None:
    p, k = 7, 2
    cos, sin = waves(p)[[2 * k - 1, 2 * k]]
    embedding = torch.stack([3 * cos, torch.zeros(p), 2 * sin], 1) + 5
    plane = progress_measures.plane(embedding, k)
    assert torch.allclose(plane.T @ plane, torch.eye(2, dtype=torch.double), atol=1e-9)
    assert torch.allclose(plane[:, 0].abs(), torch.tensor([1.0, 0, 0], dtype=torch.double), atol=1e-9)
    assert torch.allclose(plane[:, 1].abs(), torch.tensor([0, 0, 1.0], dtype=torch.double), atol=1e-9)


def test_it_is_kept_and_drawn(found: progress_measures.Result, tmp_path: Path) -> None:
    found.save(tmp_path)
    assert Result.load(tmp_path) == found
    titles = [shape.title for shape in found.shapes()]
    assert titles[0] == "Loss through training"


def test_a_network_that_never_adds_has_nothing_to_follow(case: Case, tmp_path: Path) -> None:
    twin = {name: p.detach().contiguous() for name, p in case.control.module.named_parameters()}
    save_file(twin, tmp_path / "step-000001.safetensors")
    with pytest.raises(InputError, match="no key frequency after 1 steps"):
        progress_measures.run(case.model, case.tokens, progress_measures.Config(checkpoints=str(tmp_path)))


def test_bad_folders_are_told(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name their folder"):
        progress_measures.run(case.model, case.tokens)
    with pytest.raises(StoreError, match="no checkpoints"):
        progress_measures.run(case.model, case.tokens, progress_measures.Config(checkpoints=str(tmp_path)))
