"""The identity scores best, a dictionary made from the truth beats its nulls; what is not measured is left empty."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from microtome.bases.codes import SparseCodes
from microtome.bases.linear import LinearBasis
from microtome.core import plugins
from microtome.core.errors import InputError, StoreError
from microtome.core.shapes import Curve, Table
from microtome.core.site import Site
from microtome.dictionaries.activations import ReLU
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.files import save
from microtome.evaluation import dictionary_scores
from microtome.evaluation.dictionary_nulls import gaussian, random_directions, shuffled
from microtome.evaluation.dictionary_scores import Config, Known, report
from microtome.models.load import load
from microtome.testbeds.toys import planted_dictionary
from microtome.testbeds.toys.planted_dictionary import SITE, PlantedDictionary
from models import families

CASE = planted_dictionary.build("orthogonal")
FEATURES = CASE.truth.features[SITE]
COEFFICIENTS = SparseCodes.of(CASE.tokens["coefficients"])
LABELS = {f"feature {n}": (CASE.tokens["coefficients"][:, n] > 0).long() for n in range(5)}
KNOWN = Known(labels=LABELS, features=FEATURES, coefficients=COEFFICIENTS)
IDS = torch.randint(0, 50, (6, 9), generator=torch.Generator().manual_seed(0))


def true_dictionary() -> Dictionary:
    """Reads and writes along the planted directions."""
    site, (n, d) = (Site.parse(SITE),), FEATURES.shape
    writing = FEATURES.clone()
    return Dictionary(
        "true", site, site, (d,), (d,), ReLU(), FEATURES, torch.full((n,), -0.05), writing, *torch.zeros(2, d)
    )


def test_a_dictionary_made_from_the_truth_beats_every_null() -> None:
    found = report(CASE.model, CASE.tokens, true_dictionary(), known=KNOWN)
    for score in ("explained_variance", "mcc", "f1", "best_unit_f1"):
        others = [found.score(score, null) for null in dictionary_scores.AGAINST[1:]]
        assert found.score(score) > max(one for one in others if not math.isnan(one)), score
    assert found.score("bits_a_row") < found.score("bits_a_row", "random directions")
    assert found.score("mcc") == pytest.approx(1.0, abs=1e-3)
    assert found.score("undershoot") == pytest.approx(0.05, abs=0.03)  # the bias takes 0.05 of about 1
    assert math.isnan(found.score("mcc", "shuffled values"))
    assert any("Not spliced" in note for note in found.notes)
    table, histogram, latents = found.shapes()
    assert isinstance(table, Table)
    assert isinstance(histogram, Curve)
    assert isinstance(latents, Table)
    assert {row[0] for row in table.rows} >= {"l0", "explained", "bits a row", "mcc", "best unit f1"}
    assert histogram.series == ("dictionary", "random directions")
    assert histogram.y.sum(1).tolist() == [32, 32]
    assert {row[:2] for row in latents.rows} == {(f"feature {n}", f"u{n}") for n in range(5)}
    for _, _, own, random, always, split in latents.rows:
        assert own == pytest.approx(1.0, abs=0.02)
        assert own > max(random, always)  # type: ignore[type-var]
        assert split == 1


def test_the_identity_in_a_language_model_loses_nothing() -> None:
    model = load(families.make("gpt2"))
    basis = LinearBasis("resid_post.0", torch.eye(model.sizes["d_model"]))
    found = report(model, IDS, basis)
    assert found.score("explained_variance") == pytest.approx(1.0, abs=1e-6)
    assert found.score("cross_entropy_recovered") == pytest.approx(1.0, abs=1e-4)
    assert found.score("divergence_recovered", "random directions") < 0.9
    assert math.isnan(found.score("cross_entropy", "shuffled values"))
    assert found.data.attrs["rows"] == IDS.numel()


def test_where_zero_does_not_hurt_the_report_says_so() -> None:
    model = load(families.make("gpt2"))
    basis = LinearBasis("resid_post.0", torch.eye(model.sizes["d_model"]))
    config = Config(nulls=False)
    likely = model.run(IDS, logits=True).logits
    assert likely is not None
    for chosen, said in ((likely.argmax(-1), False), (likely.argmin(-1), True)):
        # Rows of two tokens whose second is the one that the model finds likeliest, or unlikeliest.
        found = report(model, torch.stack([IDS[:, 0], chosen[:, 0]], 1), basis, config)
        assert math.isnan(found.score("cross_entropy_recovered")) == said
        assert any("does not raise the loss" in note for note in found.notes) == said
        assert found.score("divergence_recovered") == pytest.approx(1.0, abs=1e-4)


def test_labels_of_tokens_are_those_of_their_rows() -> None:
    model = load(families.make("gpt2"))
    values = model.run(IDS, read=["resid_post.0"])[Site.parse("resid_post.0")]
    along = functional.normalize(
        torch.randn(values.shape[-1], generator=torch.Generator().manual_seed(1)), dim=0
    )
    label = (values @ along > (values @ along).median()).long()
    basis = LinearBasis("resid_post.0", along[None])
    found = report(model, IDS, basis, Config(nulls=False, splice=False), Known(labels={"above": label}))
    assert found.score("best_unit_f1") > 0.8
    other = report(
        model, IDS, basis, Config(nulls=False, splice=False), Known(labels={"above": label.flip(0)})
    )
    assert other.score("best_unit_f1") < 0.8


def test_parents_are_held_to_absorption() -> None:
    case = planted_dictionary.build("hierarchy")
    planted = PlantedDictionary(planted_dictionary.CASES["hierarchy"], 0)
    known = Known(
        features=planted.dictionary,
        coefficients=SparseCodes.of(case.tokens["coefficients"]),
        parents=planted.parent,
    )
    site = (Site.parse(SITE),)
    n, d = planted.dictionary.shape
    # Each child's unit writes its parent too, and the parents' own units are never on.
    merged = planted.dictionary.clone()
    children = (planted.parent >= 0).nonzero().flatten()
    merged[children] += planted.dictionary[planted.parent[children]]
    bias = torch.full((n,), -0.5)
    bias[planted.parent[children].unique()] = -100.0
    absorbing = Dictionary(
        "a", site, site, (d,), (d,), ReLU(), planted.dictionary, bias, merged, *torch.zeros(2, d)
    )
    plain = Dictionary(
        "p",
        site,
        site,
        (d,),
        (d,),
        ReLU(),
        planted.dictionary,
        torch.zeros(n),
        planted.dictionary,
        *torch.zeros(2, d),
    )
    config = Config(nulls=False)
    high, low = (report(case.model, case.tokens, one, config, known) for one in (absorbing, plain))
    assert high.score("absorption_of_parents") > 0.2
    assert low.score("absorption_of_parents") < 0.02


def test_it_reads_the_file_and_is_registered(tmp_path: Path) -> None:
    path = tmp_path / "true.safetensors"
    save(true_dictionary(), path)
    found = dictionary_scores.run(CASE.model, CASE.tokens, Config(dictionary=str(path), nulls=False))
    assert found.data.attrs["name"] == "true"
    assert plugins.method("dictionary_scores") is dictionary_scores
    found.save(tmp_path / "result")
    assert dictionary_scores.Result.load(tmp_path / "result") == found


def test_nulls_keep_what_they_should() -> None:
    values = (
        planted_dictionary.PlantedDictionary(planted_dictionary.CASES["sparse"]).chunk(0, 500).activations
    )
    mixed = shuffled(values, 0)
    assert torch.equal(mixed.sort(0).values, values.sort(0).values)
    assert not torch.equal(mixed, values)
    normal = gaussian(values.repeat(40, 1), 0)
    torch.testing.assert_close(normal.mean(0), values.mean(0), atol=0.03, rtol=0)
    torch.testing.assert_close(normal.T.cov(), values.T.cov(), atol=0.03, rtol=0)
    basis = LinearBasis(SITE, torch.eye(32))
    frozen = random_directions(basis, values, values, 5.2, seed=0)
    assert frozen.n_units == 32
    assert frozen.encode_sparsely(values).value.numel() <= 5 * 500
    left = (values - frozen.reconstruct(values)).square().sum()
    for factor in (0.9, 1.1):  # the scale is the best one
        scaled = frozen.decoder_bias + factor * (frozen.reconstruct(values) - frozen.decoder_bias)
        assert (values - scaled).square().sum() > left


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dictionary to score"):
        dictionary_scores.run(CASE.model, CASE.tokens)
    with pytest.raises(StoreError, match="there is no file"):
        dictionary_scores.run(CASE.model, CASE.tokens, Config(dictionary=str(tmp_path / "none")))
    corrupt = tmp_path / "corrupt"
    corrupt.write_bytes(b"not a dictionary")
    with pytest.raises(StoreError):
        dictionary_scores.run(CASE.model, CASE.tokens, Config(dictionary=str(corrupt)))
    narrow = LinearBasis(SITE, torch.eye(5))
    with pytest.raises(InputError, match="another site or model"):
        report(CASE.model, CASE.tokens, narrow)
