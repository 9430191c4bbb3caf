"""What does each unit of each basis do to the metric: directly, and through which others?

Bases stand at several sites; what each leaves out is its error, a node like a unit. Clean and corrupt prompts differ in
codes and errors by Δ.

1. *Effect* of a node: the gradient of the metric times Δ, summed over positions, the mean over prompts. The gradient is
   averaged over steps from clean to corrupt values at the node's own site (integrated gradients; one step is the
   gradient half-way).
2. *Edge* from u to d: how far u's Δ moves d directly, past no other basis, times how far d moves the metric. One pass
   serves all: every code is cut from what made it, and starts anew; what reaches a code before the cut came directly.
3. Gradients flow through codes alone; errors are constants. Then what a unit does in all is what it does directly to
   the logits, plus its edges to all others: exact, and tested.

Marks et al. (2024), Sparse Feature Circuits; Sundararajan et al. (2017) for integrated gradients.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.bases.basis import Basis, parted
from microtome.bases.read_codes import Reading, read_codes
from microtome.bases.splice import Splice, splice
from microtome.core.edits import Edit, Set
from microtome.core.errors import InputError
from microtome.core.logits import Metric
from microtome.core.site import Site
from microtome.models.model import Model

Codes = Float[Tensor, "row position unit"]


@dataclass(frozen=True, eq=False)
class Effects:
    """Of one basis: units `[unit]`, and by site written the error; in units of the metric."""

    units: Float[Tensor, " unit"]
    errors: Mapping[Site, float]


@dataclass(frozen=True, eq=False)
class FeatureNodes:
    """Bases of a model on pairs: codes and errors of both sides. Make one with `FeatureNodes.of`."""

    model: Model
    bases: tuple[Basis, ...]
    tokens: Int[Tensor, "row column"]
    mask: Int[Tensor, "row column"] | None
    metric: Metric
    clean: tuple[Reading, ...]
    corrupt: tuple[Reading, ...]

    @staticmethod
    def of(
        model: Model,
        bases: Sequence[Basis],
        clean: Int[Tensor, "row column"],
        corrupt: Int[Tensor, "row column"],
        metric: Metric,
        mask: Int[Tensor, "row column"] | None = None,
    ) -> "FeatureNodes":
        """Read both sides. Raises `InputError` for bases that write one site twice, or share a name."""
        sites = [site for basis in bases for site in basis.writes]
        names = [basis.name for basis in bases]
        for what, held in (("write", sites), ("are called", names)):
            if len(set(held)) < len(held):
                twice = next(one for one in held if list(held).count(one) > 1)
                raise InputError(f"two of the bases {what} {twice}; give each site and each name once")
        found = [read_codes(model, tokens, bases, mask=mask) for tokens in (clean, corrupt)]
        return FeatureNodes(model, tuple(bases), clean, mask, metric, found[0], found[1])

    def _real(self, values: Tensor) -> Tensor:
        """Zero at padding, where nothing is compared."""
        return values if self.mask is None else values * self.mask[..., None].to(values)

    def delta(self, index: int) -> Codes:
        """Corrupt minus clean codes of a basis."""
        return self._real(self.corrupt[index].codes - self.clean[index].codes)

    def error_delta(self, index: int, site: Site) -> Float[Tensor, "row position d"]:
        return self._real(self.corrupt[index].errors[site] - self.clean[index].errors[site])

    @torch.no_grad()
    def effects(self, steps: int) -> tuple[Effects, ...]:
        """What putting each node's corrupt value in would do, by integrated gradients. `steps` passes a basis."""
        return tuple(self._effects(index, steps) for index in range(len(self.bases)))

    def _effects(self, index: int, steps: int) -> Effects:
        basis = self.bases[index]
        ends = [self._written(basis, side[index]) for side in (self.clean, self.corrupt)]
        gradients: list[Reading] = []
        for step in range(steps):
            share = (step + 0.5) / steps
            edits: list[Edit] = [
                Set(site, value=self._shaped(site, here + share * (there - here)), origin="patch")
                for site, here, there in zip(basis.writes, *ends, strict=True)
            ]
            gradients += read_codes(self.model, self.tokens, [basis], self.metric, edit=edits, mask=self.mask)
        slopes = torch.stack([one.gradients for one in gradients if one.gradients is not None]).mean(0)
        errors = {}
        for site in basis.writes:
            slope = torch.stack([one.error_gradients[site] for one in gradients]).mean(0)
            errors[site] = float((slope * self.error_delta(index, site)).sum()) / len(self.tokens)
        return Effects((slopes * self.delta(index)).sum((0, 1)) / len(self.tokens), errors)

    def _written(self, basis: Basis, reading: Reading) -> list[Tensor]:
        """What stood at the sites that a basis writes: what it makes, and its error."""
        made = parted(basis.decode(reading.codes), basis.write_widths)
        return [part + reading.errors[site] for site, part in zip(basis.writes, made, strict=True)]

    def _shaped(self, site: Site, rows: Float[Tensor, "row position d"]) -> Tensor:
        """With heads apart again, where the site has them."""
        if "head" in site.axes:
            return rows.unflatten(-1, (-1, self.model.sizes["d_head"]))
        return rows

    def slopes(self) -> tuple[Codes, ...]:
        """The gradient of the metric by each code, through codes alone. One pass."""
        frozen = [edit for basis in self.bases for edit in splice(basis, error="freeze")]
        found = read_codes(self.model, self.tokens, self.bases, self.metric, edit=frozen, mask=self.mask)
        return tuple(one.gradients for one in found if one.gradients is not None)

    def edges(self, wanted: Sequence[tuple[int, int]], slopes: Sequence[Codes]) -> tuple["Incoming", ...]:
        """For each unit wanted (basis, unit), and last for the metric itself, what every node gives it directly.

        In units of the metric: a node's Δ, times how far it moves the unit, times the unit's slope.
        """
        cut = _Cut(self)
        targets = [(slopes[basis][..., unit] * cut.arrived(basis)[..., unit]).sum() for basis, unit in wanted]
        return tuple(cut.incoming(target) for target in (*targets, cut.metric.sum()))


@dataclass(frozen=True, eq=False)
class Incoming:
    """What the units of each basis `[unit]`, and its errors by site, give a target directly."""

    units: tuple[Float[Tensor, " unit"], ...]
    errors: tuple[Mapping[Site, float], ...]


class _Cut:
    """One pass in which every code starts anew: leaves stand where codes and errors enter the stream again."""

    def __init__(self, nodes: FeatureNodes) -> None:
        self.nodes = nodes
        self._codes: dict[int, Tensor] = {}
        self._leaves = [torch.zeros_like(one.codes, requires_grad=True) for one in nodes.clean]
        self._error_leaves = [
            {site: torch.zeros_like(error, requires_grad=True) for site, error in one.errors.items()}
            for one in nodes.clean
        ]
        edits = [edit for index in range(len(nodes.bases)) for edit in self._edits(index)]
        with torch.enable_grad():
            run = nodes.model.run(nodes.tokens, edit=edits, metric=nodes.metric, mask=nodes.mask)
        assert run.metric is not None
        self.metric = run.metric

    def _edits(self, index: int) -> Sequence[Edit]:
        errors = [
            error + self._error_leaves[index][site] for site, error in self.nodes.clean[index].errors.items()
        ]
        spliced = splice(self.nodes.bases[index], error=errors, change=self._anew(index))
        assert all(isinstance(edit, Splice) for edit in spliced)
        return spliced

    def _anew(self, index: int) -> Callable[[Tensor], Tensor]:
        def change(codes: Tensor) -> Tensor:
            self._codes[index] = codes
            return codes.detach() + self._leaves[index]

        return change

    def arrived(self, index: int) -> Codes:
        """The codes of a basis before the cut."""
        return self._codes[index]

    def incoming(self, target: Tensor) -> Incoming:
        nodes = self.nodes
        leaves = [*self._leaves, *(leaf for held in self._error_leaves for leaf in held.values())]
        found: Sequence[Tensor | None] = [None] * len(leaves)
        if target.requires_grad:
            found = torch.autograd.grad(target, leaves, retain_graph=True, allow_unused=True)
        slopes = [
            torch.zeros_like(leaf) if one is None else one for leaf, one in zip(leaves, found, strict=True)
        ]
        count = len(nodes.tokens)
        units = tuple(
            (slopes[index] * nodes.delta(index)).sum((0, 1)).detach() / count
            for index in range(len(nodes.bases))
        )
        rest = iter(slopes[len(nodes.bases) :])
        errors = tuple(
            {site: float((next(rest) * nodes.error_delta(index, site)).sum()) / count for site in held}
            for index, held in enumerate(self._error_leaves)
        )
        return Incoming(units, errors)
