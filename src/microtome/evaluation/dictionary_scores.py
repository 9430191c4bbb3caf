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
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.bases.codes import SparseCodes
from microtome.bases.description_length import SLACK, description_length
from microtome.bases.fitted import values_at
from microtome.bases.reconstruction import DENSE, reconstruction
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
from microtome.evaluation.known_latents import binary, known_latents
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
    `strength [unit]`: its mean code there. Attributes: `rows`, `sites`, `name`."""

    def score(self, name: str, against: str = AGAINST[0]) -> float:
        """One number."""
        return float(self.data["value"].sel(score=name, against=against))

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        against = data["against"].values.tolist()
        rows: list[tuple[Cell, ...]] = []
        for name, found in zip(data["score"].values.tolist(), data["value"].values.tolist(), strict=True):
            rows.append(
                (
                    _SHORT.get(name, name.replace("_", " ")),
                    *(None if math.isnan(number) else number for number in found),
                )
            )
        caption = (
            f"{data.attrs['name']} at {data.attrs['sites']}, on {data.attrs['rows']} rows. explained: variance, "
            "1 - fvu; bias: below 1 what is rebuilt is too small; loss: cross-entropy in nats, with the dictionary "
            "spliced in, and with zero in its place; bits: for which units are on, for their codes, for the rest"
        )
        title = "scores of the dictionary and its nulls"
        return (Table(title, ("score", *against), tuple(rows), caption, self.notes), self.histogram())

    def histogram(self) -> Curve:
        """How many units are on how often."""
        density = self.data["density"].values
        counts, edges = np.histogram(np.log10(density[density > 0]), _BINS)
        dead = int((density == 0).sum())
        return Curve(
            "how often units are on",
            (edges[:-1] + edges[1:]) / 2,
            counts[None].astype(float),
            ("units",),
            "log10 of the share of rows",
            "units",
            caption=f"{len(density)} units, {dead} never on; {self.data.attrs['rows']} rows",
        )


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
    notes: list[str] = []
    hashed = model_hash(model.module.state_dict())
    trained_on = basis.provenance.model_hash if isinstance(basis, Dictionary) else ""
    if trained_on and trained_on != hashed:
        notes.insert(
            0, f"{basis.name} was trained on another model ({trained_on[:12]}) than it is scored on."
        )
    with measure() as recorder, torch.no_grad():
        values, target, real, digest = _rows(model, data, basis, config, known.begins, recorder)
        known = replace(known, labels={name: label.flatten()[real] for name, label in known.labels.items()})
        scores = {AGAINST[0]: _scores(basis, values, target, config, known)}
        density = reconstruction(basis, values, target, config.dense)
        if config.nulls:
            frozen = random_directions(basis, values, target, density.l0, config.seed)
            scores[AGAINST[1]] = _scores(frozen, values, target, config, known)
            both = torch.cat([values, target], 1)
            for name, made in (
                (AGAINST[2], shuffled(both, config.seed)),
                (AGAINST[3], gaussian(both, config.seed)),
            ):
                read, wanted = made.split([values.shape[1], target.shape[1]], 1)
                scores[name] = _scores(basis, read, read if basis.in_place else wanted, config, Known())
            twin = random_twin(model, config.seed)
            there, wanted, *_ = _rows(twin, data, basis, config, known.begins, recorder)
            scores[AGAINST[4]] = _scores(basis, there, wanted, config, Known())
        if config.splice and _predicts(model, data, basis):
            bases = {AGAINST[0]: basis} | ({AGAINST[1]: frozen} if config.nulls else {})
            ids = as_prompts(data, model.tokenizer)
            places = range(1, ids.tokens.shape[1]) if known.begins and ids.mask is None else None
            for name, one in bases.items():
                scores[name] |= spliced_loss(model, data, one, config.rows, places).numbers()
        elif config.splice:
            notes.append("Not spliced: the model predicts no tokens at the rows given.")
    names = list(scores[AGAINST[0]])
    table = np.array([[found.get(name, np.nan) for found in scores.values()] for name in names])
    strength = density.total.numpy() / np.maximum(density.counts.numpy(), 1)
    return Result.of(
        card,
        xr.Dataset(
            {
                "value": (("score", "against"), table),
                "density": ("unit", density.density.numpy()),
                "strength": ("unit", strength),
            },
            {"score": names, "against": list(scores)},
            {"rows": len(values), "sites": " ".join(map(str, basis.reads)), "name": basis.name},
        ),
        config,
        Provenance(model.name, hashed, digest),
        recorder.cost(),
        notes,
    )


def _scores(
    basis: Basis,
    values: Float[Tensor, "row d_read"],
    target: Float[Tensor, "row d_write"],
    config: Config,
    known: Known,
) -> dict[str, float]:
    found = reconstruction(basis, values, target, config.dense).numbers()
    found |= description_length(basis, values, target, config.slack).numbers()
    if known.features is not None and known.coefficients is not None:
        codes = basis.encode_sparsely(values)
        found |= planted_recovery(basis.directions(), codes, known.features, known.coefficients).numbers()
        if known.parents is not None:
            true = known.coefficients.dense() > 0
            parents = known.parents[known.parents >= 0].unique()
            told = absorption(basis.directions(), codes, known.features, true)
            found |= {"absorption_of_parents": float(told.absorbed[parents].sum() / told.true[parents].sum())}
    if known.labels:
        with suppress(InputError):  # every latent too rare on these rows: then there is nothing to score
            found |= known_latents(basis.encode(values), binary(known.labels), seed=config.seed).numbers()
    return found


def _rows(
    model: Model, data: Any, basis: Basis, config: Config, begins: bool, recorder: Recorder
) -> tuple[Float[Tensor, "row d_read"], Float[Tensor, "row d_write"], Bool[Tensor, " place"], str]:
    """What the basis reads and writes, one row a real token; which places these are; and the hash of the data."""
    found: dict[Site, Tensor] = {}
    digest = ""
    for site in dict.fromkeys((*basis.reads, *basis.writes)):
        read, digest = values_at(model, data, site, config.rows, recorder)
        if begins:
            read[:, 0] = torch.nan
        found[site] = read.flatten(0, 1)
    values = basis.rows_of(found)
    target = values if basis.in_place else torch.cat([found[site] for site in basis.writes], -1)
    real = ~(values.isnan().any(-1) | target.isnan().any(-1))
    return values[real], target[real], real, digest


def _predicts(model: Model, data: Any, basis: Basis) -> bool:
    """Whether there is a next token to predict at the rows read."""
    return (
        bool(model.anatomies)
        and not isinstance(data, Mapping)
        and all(site.part != "path" for site in basis.writes)
    )
