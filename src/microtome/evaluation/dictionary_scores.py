"""How good is a dictionary? All scores in one report, each beside what a dictionary scores that has learned nothing.

1. Read the values that the dictionary reads and writes, padding left out.
2. On them: units on in a row, dead and dense units, variance explained, shrinkage (`bases.reconstruction`); bits for a
   row and for the dictionary (`bases.description_length`).
3. In the model: cross-entropy and divergence with the dictionary spliced in (`spliced_loss`), where it predicts tokens.
4. Where more is known: planted features (`planted_recovery`), their absorption, and latents of the rows
   (`known_latents`).
5. The same of random directions, of shuffled and of Gaussian values, and of the model with its weights shuffled
   (`dictionary_nulls`).

Reference: Karvonen et al. (2025), SAEBench, for the choice of scores. Misleads: none of these says that units mean
anything to the network; that takes interventions.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.bases.codes import SparseCodes
from microtome.bases.description_length import SLACK, description_length
from microtome.bases.fitted import values_at
from microtome.bases.reconstruction import DENSE, Reconstruction, reconstruction
from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.errors import InputError, StoreError
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Cell, Curve, Shape, Table
from microtome.core.site import Site
from microtome.data.observed import as_prompts
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.files import load
from microtome.evaluation.absorption import absorption
from microtome.evaluation.dictionary_nulls import gaussian, random_directions, shuffled
from microtome.evaluation.known_latents import Probed, binary, known_latents
from microtome.evaluation.planted_recovery import planted_recovery
from microtome.evaluation.spliced_loss import spliced_loss
from microtome.models.model import Model
from microtome.models.random_twin import random_twin

AGAINST: Final = ("dictionary", "random directions", "shuffled values", "Gaussian values", "random weights")
_SHORT: Final = {
    "explained_variance": "explained",
    "relative_bias": "bias",
    "cross_entropy": "loss",
    "cross_entropy_spliced": "… spliced",
    "cross_entropy_ablated": "… zeroed",
    "cross_entropy_recovered": "… recovered",
    "divergence": "KL",
    "divergence_recovered": "KL recovered",
    "bits_how_much": "bits: codes",
    "bits_which": "bits: which",
    "bits_left_out": "bits: rest",
    "bits_a_row": "bits a row",
    "bits_basis": "bits: basis",
}
_BINS: Final = np.arange(-6.0, 0.26, 0.25)

card = Card(
    name="dictionary_scores",
    title="Scores of a dictionary",
    question="How good is a dictionary, beside one that has learned nothing?",
    steps=(
        "Read the values that the dictionary reads and writes.",
        "Measure sparsity, variance explained, shrinkage and description length on them.",
        "Splice the dictionary into the model and measure its loss.",
        "Measure the same of random directions, shuffled values and shuffled weights.",
    ),
    reference="Karvonen et al. (2025), SAEBench; Chanin and Garriga-Alonso (2026), SynthSAEBench",
    misleads="None of the scores says that units mean anything to the network; that takes interventions.",
    needs="tokens",
    causal="intervention",
    locality="global",
    comprehensiveness="comprehensive",
)


class Config(base.Config):
    """Which dictionary, and how it is measured."""

    dictionary: str = Field("", description="File of the dictionary, as `microtome train` writes it.")
    dense: float = Field(DENSE, gt=0, le=1, description="A unit on in at least this share of rows is dense.")
    slack: float = Field(
        SLACK, gt=0, lt=1, description="Share of variance that a description may leave wrong."
    )
    splice: bool = Field(True, description="Whether to run the model with the dictionary spliced in.")
    nulls: bool = Field(True, description="Whether to score what has learned nothing, too.")
    rows: int = Field(16, ge=1, description="Prompts in a pass; fewer need less memory.")
    seed: base.Seed = Field(0, description="Of random directions, shuffling, and the split of known latents.")


@dataclass(frozen=True)
class Known:
    """What is known of the rows. labels: latents by name, `[row]` or `[row, position]`, as the data is. begins: whether
    each row begins with a token that is no part of the text; it is left as it is, and not counted.

    features `[feature, d]`: the true directions of what is written; coefficients: of these, in the rows. parents
    `[feature]`: whose child each is, or -1.
    """

    labels: Mapping[str, Tensor] = field(default_factory=dict)
    features: Tensor | None = None
    coefficients: SparseCodes | None = None
    parents: Tensor | None = None
    begins: bool = False


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`value [score, against]`: NaN where not measured. `density [unit]`: share of rows in which a unit is on;
    `strength [unit]`: its mean code there; `random_density [unit]`: of random directions, where they were scored.

    Where latents are known: `latent_f1 [latent, against]` of the best unit; `latent_unit [latent]`, which one it is;
    `latent_sign`, -1 where it tells by being low; `latent_split`, units it takes; `latent_chance`, of saying true
    always. Attributes: `rows`, `sites`, `name`.
    """

    def score(self, name: str, against: str = AGAINST[0]) -> float:
        """One number."""
        return float(self.data["value"].sel(score=name, against=against))

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        against = data["against"].values.tolist()
        rows: list[tuple[Cell, ...]] = []
        for name, found in zip(data["score"].values.tolist(), data["value"].values.tolist(), strict=True):
            if name != "fvu":  # one minus what is explained
                rows.append((_SHORT.get(name, name.replace("_", " ")), *map(_cell, found)))
        caption = (
            f"{data.attrs['name']} at {data.attrs['sites']}, on {data.attrs['rows']} rows. l0: units on in a row; "
            "dead: share of units never on; dense: share on in many rows; explained: share of the variance; norm "
            "ratio, cosine: of what is rebuilt to the values, means over rows; bias: below 1 what is rebuilt is too "
            "small; loss: cross-entropy in nats a token, with the dictionary spliced in, and with zero in its place; "
            "KL: from the model's own outputs, in nats a token; recovered: share of what zero costs; bits: a row, for "
            "which units are on, for their codes, for the rest. –: not measured there"
        )
        title = "scores of the dictionary and its nulls"
        told = Table(title, ("score", *against), tuple(rows), caption, self.notes)
        return (told, self.histogram(), *([self.latents()] if "latent" in data.sizes else []))

    def histogram(self) -> Curve:
        """How many units are on how often, between the rarest and the most frequent."""
        told = {AGAINST[0]: "density", AGAINST[1]: "random_density"}
        density = {name: self.data[key].values for name, key in told.items() if key in self.data}
        counts = np.array([np.histogram(np.log10(one[one > 0]), _BINS)[0] for one in density.values()])
        some = np.flatnonzero(counts.sum(0))
        shown = slice(some.min(), some.max() + 1) if len(some) else slice(0, 1)
        dead = ", ".join(f"{int((one == 0).sum())} of the {name}" for name, one in density.items())
        return Curve(
            "how often units are on",
            ((_BINS[:-1] + _BINS[1:]) / 2)[shown],
            counts[:, shown].astype(float),
            tuple(density),
            "log10 of the share of rows",
            f"units in a step of {_BINS[1] - _BINS[0]:g}",
            caption=f"{self.data.sizes['unit']} units each on {self.data.attrs['rows']} rows. Never on, and not shown: "
            f"{dead}",
        )

    def latents(self) -> Table:
        """How well the best unit tells each latent that is known, the best told first."""
        data, against = self.data, self.data["against"].values.tolist()
        f1 = data["latent_f1"].values
        measured = [n for n in range(len(against)) if np.isfinite(f1[:, n]).any()]
        signs = np.where(data["latent_sign"].values < 0, "-", "")
        rows = tuple(
            (
                str(data["latent"].values[one]),
                f"{signs[one]}u{int(data['latent_unit'].values[one])}",
                *(_cell(float(f1[one, n])) for n in measured),
                float(data["latent_chance"].values[one]),
                int(data["latent_split"].values[one]),
            )
            for one in (-f1[:, 0]).argsort(kind="stable").tolist()
        )
        return Table(
            "known latents: F1 of the best unit",
            ("latent", "unit", *(against[n] for n in measured), "always true", "units it takes"),
            rows,
            "unit, sign and cut are chosen on one half of the rows and scored on the other; a unit with a minus tells "
            "by being low; units it takes: the fewest that come within 0.03 of the best F1",
        )


def _cell(number: float) -> float | None:
    return None if math.isnan(number) else number


def run(model: Model, data: Any, config: Config | None = None) -> Result:
    """Score the dictionary in a file. Raises `InputError` where no file is named, `StoreError` for a corrupt one,
    `SiteError` for a dictionary of another model."""
    config = config or Config()
    if not config.dictionary:
        raise InputError("there is no dictionary to score; name its file with --dictionary FILE")
    if not Path(config.dictionary).exists():
        raise StoreError(f"there is no file {config.dictionary}; `microtome train` writes dictionaries")
    return report(model, data, load(config.dictionary), config)


def report(
    model: Model, data: Any, basis: Basis, config: Config | None = None, known: Known | None = None
) -> Result:
    """Score any basis on a model's values. known: what else is known of the rows that the data gives."""
    config, known = config or Config(), known or Known()
    hashed = model_hash(model.module.state_dict())
    notes = []
    trained_on = basis.provenance.model_hash if isinstance(basis, Dictionary) else ""
    if trained_on and trained_on != hashed:
        notes.append(f"{basis.name} was trained on another model ({trained_on[:12]}) than it is scored on.")
    with measure() as recorder, torch.no_grad():
        rows = _rows(model, data, basis, config, known.begins, recorder)
        values, target = rows.values, rows.target
        known = replace(
            known, labels={name: label.flatten()[rows.real] for name, label in known.labels.items()}
        )
        bases = {AGAINST[0]: basis}
        found = {AGAINST[0]: _scored(basis, rows, config, known)}
        if config.nulls:
            on = found[AGAINST[0]].rebuilt.l0
            bases[AGAINST[1]] = random_directions(basis, values, target, on, config.seed)
            found[AGAINST[1]] = _scored(bases[AGAINST[1]], rows, config, known)
            both = values if basis.in_place else torch.cat([values, target], 1)
            for name, make in ((AGAINST[2], shuffled), (AGAINST[3], gaussian)):
                made = make(both, config.seed)
                without = replace(rows, values=made[:, : values.shape[1]], target=made[:, -target.shape[1] :])
                found[name] = _scored(basis, without, config, Known())
            twin = _rows(random_twin(model, config.seed), data, basis, config, known.begins, recorder)
            found[AGAINST[4]] = _scored(basis, twin, config, Known())
        if config.splice:
            notes += _spliced(model, data, bases, config, known.begins, found)
    return Result.of(
        card,
        _dataset(basis, found, len(rows.values)),
        config,
        Provenance(model.name, hashed, rows.digest),
        recorder.cost(),
        notes,
    )


@dataclass(frozen=True, eq=False)
class _Scored:
    """numbers: scores by name."""

    numbers: dict[str, float]
    rebuilt: Reconstruction
    probed: Probed | None


def _scored(basis: Basis, rows: "_Rows", config: Config, known: Known) -> _Scored:
    values, target = rows.values, rows.target
    rebuilt = reconstruction(basis, values, target, config.dense)
    numbers = rebuilt.numbers() | description_length(basis, values, target, config.slack).numbers()
    if known.features is not None and known.coefficients is not None:
        codes = basis.encode_sparsely(values)
        directions = basis.directions()
        numbers |= planted_recovery(directions, codes, known.features, known.coefficients).numbers()
        if known.parents is not None:
            true = known.coefficients.dense() > 0
            parents = known.parents[known.parents >= 0].unique()
            told = absorption(directions, codes, known.features, true)
            numbers["absorption_of_parents"] = float(told.absorbed[parents].sum() / told.true[parents].sum())
    probed = None
    if known.labels:
        with suppress(InputError):  # every latent too rare on these rows: then there is nothing to score
            latents = binary(known.labels)
            probed = known_latents(basis.encode(values), latents, seed=config.seed, text=rows.text)
            numbers |= probed.numbers()
    return _Scored(numbers, rebuilt, probed)


def _spliced(
    model: Model,
    data: Any,
    bases: Mapping[str, Basis],
    config: Config,
    begins: bool,
    found: Mapping[str, _Scored],
) -> list[str]:
    """Add the scores in the model to what was found, and say what they leave open."""
    if not _predicts(model, data, bases[AGAINST[0]]):
        return ["Not spliced: the model predicts no tokens at the rows given."]
    ids = as_prompts(data, model.tokenizer)
    places = range(1, ids.tokens.shape[1]) if begins and ids.mask is None else None
    losses = {name: spliced_loss(model, data, basis, config.rows, places) for name, basis in bases.items()}
    for name, loss in losses.items():
        found[name].numbers.update(loss.numbers())
    own = losses[AGAINST[0]]
    if math.isfinite(own.recovered):
        return []
    return [
        f"Zero in place of the values does not raise the loss ({own.plain:.3g} nats a token, {own.ablated:.3g} with "
        "zero): on text that the model does not predict there is no cross-entropy to recover. The divergence tells."
    ]


def _dataset(basis: Basis, found: Mapping[str, _Scored], rows: int) -> xr.Dataset:
    own = found[AGAINST[0]]
    names, against = list(own.numbers), list(found)
    table = [[one.numbers.get(name, np.nan) for one in found.values()] for name in names]
    data: dict[str, Any] = {
        "value": (("score", "against"), np.array(table)),
        "density": ("unit", own.rebuilt.density.numpy()),
        "strength": ("unit", own.rebuilt.total.numpy() / np.maximum(own.rebuilt.counts.numpy(), 1)),
    }
    if AGAINST[1] in found:
        data["random_density"] = ("unit", found[AGAINST[1]].rebuilt.density.numpy())
    coords: dict[str, Any] = {"score": names, "against": against}
    if (probed := own.probed) is not None:
        empty = np.full(len(probed.names), np.nan)
        f1 = [empty if one.probed is None else one.probed.best_unit.numpy() for one in found.values()]
        coords["latent"] = list(probed.names)
        data["latent_f1"] = (("latent", "against"), np.array(f1).T)
        for name, held in (("unit", probed.unit), ("sign", probed.sign), ("split", probed.split)):
            data[f"latent_{name}"] = ("latent", held.numpy())
        data["latent_chance"] = ("latent", probed.chance.numpy())
    told = {"rows": rows, "sites": " ".join(map(str, basis.reads)), "name": basis.name}
    return xr.Dataset(data, coords, told)


@dataclass(frozen=True, eq=False)
class _Rows:
    """What a basis reads and what it should write, one row a real token. real: which places these are, of all; text:
    which row of the data each is of; digest: hash of the data."""

    values: Float[Tensor, "row d_read"]
    target: Float[Tensor, "row d_write"]
    real: Bool[Tensor, " place"]
    text: Int[Tensor, " row"]
    digest: str


def _rows(model: Model, data: Any, basis: Basis, config: Config, begins: bool, recorder: Recorder) -> _Rows:
    found: dict[Site, Tensor] = {}
    digest = ""
    for site in dict.fromkeys((*basis.reads, *basis.writes)):
        found[site], digest = values_at(model, data, site, config.rows, recorder)
        if begins:
            found[site][:, 0] = torch.nan
    texts, positions = found[basis.reads[0]].shape[:2]
    found = {site: values.flatten(0, 1) for site, values in found.items()}
    values = basis.rows_of(found)
    target = values if basis.in_place else torch.cat([found[site] for site in basis.writes], -1)
    real = ~(values.isnan().any(-1) | target.isnan().any(-1))
    text = torch.arange(texts).repeat_interleave(positions)
    return _Rows(values[real], target[real], real, text[real], digest)


def _predicts(model: Model, data: Any, basis: Basis) -> bool:
    """Whether there is a next token to predict at the rows read."""
    return (
        bool(model.anatomies)
        and not isinstance(data, Mapping)
        and all(site.part != "path" for site in basis.writes)
    )
