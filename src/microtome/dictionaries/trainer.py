"""How are dictionaries trained? Many at once on one stream, so that its batches are made once for all of them.

    one, = train(stream, [Recipe(width=4096, l0=32)])
    frontier = train(stream, sweep(Recipe(width=4096), l0=[16, 32, 64], seed=[0, 1, 2]), folder="frontier")

1. The first batches say the footing (`preparation`) and the first directions; they are trained on like all others.
2. Each batch goes to every learner that is not done; now and then all of them are measured, in the form that they
   will have when training is over: on rows held out, or on the batch before it is learned from.
3. With a folder, all is kept there every so often, in one file, written whole. Training that was killed goes on from
   that file and ends bit for bit as if it had not been: batches depend on their number alone. Another stream, recipe,
   layout, target, or other rows held out, are another training, and refused.

Ctrl-C ends after the step at hand, with everything kept. A loss that is NaN ends with an error that says where; the
file stays as it was last kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from microtome.bases.streams import Stream
from microtome.core.errors import InputError, NotFiniteError
from microtome.core.provenance import Provenance, hash_tensors
from microtome.core.site import Site
from microtome.dictionaries.checkpoint import Checkpoint, Interruption
from microtome.dictionaries.dictionary import Dictionary
from microtome.dictionaries.layout import Layout, columns
from microtome.dictionaries.learner import Learner, Taken
from microtome.dictionaries.preparation import Preparation, prepare
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.scene import OwnUnits, Target, squared_error, told

Report = Callable[[int, Sequence[Taken | None]], None]
_FIRST: Final = 4  # batches that say the footing
_MEASURED: Final = 50  # times, in a training


@dataclass(frozen=True)
class Measured:
    """A dictionary at one step of its training.

    loss, error: of the batch, see `Taken`. dead: share of units. on: units on in a row; explained: one minus the
    squared error over the squared distance from the mean: both as the dictionary would be used, on the rows measured.
    """

    step: int
    loss: float
    error: float
    dead: float
    on: float
    explained: float


@dataclass(frozen=True, eq=False)
class Trained:
    """A dictionary with the log of its training, whose last entry was taken when it was over."""

    dictionary: Dictionary
    recipe: Recipe
    log: tuple[Measured, ...]

    @property
    def final(self) -> Measured:
        return self.log[-1]


def train(
    stream: Stream,
    recipes: Sequence[Recipe],
    *,
    layout: Layout | None = None,
    held_out: Float[Tensor, "row d"] | None = None,
    folder: str | Path | None = None,
    keep_every: int = 500,
    provenance: Provenance | None = None,
    target: Target | OwnUnits = squared_error,
    learner: type[Learner] = Learner,
    device: torch.device | str | None = None,
    report: Report | None = None,
) -> list[Trained]:
    """A dictionary for each recipe, in their order.

    stream: batches by number, whose sites lie side by side. layout: which of them are read, which written; by default
    all are both. held_out: rows like the stream's, to measure on. folder: where the training is kept, and taken up
    where it was left; keep_every: so many steps. target: the loss, given what was rebuilt and what was wanted, both
    as prepared, or as they were (`OwnUnits`, such as a loss of the model's outputs). learner: of several processes
    that share the work, `DataParallel` or `Sharded` (`parallel`). report: called after each step
    with its number and what each learner took (None if it is done).

    Raises `InputError` for a stream with fewer batches than steps, sites it does not bring, and where all units are
    dead; `NotFiniteError` for NaN or infinity in values or losses; `StoreError` for a folder that holds another
    training or a damaged one, or cannot be written.
    """
    if not recipes:
        raise InputError("there is no recipe; give at least one")
    steps = max(recipe.steps for recipe in recipes)
    if stream.n_steps is not None and stream.n_steps < steps:
        raise InputError(
            f"the stream has {stream.n_steps} batches of {stream.batch_rows} rows, the recipes ask for {steps}; "
            "give more values, more epochs, or ask for fewer steps"
        )
    sites = stream.sites or (Site.module("values"),)
    layout = layout or Layout(sites, sites)
    reader = _Reader(stream, sites, layout, device)
    learners = _begin(reader, recipes, layout, learner)
    log: list[list[Measured]] = [[] for _ in recipes]
    kept = None
    if folder is not None:
        identity = {
            "stream": stream.identity,
            "recipes": [recipe.model_dump(mode="json") for recipe in recipes],
            "layout": layout.told(),
            "target": told(target),
            "rows held out": None if held_out is None else hash_tensors({"rows": held_out}),
        }
        kept = Checkpoint(Path(folder), identity)
    step = 0
    if kept is not None and (found := kept.read()) is not None:
        step = found.step
        for number, one in enumerate(learners):
            one.restore(found.tensors[number], found.held[number], min(step, one.recipe.steps))
        log = [[Measured(**entry) for entry in entries] for entries in found.log]

    stream.seek(step)
    every = max(1, steps // _MEASURED)
    test = None if held_out is None else reader.parts(held_out)
    with Interruption(active=kept is not None) as interruption:
        while step < steps:
            batch = reader.next()
            taken = [
                _learned(one, entries, batch, test or batch, target, every, kept)
                for one, entries in zip(learners, log, strict=True)
            ]
            step += 1
            if report is not None:
                report(step, taken)
            asked = learner.agreed(interruption.asked)
            if kept is not None and (step % keep_every == 0 or step == steps or asked):
                logs = [[asdict(entry) for entry in entries] for entries in log]
                states = [one.state() for one in learners]
                if learner.keeps():
                    kept.write(step, states, [one.held for one in learners], logs)
            if asked:
                raise KeyboardInterrupt
    return [
        Trained(one.dictionary(provenance), one.recipe, tuple(entries))
        for one, entries in zip(learners, log, strict=True)
    ]


class _Reader:
    """Batches as learners take them: what is read, what is to be written; one tensor where that is the same."""

    def __init__(
        self, stream: Stream, sites: tuple[Site, ...], layout: Layout, device: torch.device | str | None
    ) -> None:
        self.stream, self.layout, self._device = stream, layout, device
        self._sites = sites
        widths = dict(zip(sites, stream.widths, strict=True))
        columns(torch.zeros(1, sum(stream.widths)), sites, stream.widths, layout.reads + layout.writes)
        self.widths = (
            tuple(widths[site] for site in layout.reads),
            tuple(widths[site] for site in layout.writes),
        )

    def next(self) -> tuple[Tensor, Tensor]:
        return self.parts(next(iter(self.stream)))

    def parts(self, rows: Float[Tensor, "row d"]) -> tuple[Tensor, Tensor]:
        if rows.shape[1] != sum(self.stream.widths):
            raise InputError(
                f"expected rows of {sum(self.stream.widths)} numbers, as the stream's; got {rows.shape[1]}"
            )
        rows = rows.to(self._device or rows.device, torch.float32)
        read = columns(rows, self._sites, self.stream.widths, self.layout.reads)
        if self.layout.in_place:
            return read, read
        return read, columns(rows, self._sites, self.stream.widths, self.layout.writes)


def _begin(reader: _Reader, recipes: Sequence[Recipe], layout: Layout, kind: type[Learner]) -> list[Learner]:
    """Learners on their footings. Recipes that ask for the same footing share it."""
    reader.stream.seek(0)
    count = min(_FIRST, reader.stream.n_steps or _FIRST)
    batches = [reader.next() for _ in range(count)]
    read = torch.cat([kind.first_rows(one) for one, _ in batches])
    first = (
        (read, read)
        if layout.in_place
        else (read, torch.cat([kind.first_rows(other) for _, other in batches]))
    )
    footings: dict[tuple[str, str], tuple[Preparation, Preparation]] = {}
    learners = []
    for recipe in recipes:
        ways = (recipe.centring, recipe.scaling)
        if ways not in footings:
            one = prepare(first[0], reader.widths[0], *ways)
            footings[ways] = (one, one if layout.in_place else prepare(first[1], reader.widths[1], *ways))
        learners.append(kind(recipe, layout, reader.widths, footings[ways], first))
    return learners


def _learned(
    learner: Learner,
    log: list[Measured],
    batch: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    target: Target | OwnUnits,
    every: int,
    kept: Checkpoint | None,
) -> Taken | None:
    """One step of one learner, measured before it is taken if it is due, and after the last."""
    step, last = learner.step, learner.recipe.steps - 1
    if step > last:
        return None
    shown = measured(learner.dictionary(), *test) if step % every == 0 else None
    try:
        taken = learner.learn(*batch, target)
    except NotFiniteError as error:
        where = (
            f". The last good state, of an earlier step, is in {kept.path}"
            if kept and kept.path.exists()
            else ""
        )
        raise NotFiniteError(f"{error}{where}") from error
    dead = taken.dead / learner.recipe.width
    if shown is not None:
        log.append(Measured(step, taken.loss, taken.error, dead, *shown))
    if step == last:
        shown = measured(learner.dictionary(), *test)
        log.append(Measured(step + 1, taken.loss, taken.error, dead, *shown))
    return taken


@torch.no_grad()
def measured(
    dictionary: Dictionary, values: Float[Tensor, "row d_read"], wanted: Float[Tensor, "row d_write"]
) -> tuple[float, float]:
    """Units on in a row, and the share of the variance of what is wanted that is explained."""
    codes = dictionary.encode_sparsely(values)
    rebuilt = dictionary.decode_sparsely(codes)
    if dictionary.skip is not None:
        rebuilt = rebuilt + values @ dictionary.skip.mT
    wrong = (wanted - rebuilt).double().square().sum()
    varied = (wanted - wanted.mean(0)).double().square().sum()
    return len(codes.value) / len(values), float(1 - wrong / varied)
