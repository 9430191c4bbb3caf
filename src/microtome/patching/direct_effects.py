"""How does what each component writes to the answer change under an edit? The logit difference taken apart, twice.

With x the last stream, s(x) the final norm's divisor and d the answer's direction (right minus wrong unembedding,
pulled back through that norm), the logit difference is x·d / s(x) and a constant. From a plain run (x) to an
edited one (x'):

    change = Σ over components of (w' - w)·d / s(x)    what each component c writes more or less: w', w
           + rest of (x' - x)·d / s(x)                 what biases behind norms write more or less
           + x'·d (1 / s(x') - 1 / s(x))               the norm's part

exactly, up to the soft cap of the logits where there is one; that difference is `cap`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from microtome.core.edits import Edit, Set
from microtome.core.site import Site
from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.components import components
from microtome.models.model import Model
from microtome.models.readout import readout
from microtome.models.run import Run
from microtome.models.stream_parts import behind, head_writes, require_additive

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Change:
    """What an edit does to the logit difference, by row: `components [component, row]`, `rest`, `scale`, `cap`, which
    add up to `total`."""

    components: Numbers
    rest: Numbers
    scale: Numbers
    cap: Numbers
    total: Numbers


@dataclass(frozen=True, eq=False)
class DirectEffects:
    """Direct effects of all heads and MLPs on the logit difference of clean prompts. Raises `FamilyError` where the
    stream is not a sum of what components write."""

    model: Model
    pairs: Pairs

    def __post_init__(self) -> None:
        require_additive(self.model)

    def held(self, site: Site) -> Edit:
        """The edit that holds a site at its value in the plain run."""
        run = self.model.run(self.pairs.clean, [site], mask=self.pairs.mask)
        return Set(site, value=run[site], origin="patch")

    @torch.no_grad()
    def after(self, edits: Sequence[Edit]) -> Change:
        """What these edits change. One pass."""
        found = self._take(edits)
        here = self._plain
        content = (found.writes - here.writes) / here.divisor
        moved = (found.along - here.along) / here.divisor
        scale = found.along * (1 / found.divisor - 1 / here.divisor)
        rest = moved - content.sum(dim=0)
        total = found.metric - here.metric
        cap = total - content.sum(dim=0) - rest - scale
        return Change(*(one.cpu().numpy() for one in (content, rest, scale, cap, total)))

    @cached_property
    def _plain(self) -> "_Taken":
        return self._take(())

    @torch.no_grad()
    def _take(self, edits: Sequence[Edit]) -> "_Taken":
        model, pairs = self.model, self.pairs
        metric = metrics.build(metrics.DEFAULT, pairs)
        run = model.run(pairs.clean, self._reads, edits, metric=metric, mask=pairs.mask)
        last = run[self._last][:, 0].double()
        assert run.metric is not None
        return _Taken(
            self._along(run),
            (last * self._direction).sum(-1),
            self._norm_scale(run[self._last][:, 0]).double(),
            run.metric.double(),
        )

    @property
    def _last(self) -> Site:
        return Site("resid_post", self.model.n_layers - 1, positions=(-1,))

    @cached_property
    def _reads(self) -> list[Site]:
        wholes = dict.fromkeys(site.whole.at(-1) for site in components(self.model))
        return [*wholes, self._last]

    @cached_property
    def _direction(self) -> Float[Tensor, "row d_model"]:
        """Right minus wrong, before the final norm."""
        head = readout(self.model)

        def mean(rows: tuple[tuple[int, ...], ...]) -> Tensor:
            return torch.stack(
                [head.directions(torch.tensor(ids, device=self.model.device)).mean(0) for ids in rows]
            )

        return (mean(self.pairs.answers) - mean(self.pairs.wrong)).double()

    def _norm_scale(self, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, " row"]:
        scale: Tensor = readout(self.model).norm.scale(stream.float())
        return scale.reshape(len(stream))

    def _along(self, run: Run) -> Float[Tensor, "component row"]:
        """What each component writes along the direction, at the last token."""
        found: list[Tensor] = []
        for layer in range(self.model.n_layers):
            z = run[Site("z", layer).at(-1)]
            written, _ = head_writes(self.model, layer, z, behind(self.model.anatomy, layer, "attn"))
            found += [
                (written[:, 0, head].double() * self._direction).sum(-1) for head in range(self.model.n_heads)
            ]
            if self.model.has(mlp := Site("mlp_out", layer)):
                found.append((run[mlp.at(-1)][:, 0].double() * self._direction).sum(-1))
        return torch.stack(found)


@dataclass(frozen=True, eq=False)
class _Taken:
    """One run: what components write along the direction, the whole stream along it, the divisor, the metric."""

    writes: Float[Tensor, "component row"]
    along: Float[Tensor, " row"]
    divisor: Float[Tensor, " row"]
    metric: Float[Tensor, " row"]
