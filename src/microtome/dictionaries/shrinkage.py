"""How far do units undershoot, and how is it put right without training anew?

A penalty on strength is paid with strength: units give back less than what is there (`penalties.suppressed` says how
much less at best). Measured on planted features, whose coefficients are known:

    undershoot = 1 − what is written along the feature / the coefficient, where its unit is on

Put right on rows alone, without any truth: which units are on stays as it is; each gets a scale and a shift of its own,
`s z + t` where it was on, chosen with the bias by least squares over all rows and units at once (conjugate gradients:
nothing of units × units is written). That is a gated activation. For L1 the shift gives back the λ/2 that was paid.
Top-k and JumpReLU, whose codes cannot be shifted, get a scale, which goes into the decoder.

Wright and Sharkey (2024), Addressing feature suppression in SAEs. It misleads where directions overlap, so that units
are on for features that are not: what is best for the error is then less than the whole, as for any estimate made
through noise. `RefittedDictionary` gives back the rest.
"""

from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from microtome.bases.basis import Basis
from microtome.bases.codes import SparseCodes
from microtome.core.errors import InputError
from microtome.dictionaries.activations import Gated, MatchingPursuit, ReLU
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.drive import Entries

_TOLERANCE: Final = 1e-6  # of the gradient, relative, at which least squares are done


@torch.no_grad()
def corrected(
    dictionary: Dictionary,
    values: Float[Tensor, "row d_read"],
    wanted: Float[Tensor, "row d_write"] | None = None,
    steps: int = 100,
) -> Dictionary:
    """The dictionary whose units, where they are on, give back what they should on these rows.

    wanted: what is to be written; the values themselves where the dictionary reads what it writes. steps: at most so
    many of conjugate gradients. Units that are never on stay as they are.

    Raises `InputError` where `wanted` is missing, and for matching pursuit.
    """
    if wanted is None:
        if not dictionary.in_place:
            raise InputError(f"{dictionary.name} writes other sites than it reads; give what it should write")
        wanted = values
    if isinstance(dictionary.activation, MatchingPursuit):
        raise InputError("matching pursuit pays nothing for strength, and has nothing to be given back")
    codes = dictionary.encode_sparsely(values)
    rebuilt = dictionary.decode_sparsely(codes)
    if dictionary.skip is not None:
        rebuilt = rebuilt + values @ dictionary.skip.mT
    shifts = isinstance(dictionary.activation, ReLU | Gated)
    scale, shift, bias = _least_squares(codes, dictionary.directions(), wanted - rebuilt, shifts, steps)
    scale, bias = scale + 1, dictionary.decoder_bias + bias
    if not shifts:
        return replace(dictionary, decoder=dictionary.decoder * scale[:, None], decoder_bias=bias)
    old = dictionary.activation
    before = old if isinstance(old, Gated) else Gated(torch.ones_like(scale), torch.zeros_like(scale))
    activation = Gated(scale * before.scale, scale * before.shift + shift)
    return replace(dictionary, activation=activation, decoder_bias=bias)


def _least_squares(
    codes: SparseCodes,
    directions: Float[Tensor, "unit d"],
    left: Float[Tensor, "row d"],
    shifts: bool,
    steps: int,
) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"], Float[Tensor, " d"]]:
    """Scale and shift of each unit, and a bias, that explain most of what is left of these rows."""
    entries = Entries(codes.row, codes.unit, codes.rows, codes.units)
    basis = torch.stack([codes.value, torch.ones_like(codes.value)][: 1 + shifts])
    # In units in which each number alone would have a curvature of 1.
    norms = directions.square().sum(-1)[codes.unit]
    size = torch.stack([_summed(entries, part.square() * norms) for part in basis])
    size = torch.where(size > 0, size.clamp_min(1e-30).rsqrt(), 0.0)
    each = codes.rows**-0.5

    def forth(numbers: Float[Tensor, " number"]) -> Float[Tensor, "row d"]:
        own = numbers[: size.numel()].view_as(size) * size
        values = (own[:, codes.unit] * basis).sum(0)
        written = functional.embedding_bag(
            codes.unit, directions, entries.starts, mode="sum", per_sample_weights=values
        )
        return written + each * numbers[size.numel() :]

    def back(rows: Float[Tensor, "row d"]) -> Float[Tensor, " number"]:
        along = entries.dot(rows, directions)
        own = torch.stack([_summed(entries, part * along) for part in basis]) * size
        return torch.cat([own.flatten(), each * rows.sum(0)])

    gradient = way = back(left)
    found = torch.zeros_like(gradient)
    first = squared = float(gradient.square().sum())
    for _ in range(steps):
        if squared <= _TOLERANCE**2 * first:
            break
        moved = forth(way)
        length = squared / float(moved.square().sum())
        found = found + length * way
        left = left - length * moved
        gradient = back(left)
        following = float(gradient.square().sum())
        way = gradient + following / squared * way
        squared = following
    own = found[: size.numel()].view_as(size) * size
    return own[0], own[1] if shifts else torch.zeros_like(own[0]), each * found[size.numel() :]


def _summed(entries: Entries, numbers: Float[Tensor, " entry"]) -> Float[Tensor, " unit"]:
    total = torch.zeros(entries.units, dtype=numbers.dtype, device=numbers.device)
    return total.index_add_(0, entries.unit, numbers)


@dataclass(frozen=True, eq=False)
class Undershoot:
    """By what share of it the unit of each planted feature undershoots. NaN for features without a unit.

    whole `[feature]` = lost + by_others. lost: what is missing from all that is written, along the feature. by_others:
    what other units write along it beyond what was there of other features: the value has it, the unit has not.
    """

    whole: Float[Tensor, " feature"]
    lost: Float[Tensor, " feature"]

    @property
    def by_others(self) -> Float[Tensor, " feature"]:
        return self.whole - self.lost


@torch.no_grad()
def undershoot(
    basis: Basis,
    values: Float[Tensor, "row d"],
    features: Float[Tensor, "feature d"],
    coefficients: SparseCodes,
    least_cosine: float = 0.9,
) -> Undershoot:
    """By what share the nearest unit of each planted feature undershoots it, in rows where both are on.

    features: with their norms. coefficients: of the same rows. NaN for a feature to which no unit comes as near as
    `least_cosine`, or with which its unit is never on.
    """
    codes, directions = basis.encode_sparsely(values), basis.directions()
    lengths, pointing = features.norm(dim=-1), functional.normalize(features, dim=-1)
    near, unit = (pointing @ functional.normalize(directions, dim=-1).mT).max(-1)
    # Where in the codes a feature's unit stands in the same row: both are sorted by row, then by unit.
    there = codes.row * codes.units + codes.unit
    asked = coefficients.row * codes.units + unit[coefficients.unit]
    place = torch.searchsorted(there, asked).clamp_max(max(len(there) - 1, 0))
    both = there[place] == asked if len(there) else torch.zeros_like(asked, dtype=torch.bool)
    together = Entries(coefficients.row[both], coefficients.unit[both], codes.rows, len(features))
    feature = together.unit
    written = codes.value[place[both]] * directions.norm(dim=-1)[unit[feature]] * near[feature]
    left = together.dot(values - basis.reconstruct(values), pointing)
    true = _summed(together, coefficients.value[both] * lengths[feature])
    measured = (near >= least_cosine) & (true > 0)
    whole, lost = 1 - _summed(together, written) / true, _summed(together, left) / true
    return Undershoot(*(torch.where(measured, share, torch.nan) for share in (whole, lost)))
