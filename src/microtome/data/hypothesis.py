"""What is a network said to compute, and where? A causal model, a location for each of its variables, and inputs.

    adds = Hypothesis(
        CausalModel((Variable("left", …), Variable("right", …), Variable("sum", ("left", "right"), …))),
        {"left": Location("z.0.h1"), "right": Location("resid_post.1@-1", directions)},
        tokens,
    )

1. Each variable but the answer stands at a location: whole sites, or the span of directions at one site.
2. The answer stands in the logits, the tokens in the input.
3. One object is tried in several ways: by exchanging variables between inputs, step by step, or by scrubbing.

Reference: Geiger et al. (2021), Causal Abstractions of Neural Networks; Chan et al. (2022), Causal Scrubbing, whose
hypothesis (G, I, c) is this too: the network, the causal model, and the locations.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core.edits import Edit, Set, Swap
from microtome.core.errors import InputError
from microtome.core.provenance import hash_tensors
from microtome.core.site import Site, as_site
from microtome.data.causal_model import UNASKED, CausalModel, Values


@dataclass(frozen=True, eq=False)
class Location:
    """Where a variable stands.

    sites: one or more, as sites or strings; held as a tuple of sites. directions `[direction, d]`: the variable fills
    their span only, along the last axis of the one site; `None` for all that stands there.

    Raises `InputError` for no site, a gradient, and for directions that are none, not finite, dependent, or at several
    sites.
    """

    sites: Any
    directions: Tensor | None = None

    def __post_init__(self) -> None:
        given = (self.sites,) if isinstance(self.sites, (str, Site)) else tuple(self.sites)
        object.__setattr__(self, "sites", tuple(as_site(site) for site in given))
        if not self.sites or len({*self.sites}) != len(self.sites):
            raise InputError(f"a location names each of its sites once, at least one; got {self}")
        if any(site.gradient for site in self.sites):
            raise InputError(f"{self} is a gradient, where no variable can be put; name the site itself")
        if self.directions is not None:
            self._check_directions(self.directions)

    def _check_directions(self, directions: Tensor) -> None:
        if len(self.sites) != 1:
            raise InputError(
                f"directions belong to one site, got {len(self.sites)}; leave them out for whole sites"
            )
        if directions.dim() != 2 or not len(directions) or not directions.isfinite().all():
            raise InputError(
                f"directions at {self} must be finite numbers [direction, d], got shape {list(directions.shape)}"
            )
        if (rank := int(torch.linalg.matrix_rank(directions.double()))) < len(directions):
            raise InputError(
                f"{len(directions)} directions at {self} span {rank} dimensions of {directions.shape[1]}; "
                "give as many as the variable fills"
            )

    def __str__(self) -> str:
        named = " + ".join(map(str, self.sites))
        return named if self.directions is None else f"{named} in {len(self.directions)} directions"

    def edits(self, values: Mapping[Site, Tensor]) -> list[Edit]:
        """Put the variable to what stands in `values`, which has `[row, …]` of each site."""
        if self.directions is not None:
            (site,) = self.sites
            return [Swap(site, directions=self.directions, value=values[site])]
        return [Set(site, value=values[site], origin="patch") for site in self.sites]

    def overlaps(self, other: "Location") -> bool:
        """Whether what one variable fills is, in part, what the other fills, as far as their sites tell."""
        for one in self.sites:
            for two in other.sites:
                if one.whole == two.whole and _meet(one, two):
                    both = (self.directions, other.directions)
                    if both[0] is None or both[1] is None:
                        return True
                    return int(torch.linalg.matrix_rank(torch.cat(both).double())) < sum(map(len, both))  # type: ignore[arg-type]
        return False


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """An algorithm, where its variables stand, and the inputs `[row, column]` (none padded) that it speaks of.

    choices: token ids among which the network's answer is the one of largest logit; empty for the whole vocabulary.

    Raises `InputError` for a variable without a location and the reverse, two variables in one place, fewer than two
    different rows, and rows of which nothing is asked.
    """

    model: CausalModel
    locations: Mapping[str, Location]
    tokens: Int[Tensor, "row column"]
    choices: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if unmapped := {*self.model.inner} - {*self.locations}:
            raise InputError(
                f"the variables {sorted(unmapped)} have no location; say where each of {list(self.model.inner)} "
                "stands, or leave them out of the model with `keeping`"
            )
        if unknown := {*self.locations} - {*self.model.inner}:
            raise InputError(
                f"locations of {sorted(unknown)}, expected only those of {list(self.model.inner)}"
            )
        names = list(self.locations)
        for place, one in enumerate(names):
            for two in names[:place]:
                if self.locations[one].overlaps(self.locations[two]):
                    raise InputError(
                        f"{one} and {two} both stand at {self.locations[one]}; give each its own"
                    )
        if len(self.tokens.unique(dim=0)) < 2:
            raise InputError("a hypothesis is tried on two different rows of tokens at least")
        if not self.asked.any(-1).all():
            raise InputError("some row of tokens is asked nothing: its answers are UNASKED at every place")
        if self.choices and (strange := {*self.answers[self.asked].tolist()} - {*self.choices}):
            raise InputError(f"the answers {sorted(strange)[:5]} are not among the choices {self.choices}")

    @cached_property
    def values(self) -> dict[str, Values]:
        """The value of every variable at every place of every row."""
        return self.model.run(self.tokens)

    @property
    def answers(self) -> Values:
        """What is right, `UNASKED` where nothing is asked."""
        return self.values[self.model.answer]

    @property
    def asked(self) -> Bool[Tensor, "row column"]:
        """Where an answer is asked."""
        return self.answers != UNASKED

    def said(self, logits: Float[Tensor, "*some token"]) -> Int[Tensor, "*some"]:
        """The network's answers: the choices of largest logit."""
        if not self.choices:
            return logits.argmax(-1)
        choices = torch.tensor(self.choices, device=logits.device)
        return choices[logits[..., choices].argmax(-1)]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site where a variable stands."""
        return tuple(dict.fromkeys(site for one in self.locations.values() for site in one.sites))

    @property
    def hash(self) -> str:
        """SHA-256 over the tokens and what the causal model makes of them."""
        return hash_tensors({"tokens": self.tokens, **{f"value.{k}": v for k, v in self.values.items()}})

    def keeping(self, names: Collection[str]) -> "Hypothesis":
        """The same with these variables alone; what is left out is computed on the way."""
        model = self.model.keeping(names)
        return replace(self, model=model, locations={name: self.locations[name] for name in model.inner})

    def at(self, **locations: Location) -> "Hypothesis":
        """The same with some variables elsewhere."""
        return replace(self, locations={**self.locations, **locations})

    def rows(self, rows: Sequence[int] | Int[Tensor, " some"]) -> "Hypothesis":
        """The same, of these rows alone."""
        return replace(self, tokens=self.tokens[torch.as_tensor(rows)])

    def split(self, fraction: float, seed: int = 0) -> tuple["Hypothesis", "Hypothesis"]:
        """Two hypotheses about different rows, the first about this share of them. Rows that are equal stay together.

        Raises `InputError` where one would have fewer than two different rows.
        """
        rows = self.tokens.unique(dim=0)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        count = round(fraction * len(rows))
        if not 2 <= count <= len(rows) - 2:
            raise InputError(f"{len(rows)} different rows cannot be split at {fraction}; two on each side")
        rows = rows[order]
        return replace(self, tokens=rows[:count]), replace(self, tokens=rows[count:])

    def told(self) -> str:
        """In words: `left at z.0.h1; sum (left, right) at mlp_out.1`."""
        return "; ".join(
            f"{name} ({', '.join(self.model.parents(name))}) at {self.locations[name]}"
            for name in self.model.inner
        )


def _meet(one: Site, two: Site) -> bool:
    pairs = ((one.heads, two.heads), (one.units, two.units), (one.positions, two.positions))
    return all(a is None or b is None or bool({*a} & {*b}) for a, b in pairs)
