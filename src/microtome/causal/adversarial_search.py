"""Which inputs would a wrong hypothesis fail on? Trials of what it predicts, tried in the order that it fears most.

1. A trial is a kind of change, a base row and a source row. The kinds: nothing is changed; variables take the values
   that they have in the source; all that the hypothesis calls irrelevant is drawn anew (`causal_scrubbing`).
2. The causal model says what is due. A trial is a counterexample where the network answers otherwise. Its margin is
   the logit of what is due minus the largest other one, where that is least.
3. The hypothesis divides inputs by the values of its variables, and calls all trials of one cell alike. So cells that
   were least tried come first; among them those where it commits itself (the answer must change, or, with the same
   value from another row, must not); among those the rarest, which chance would try last.
4. After each round a quarter of the next goes to trials that share a cell, a base or a source with those of least
   margin; three quarters as soon as one failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from microtome.causal.interchange import check_fit, counting, places, right
from microtome.causal.scrub import Scrub
from microtome.core.cost import Recorder
from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection
from microtome.core.site import Site
from microtome.data.causal_model import UNASKED, Values
from microtome.data.hypothesis import Hypothesis
from microtome.models.model import Model

SCRUBBED = ("*",)
"""The kind in which everything irrelevant is drawn anew."""
Rows = Int[Tensor, " trial"]
Indices = Int[NDArray[np.integer], "_"]


def told(kind: tuple[str, ...]) -> str:
    """A kind of trial in words."""
    return "all that is irrelevant" if kind == SCRUBBED else " + ".join(kind) or "nothing"


@dataclass(frozen=True, eq=False)
class Trials:
    """kind: a number in `Search.kinds`. due: what the causal model answers. cell: the same for trials said to be alike.
    commits: whether the answer must change, or must not although another row's value is put in."""

    kind: Rows
    base: Rows
    source: Rows
    due: Values
    cell: Int[NDArray[np.integer], " trial"]
    commits: Bool[Tensor, " trial"]

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True, eq=False)
class Tried:
    """Trials in the order in which they were tried. hit: a counterexample. said: what the network answered."""

    order: Int[NDArray[np.integer], " tried"]
    hit: Bool[NDArray[np.bool_], " tried"]
    margin: Float[NDArray[np.floating], " tried"]
    said: Int[Tensor, "tried place"]

    @property
    def first(self) -> float:
        """The number, from 1, of the first counterexample; NaN where there is none."""
        return float(self.hit.argmax() + 1) if self.hit.any() else float("nan")


@dataclass(frozen=True, eq=False)
class Search:
    """A network, a hypothesis about it, and the kinds of trials."""

    model: Model
    hypothesis: Hypothesis
    kinds: tuple[tuple[str, ...], ...]
    source: torch.Generator
    recorder: Recorder

    def drawn(self, count: int) -> Trials:
        """So many trials: kind, base and source at random, among those in which the same places are asked."""
        data, total = self.hypothesis, len(self.hypothesis.tokens)
        kind, base, other = (
            torch.randint(most, (count,), generator=self.source) for most in (len(self.kinds), total, total)
        )
        own = data.answers[base]
        due, same = own.clone(), torch.zeros(count, dtype=torch.bool)
        # What is alike: the values that are exchanged here and there, at the places where they count.
        cells: list[tuple[int, ...]] = list(zip(kind.tolist(), base.tolist(), strict=True))
        for number, names in enumerate(self.kinds):
            mine = (kind == number).nonzero()[:, 0]
            if not names or names == SCRUBBED:
                other[mine] = base[mine]
                continue
            given = {name: data.values[name][other[mine]] for name in names}
            due[mine] = data.model.run(data.tokens[base[mine]], given)[data.model.answer]
            here, there = (
                torch.cat([data.values[name][rows[mine]][:, self.counting[name]] for name in names], dim=1)
                for rows in (base, other)
            )
            same[mine] = (here == there).all(dim=1) & (
                data.tokens[base[mine]] != data.tokens[other[mine]]
            ).any(1)
            for place, trial in enumerate(mine.tolist()):
                cells[trial] = (number, *here[place].tolist(), *there[place].tolist())
        possible = ((due == UNASKED) == (own == UNASKED)).all(dim=1)
        commits = same | (due != own).any(dim=1)
        numbers = {label: number for number, label in enumerate(dict.fromkeys(cells))}
        cell = np.array([numbers[label] for label in cells])
        kept = possible.nonzero()[:, 0]
        return Trials(kind[kept], base[kept], other[kept], due[kept], cell[kept.numpy()], commits[kept])

    def in_order(self, trials: Trials, count: int) -> Tried:
        """The first of them, as they were drawn."""
        order = np.arange(min(count, len(trials)))
        return Tried(order, *self._run(trials, order))

    def guided(self, trials: Trials, count: int, rounds: int) -> Tried:
        """As many, in the order that the hypothesis and the trials before suggest."""
        count = min(count, len(trials))
        order = np.zeros(0, dtype=int)
        hits: list[NDArray[np.bool_]] = []
        margins: list[NDArray[np.floating]] = []
        said: list[Tensor] = []
        share = 0.0
        for portion in np.array_split(np.arange(count), min(rounds, count)):
            near = self._nearest(
                trials, order, np.concatenate([np.zeros(0), *margins]), int(share * len(portion))
            )
            chosen = self._chosen(trials, order, near, len(portion))
            hit, margin, answers = self._run(trials, chosen)
            share = max(share, 0.75 if hit.any() else 0.25)
            order = np.concatenate([order, chosen])
            hits.append(hit)
            margins.append(margin)
            said.append(answers)
        return Tried(order, np.concatenate(hits), np.concatenate(margins), torch.cat(said))

    def _nearest(
        self, trials: Trials, order: Indices, margins: Float[NDArray[np.floating], " tried"], count: int
    ) -> Indices:
        """Those not yet tried that are likest to what came nearest to failing."""
        if not count:
            return np.zeros(0, dtype=int)
        guess = self._guess(trials, order, margins)
        guess[order] = np.inf
        return np.argsort(guess, kind="stable")[:count]

    def _chosen(self, trials: Trials, order: Indices, near: Indices, count: int) -> Indices:
        """The next trials: these, and those of cells that were least tried, of all kinds alike."""
        free = np.ones(len(trials), dtype=bool)
        free[order] = free[near] = False
        visits = np.bincount(trials.cell[order], minlength=int(trials.cell.max()) + 1)
        kinds = np.bincount(trials.kind.numpy()[order], minlength=len(self.kinds)).astype(float)
        rarity = np.bincount(trials.cell)
        left = free.nonzero()[0]
        cells = trials.cell[left]
        ranked = left[np.lexsort((rarity[cells], ~trials.commits.numpy()[left], visits[cells]))]
        found: list[int] = []
        queues = [iter(ranked[trials.kind.numpy()[ranked] == kind]) for kind in range(len(self.kinds))]
        seen: set[int] = set()
        while len(found) < count - len(near):
            kind = int(kinds.argmin())
            trial = next((one for one in queues[kind] if int(trials.cell[one]) not in seen), None)
            if trial is None:
                kinds[kind] = np.inf
                if np.isinf(kinds).all():
                    break
                continue
            seen.add(int(trials.cell[trial]))
            kinds[kind] += 1
            found.append(int(trial))
        taken = {*found, *near.tolist()}
        rest = [one for one in ranked.tolist() if one not in taken][: count - len(taken)]
        return np.array([*near, *found, *rest], dtype=int)

    def _guess(
        self, trials: Trials, order: NDArray[np.integer], margins: NDArray[np.floating]
    ) -> Float[NDArray[np.floating], " trial"]:
        """The mean margin of what was tried with the same cell, base or source, as far as there is any."""
        rows = len(self.hypothesis.tokens)
        kind, base, source = (one.numpy() for one in (trials.kind, trials.base, trials.source))
        total, count = np.zeros(len(trials)), np.zeros(len(trials))
        for key in (trials.cell, kind * rows + base, kind * rows + source, kind):
            size = int(key.max()) + 1
            times = np.bincount(key[order], minlength=size)
            sums = np.bincount(key[order], weights=margins, minlength=size)
            known = times[key] > 0
            total += np.where(known, sums[key] / np.maximum(times[key], 1), 0.0)
            count += known
        return np.where(count > 0, total / np.maximum(count, 1), np.inf)

    def _run(self, trials: Trials, chosen: Indices) -> tuple[NDArray[np.bool_], NDArray[np.floating], Tensor]:
        """Whether each is a counterexample, its margin, and the network's answers."""
        columns = places(self.hypothesis)
        picked = torch.from_numpy(np.asarray(chosen, dtype=np.int64))
        said = torch.zeros(len(picked), len(columns), dtype=torch.long)
        margin = torch.zeros(len(picked))
        for number, names in enumerate(self.kinds):
            mine = (trials.kind[picked] == number).nonzero()[:, 0]
            if not len(mine):
                continue
            some = picked[mine]
            logits = self.logits(names, trials.base[some], trials.source[some])
            said[mine] = self.hypothesis.said(logits).cpu()
            margin[mine] = self._margin(logits, trials.due[some][:, list(columns)])
        hit = ~right(said, trials.due[picked], columns)
        return hit.numpy(), margin.numpy(), said

    def logits(self, names: Sequence[str], base: Rows, source: Rows) -> Float[Tensor, "trial place token"]:
        """What the network gives where it is asked, with these variables taken from the source rows."""
        data = self.hypothesis
        if tuple(names) == SCRUBBED:
            return self._scrub.logits(base)
        edits = []
        for name in names:
            location = data.locations[name]
            edits += location.edits({site: self._values[site][source] for site in location.sites})
        self.recorder.add(passes=1)
        run = self.model.run(data.tokens[base], edit=edits, logits=LogitSelection(places(data)))
        assert run.logits is not None
        return run.logits

    def _margin(
        self, logits: Float[Tensor, "trial place token"], due: Int[Tensor, "trial place"]
    ) -> Float[Tensor, " trial"]:
        logits = logits.float().cpu()
        if choices := self.hypothesis.choices:
            barred = torch.ones(logits.shape[-1], dtype=torch.bool)
            barred[list(choices)] = False
            logits = logits.masked_fill(barred, -torch.inf)
        wanted = due.clamp(min=0)[..., None]
        others = logits.scatter(-1, wanted, -torch.inf).amax(-1)
        found = logits.gather(-1, wanted)[..., 0] - others
        return found.masked_fill(due == UNASKED, torch.inf).amin(-1)

    @cached_property
    def _values(self) -> dict[Site, Tensor]:
        self.recorder.add(passes=1)
        return check_fit(self.model, self.hypothesis)

    @cached_property
    def counting(self) -> dict[str, Bool[Tensor, " column"]]:
        """At which places each variable's value changes an answer."""
        return {name: counting(self.hypothesis, name) for name in self.hypothesis.model.inner}

    @cached_property
    def _scrub(self) -> Scrub:
        return Scrub(self.model, self.hypothesis, self.hypothesis.values, self.source, self.recorder)

    def cannot_scrub(self) -> str:
        """Why the hypothesis cannot be scrubbed; empty where it can."""
        try:
            _ = self._scrub
        except InputError as error:
            return str(error)
        return ""
