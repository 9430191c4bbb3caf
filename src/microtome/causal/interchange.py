"""What does the network say when variables come from other inputs? Pairs of rows, drawn and exchanged exactly.

1. Every row gets a source row for each variable that is exchanged (one for all of them, or one each).
2. The causal model says what is due. Half the rows get sources that change what is due, where such are found: a
   network that ignores the exchange would be right on the others.
3. What stands at the variables' locations in the sources' own runs is put there, and the network's answers are read.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from microtome.core.cost import Recorder
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.data.causal_model import UNASKED, Values
from microtome.data.hypothesis import Hypothesis, Location
from microtome.models.components import components
from microtome.models.model import Model
from microtome.models.sweep import Variant, sweep

_CANDIDATES = 16
Rows = Int[Tensor, " pair"]


@dataclass(frozen=True, eq=False)
class Exchanges:
    """Which variables are exchanged, in rows `base`, each from its rows of `sources`, by name.

    due: what the causal model then answers. changed: where that is another answer than the base row's own.
    """

    base: Rows
    sources: dict[str, Rows]
    due: Values
    changed: Bool[Tensor, " pair"]

    @property
    def names(self) -> tuple[str, ...]:
        """The variables."""
        return tuple(self.sources)


def draw(
    hypothesis: Hypothesis, names: Sequence[str], base: Rows, source: torch.Generator, multiple: bool = False
) -> Exchanges:
    """Sources for these base rows. multiple: each variable gets a source of its own.

    Raises `InputError` where no row has an exchange that changes an answer: then nothing could be shown.
    """
    tokens, n = hypothesis.tokens, len(base)
    total = len(tokens)
    shape = (len(names) if multiple else 1, n, _CANDIDATES)
    # Any row but the base row itself.
    drawn = (base[None, :, None] + torch.randint(1, total, shape, generator=source)) % total
    drawn[..., -1] = base  # nothing is exchanged where no source is any good
    chosen = drawn.flatten(1)
    given = {
        name: hypothesis.values[name][chosen[place if multiple else 0]] for place, name in enumerate(names)
    }
    repeated = base.repeat_interleave(_CANDIDATES)
    due = hypothesis.model.run(tokens[repeated], given)[hypothesis.model.answer].unflatten(
        0, (n, _CANDIDATES)
    )
    own = hypothesis.answers[base][:, None]
    # A causal model may have no answer to values that never meet.
    possible = ((due == UNASKED) == (own == UNASKED)).all(-1)
    changed = (due != own).any(-1) & possible
    if not changed.any():
        raise InputError(
            f"exchanging {' and '.join(names)} changes no answer of the causal model on these rows, so no network "
            "could fail; leave the variable out, or give rows where it matters"
        )
    # The first candidate that changes the answer, for every other row; the first possible one for the rest.
    wanted = (possible.int() + changed.int()).argmax(-1)
    wanted[1::2] = possible[1::2].int().argmax(-1)
    pair = torch.arange(n)
    sources = {name: drawn[place if multiple else 0, pair, wanted] for place, name in enumerate(names)}
    return Exchanges(base, sources, due[pair, wanted], changed[pair, wanted])


def exchanges(
    hypothesis: Hypothesis, rows: Rows, largest: int, most: int, source: torch.Generator
) -> tuple[list[Exchanges], tuple[str, ...]]:
    """Each variable alone, then sets of them from one source and from one each, `most` sets drawn at random if there
    are more; and what could not be shown.

    Raises `InputError` where no exchange changes an answer.
    """
    found, notes = [], []
    single: list[tuple[tuple[str, ...], bool]] = []
    several: list[tuple[tuple[str, ...], bool]] = []
    for names, multiple in _sets(hypothesis.model.inner, largest):
        (several if len(names) > 1 else single).append((names, multiple))
    if len(several) > most:
        notes.append(f"Of {len(several)} ways to exchange several variables, {most} were drawn at random.")
        several = [several[i] for i in sorted(torch.randperm(len(several), generator=source)[:most].tolist())]
    for names, multiple in single + several:
        try:
            found.append(draw(hypothesis, names, rows, source, multiple))
        except InputError as error:
            notes.append(f"Not tried: {error}")
    if not found:
        raise InputError(
            notes[-1].removeprefix("Not tried: ")
            if notes
            else "the causal model has no variable but the answer; there is nothing to exchange"
        )
    return found, tuple(notes)


def bases(hypothesis: Hypothesis, count: int, source: torch.Generator) -> Rows:
    """So many rows, each once if there are enough."""
    total = len(hypothesis.tokens)
    order = torch.cat([torch.randperm(total, generator=source) for _ in range(-(-count // total))])
    return order[:count]


def check_fit(model: Model, hypothesis: Hypothesis) -> dict[Site, Tensor]:
    """The values of all rows at every site of the hypothesis, from the network's own runs.

    Raises `SiteError` for what this network does not have, `InputError` for directions that do not fit their site.
    """
    found = model.run(hypothesis.tokens, hypothesis.sites, logits=False).values if hypothesis.sites else {}
    for name, location in hypothesis.locations.items():
        if location.directions is None:
            continue
        width, rank = found[location.sites[0]].shape[-1], len(location.directions)
        if location.directions.shape[1] != width or rank > width:
            raise InputError(
                f"{name} has {rank} directions of {location.directions.shape[1]} units, but {location.sites[0]} is "
                f"{width} wide; give directions [direction, {width}], no more than {width}"
            )
    return dict(found)


def exchanged(
    model: Model,
    hypothesis: Hypothesis,
    values: dict[Site, Tensor],
    some: Sequence[Exchanges],
    recorder: Recorder,
) -> Float[Tensor, "exchange pair place token"]:
    """Logits at the places asked for (`places`) after each of these exchanges, which share their base rows.

    values: at the hypothesis' sites, of all rows, as the network computes them by itself.
    """
    site = Site("logits", positions=places(hypothesis))
    found = sweep(model, hypothesis.tokens[some[0].base], variants(hypothesis, values, some), read=[site])
    recorder.include(found.cost)
    return found.values[site]


def variants(hypothesis: Hypothesis, values: dict[Site, Tensor], some: Sequence[Exchanges]) -> list[Variant]:
    """The exchanges as edits of the base rows."""
    found = []
    for one in some:
        edits = []
        for name in one.names:
            location = hypothesis.locations[name]
            edits += location.edits({site: values[site][one.sources[name]] for site in location.sites})
        found.append(Variant(tuple(edits)))
    return found


def counting(hypothesis: Hypothesis, name: str) -> Bool[Tensor, " column"]:
    """At which places the variable's value changes an answer, for some row and the row after it."""
    return hypothesis.model.matters(hypothesis.tokens, hypothesis.tokens.roll(-1, 0), name)


def places(hypothesis: Hypothesis) -> tuple[int, ...]:
    """The columns where an answer is asked in some row."""
    columns: list[int] = hypothesis.asked.any(0).nonzero()[:, 0].tolist()
    return tuple(columns)


def right(said: Int[Tensor, "pair place"], due: Values, columns: tuple[int, ...]) -> Bool[Tensor, " pair"]:
    """Whether a row is answered as due at every place that is asked."""
    wanted = due[:, list(columns)]
    return ((said == wanted) | (wanted == UNASKED)).all(-1)


def said_by_itself(model: Model, hypothesis: Hypothesis) -> Int[Tensor, "row place"]:
    """What the network answers to all rows when nothing is exchanged."""
    site = Site("logits", positions=places(hypothesis))
    return hypothesis.said(model.run(hypothesis.tokens, [site])[site])


def agreement(
    model: Model, hypothesis: Hypothesis, some: Sequence[Exchanges], recorder: Recorder
) -> tuple[Bool[Tensor, "exchange pair"], Tensor]:
    """Whether each row is answered as due after each exchange, and what is said `[exchange, pair, place]`."""
    values = check_fit(model, hypothesis)
    recorder.add(passes=1)
    said = hypothesis.said(exchanged(model, hypothesis, values, some, recorder))
    columns = places(hypothesis)
    hits = [right(row, one.due, columns) for row, one in zip(said, some, strict=True)]
    return torch.stack(hits), said


def elsewhere(model: Model, hypothesis: Hypothesis, source: torch.Generator) -> Hypothesis | None:
    """The same hypothesis with its variables at random places of the same kind, or `None` where there are none.

    As many random directions at the same site; instead of whole heads and MLPs, others that the hypothesis leaves out.
    """
    free: list[Site] = []
    if model.anatomies:
        taken = {replaced for site in hypothesis.sites for replaced in (_component(site),)}
        free = [site for site in components(model) if site not in taken]
    order = [free[i] for i in torch.randperm(len(free), generator=source).tolist()]
    found: dict[str, Location] = {}
    for name, location in hypothesis.locations.items():
        if location.directions is not None:
            drawn = torch.randn(location.directions.T.shape, generator=source)
            found[name] = Location(location.sites, torch.linalg.qr(drawn).Q.T.contiguous())
            continue
        if any(_component(site) not in components(model) for site in location.sites):
            return None
        if len(order) < len(location.sites):
            return None
        new, order = order[: len(location.sites)], order[len(location.sites) :]
        found[name] = Location(
            [
                site if old.positions is None else site.at(*old.positions)
                for site, old in zip(new, location.sites, strict=True)
            ]
        )
    return hypothesis.at(**found)


def _component(site: Site) -> Site:
    """The head or MLP that a site is of, whatever positions it selects."""
    return Site(site.part, site.layer, heads=site.heads, stack=site.stack)


def _sets(names: tuple[str, ...], largest: int) -> Iterator[tuple[tuple[str, ...], bool]]:
    for size in range(1, min(largest, len(names)) + 1):
        for some in itertools.combinations(names, size):
            yield some, False
            if size > 1:
                yield some, True
