"""Of what would a dictionary be made that knew the answers? Directions for every value of known attributes.

1. Each attribute (a square of a board, a part of speech) has one of a few values in each row, and each value a
   direction: the mean of the rows that have it, less the mean of all (`means`); or all directions at once by least
   squares (`together`), which tells apart attributes that come together.
2. A row is the mean, and for each attribute the direction of its value: exactly one unit of each is on, at strength 1.
3. Codes are read off by a linear reader for each attribute (ridge regression), whose largest score decides; or taken
   from the labels (`codes_of`), which shows what the directions alone can do.

What unsupervised units reach is worth comparing with this: it bounds what directions of these attributes can explain.
Makelov, Lange and Nanda (2024), Towards principled evaluations of sparse autoencoders; Karvonen et al. (2024).
It misleads as a list of what is there: it knows only the attributes it was told.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.bases.basis import Basis
from microtome.core.errors import InputError
from microtome.core.site import Site, as_site


class SupervisedDictionary(Basis):
    """Units in groups, one group for each attribute, one unit for each of its values. See `fit`."""

    def __init__(
        self,
        site: Site | str,
        attributes: Mapping[str, int],
        directions: Float[Tensor, "unit d"],
        mean: Float[Tensor, " d"],
        readers: Float[Tensor, "unit d"],
        offsets: Float[Tensor, " unit"],
    ) -> None:
        """attributes: how many values each has, in the order of units. A score is reader · value + offset."""
        if sum(attributes.values()) != len(directions) or readers.shape != directions.shape:
            raise InputError(
                f"attributes have {sum(attributes.values())} values together; got {len(directions)} directions and "
                f"{len(readers)} readers"
            )
        self.name, self.attributes = "supervised", dict(attributes)
        self.reads = self.writes = (as_site(site),)
        self.read_widths = self.write_widths = (directions.shape[1],)
        self._directions, self.mean, self._readers, self._offsets = directions, mean, readers, offsets
        self.n_units = len(directions)
        self.n_parameters = 2 * directions.numel() + mean.numel() + offsets.numel()

    @property
    def labels(self) -> tuple[str, ...]:
        """What each unit stands for: `ATTRIBUTE=VALUE`."""
        return tuple(f"{name}={value}" for name, count in self.attributes.items() for value in range(count))

    def encode(self, values: Float[Tensor, "*rows d_read"]) -> Float[Tensor, "*rows unit"]:
        """For each attribute, a one at the value whose score is largest."""
        scores = values @ self._readers.T + self._offsets
        parts = [
            torch.zeros_like(part).scatter(-1, part.argmax(-1, keepdim=True), 1.0)
            for part in scores.split(list(self.attributes.values()), -1)
        ]
        return torch.cat(parts, -1)

    def codes_of(self, labels: Mapping[str, Int[Tensor, " _"]]) -> Float[Tensor, "row unit"]:
        """Codes as the labels say. Raises `InputError` for labels that are missing or out of range."""
        return _one_hot(labels, self.attributes).to(self._directions)

    def decode(self, codes: Float[Tensor, "*rows unit"]) -> Float[Tensor, "*rows d_write"]:
        return codes @ self._directions + self.mean

    def direction(self, unit: int) -> Float[Tensor, " d_write"]:
        self.unit(unit)
        return self._directions[unit]

    def directions(self) -> Float[Tensor, "unit d_write"]:
        return self._directions


def fit(
    values: Float[Tensor, "row d"],
    labels: Mapping[str, Int[Tensor, " _"]],
    site: Site | str,
    how: Literal["means", "together"] = "together",
    ridge: float = 1e-3,
) -> SupervisedDictionary:
    """Directions and readers from labelled rows. labels: for each attribute, its value in each row, counted from 0.

    ridge: how much readers and directions are held back, in mean squares of what they multiply.
    Raises `InputError` for no labels, labels of other rows, and values of an attribute that no row has.
    """
    if not labels:
        raise InputError("there are no labels; give at least one attribute")
    attributes = {name: int(given.max()) + 1 for name, given in labels.items()}
    ones = _one_hot(labels, attributes).double()
    if len(ones) != len(values):
        raise InputError(
            f"labels are of {len(ones)} rows, values of {len(values)}; give them for the same rows"
        )
    share = ones.mean(0)
    if bool((share == 0).any()):
        named = [f"{name}={value}" for name, count in attributes.items() for value in range(count)]
        missing = [label for label, none in zip(named, (share == 0).tolist(), strict=True) if none]
        raise InputError(
            f"no row has {', '.join(missing)}; count values from 0 without gaps, or give more rows"
        )
    exact = values.double()
    mean, known = exact.mean(0), ones - share
    away = exact - mean
    if how == "means":
        directions = (ones.T @ away) / ones.sum(0)[:, None]
    else:
        directions = _ridge(known, away, ridge)
        # One-hot codes of an attribute add up to one: its directions are told up to a shift. Let them average to none.
        shift = torch.cat(
            [
                (weight @ part / weight.sum()).expand_as(part)
                for weight, part in zip(
                    _parts(share, attributes), _parts(directions, attributes), strict=True
                )
            ]
        )
        directions = directions - shift
    readers = _ridge(away, known, ridge).T
    offsets = share - readers @ mean
    return SupervisedDictionary(
        site, attributes, *(tensor.to(values.dtype) for tensor in (directions, mean, readers, offsets))
    )


def _parts(tensor: Tensor, attributes: Mapping[str, int]) -> tuple[Tensor, ...]:
    return tensor.split(list(attributes.values()))


def _ridge(
    inputs: Float[Tensor, "row a"], wanted: Float[Tensor, "row b"], ridge: float
) -> Float[Tensor, "a b"]:
    gram = inputs.T @ inputs
    held = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    found: Tensor = torch.linalg.solve(gram + held, inputs.T @ wanted)
    return found


def _one_hot(
    labels: Mapping[str, Int[Tensor, " _"]], attributes: Mapping[str, int]
) -> Int[Tensor, "row unit"]:
    parts = []
    for name, count in attributes.items():
        if name not in labels:
            raise InputError(f"there are no labels of {name}; give {', '.join(attributes)}")
        given = labels[name].long()
        if not (len(given) and 0 <= int(given.min()) <= int(given.max()) < count):
            raise InputError(f"labels of {name} run from 0 to {count - 1}; got others, or none")
        parts.append(torch.nn.functional.one_hot(given, count))
    if len({len(part) for part in parts}) > 1:
        raise InputError("attributes are labelled in different numbers of rows; give all for the same rows")
    return torch.cat(parts, -1)
