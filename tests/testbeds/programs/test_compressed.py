"""Programs in too few dimensions: still right on every input, with a dictionary that is known and not the axes."""

from pathlib import Path

import pytest
import torch

from microtome.core.errors import InputError, StoreError, TruthError
from microtome.core.site import Site
from microtome.models.load import load
from microtome.testbeds import kept
from microtome.testbeds.edge_ablation import candidate_edges, cut, writes
from microtome.testbeds.programs import compressed
from microtome.testbeds.programs.compression import compressed as through
from microtome.testbeds.programs.compression import learned, occupied
from microtome.testbeds.programs.library import program


@pytest.mark.parametrize("name", compressed.cases())
def test_more_directions_than_dimensions_and_every_answer_right(name: str) -> None:
    case = compressed.build(name)
    assert [one.holds for one in case.evidence] == [True, True]
    for site, dictionary in case.truth.features.items():
        assert dictionary.shape[1] == case.model.sizes["d_model"]
        assert case.model.has(Site.parse(site))
    assert (case.truth.circuit is not None) == name.endswith("_turned")


def test_the_stream_of_a_turned_network_is_the_wide_one_through_the_dictionary() -> None:
    case = compressed.build("sort_turned", seed=3)
    compiled = program("sort").compile()
    wide = load(compiled.transformer())
    matrix = occupied(wide.module, compiled.encode(compressed._inputs(program("sort"))), seed=3)
    off = matrix @ matrix.T - torch.eye(len(matrix))
    assert float(off.abs().max()) > 0.1  # directions interfere
    for site, dictionary in case.truth.features.items():
        there, here = (model.run(case.tokens, [site])[Site.parse(site)] for model in (wide, case.model))
        assert torch.allclose(there @ matrix, here, atol=1e-3)
        assert torch.allclose(here @ matrix.T, there, atol=1e-3)
        # The dictionary there: no direction along which nothing ever changes, and all along which something does.
        changes = there.flatten(0, 1).std(0) > 1e-3
        assert torch.equal(dictionary, matrix[changes])
    sizes = [len(dictionary) for dictionary in case.truth.features.values()]
    assert sizes == sorted(sizes)  # each part adds its own
    assert sizes[0] < sizes[-1]
    for variable in case.truth.variables:
        plain = next(one for one in compiled.truth().variables if one.name == variable.name)
        kept = [plain.values.index(value) for value in variable.values] if plain.values else [0]
        assert torch.allclose(variable.directions, plain.directions[kept] @ matrix)


def test_no_edge_outside_the_program_matters() -> None:
    case = compressed.build("histogram_turned")
    circuit, pairs = case.truth.circuit, case.pairs
    assert circuit is not None
    assert pairs is not None
    here, there = writes(case.model, pairs.clean), writes(case.model, pairs.corrupt)
    change = {part: there[part] - wrote for part, wrote in here.items()}
    whole = case.model.run(pairs.clean, logits=True).logits
    assert whole is not None
    for ends in candidate_edges(case.model):
        logits = case.model.run(pairs.clean, edit=[cut(case.model, change, ends)], logits=True).logits
        assert logits is not None
        moved = float((logits - whole)[:, -1].detach().abs().max())
        shown = ends in {edge.ends for edge in circuit.edges} - case.truth.unshown
        assert (moved > 1e-2) == shown, (ends, moved)


def test_the_seed_turns() -> None:
    one, same, other = (
        compressed.build("reverse_turned", seed).truth.features["resid_pre.0"] for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=0.1)
    assert torch.allclose(one @ one.T, other @ other.T, atol=1e-4)  # the same subspace


def test_too_few_dimensions_cannot_serve_as_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "occupied", lambda *given: occupied(*given)[:, :-6])
    with pytest.raises(TruthError, match="network and program differ"):
        compressed.build("reverse_turned")


def test_a_learned_matrix_keeps_more_than_as_many_of_the_directions() -> None:
    one = program("copy")
    compiled = one.compile()
    wide = compiled.transformer().requires_grad_(False)
    inputs = compressed._inputs(one)[:200]
    tokens = compiled.encode(inputs)
    targets = torch.tensor([[compiled.id(value) for value in one.interpret(given)] for given in inputs])
    matrix, again = (learned(wide, tokens, targets, 4, seed, steps=(120, 60)) for seed in (0, 0))
    assert torch.equal(matrix, again)
    some = occupied(wide, tokens, 0)[:, : matrix.shape[1]]

    def right(through_matrix: torch.Tensor) -> float:
        said = compiled.decode(through(wide, through_matrix)(tokens).logits.detach())
        return sum(a == one.interpret(b) for a, b in zip(said, inputs, strict=True)) / len(inputs)

    assert right(matrix) == 1.0 > right(some)


def test_names_and_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="has no case 'reverse'"):
        compressed.build("reverse")
    monkeypatch.setattr(compressed, "WEIGHTS", tmp_path)
    with pytest.raises(StoreError):
        compressed.build("fraction_of_previous_learned")
    (tmp_path / "fraction_of_previous.safetensors").write_bytes(b"no tensors")
    with pytest.raises(StoreError, match="cannot be read"):
        compressed.build("fraction_of_previous_learned")


@pytest.mark.training
def test_what_ships_is_what_training_gives(tmp_path: Path) -> None:
    compressed.train(tmp_path)
    for name in compressed.LEARNED:
        made, ships = (kept.read(folder / f"{name}.safetensors") for folder in (tmp_path, compressed.WEIGHTS))
        assert torch.equal(made[0]["matrix"], ships[0]["matrix"])
        assert made[1] == ships[1]
