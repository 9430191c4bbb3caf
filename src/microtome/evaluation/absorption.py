"""Is a unit silent where its own latent is true, because the unit of a narrower latent says both? Absorption.

1. Each known latent comes with its direction. Its main unit is the one whose direction is nearest to it.
2. A hole is a row where the latent is true and its main unit is off.
3. A hole is absorbed if the unit that contributes most along the latent's direction (code times the projection of its
   direction) contributes at least `share` of what all units contribute there, and is itself nearest to another latent,
   which is true in that row too: the narrower unit speaks for both.
4. The rate is absorbed holes over rows where the latent is true.

Sparsity pays for this: one unit that says "starts with S and is snake" saves one that says "starts with S". Reference:
Chanin et al. (2024), A is for absorption. Misleads where the main unit is the wrong one: its cosine stands beside.
"""

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from microtome.bases.codes import SparseCodes
from microtome.core.errors import InputError
from microtome.core.shapes import Table

SHARE: Final = 0.4


@dataclass(frozen=True, eq=False)
class Absorption:
    """For each latent `[latent]`: its main unit and that unit's cosine; rows where it is true, where the main unit is
    off, and where what is missing was absorbed; by which unit most often (-1: by none)."""

    unit: Int[Tensor, " latent"]
    cosine: Float[Tensor, " latent"]
    true: Int[Tensor, " latent"]
    holes: Int[Tensor, " latent"]
    absorbed: Int[Tensor, " latent"]
    by: Int[Tensor, " latent"]

    @property
    def rate(self) -> float:
        """Absorbed rows over rows in which a latent is true, over all latents together; NaN where none ever is."""
        return float(self.absorbed.sum() / self.true.sum())

    @property
    def hole_rate(self) -> float:
        """Rows with a silent main unit over rows in which a latent is true."""
        return float(self.holes.sum() / self.true.sum())

    def numbers(self) -> dict[str, float]:
        """The rates by name."""
        return {"absorption": self.rate, "main_unit_silent": self.hole_rate}

    def table(self, names: tuple[str, ...] | None = None) -> Table:
        """A row for each latent, the most absorbed first."""
        share = self.absorbed / self.true.clamp_min(1)
        rows = tuple(
            (
                names[one] if names else f"latent {one}",
                f"u{int(self.unit[one])}",
                float(self.cosine[one]),
                int(self.true[one]),
                int(self.holes[one]),
                int(self.absorbed[one]),
                f"u{int(self.by[one])}" if self.by[one] >= 0 else "",
            )
            for one in share.argsort(descending=True).tolist()
        )
        return Table(
            "absorption",
            ("latent", "main unit", "cosine", "rows true", "unit silent", "absorbed", "most by"),
            rows,
        )


@torch.no_grad()
def absorption(
    directions: Float[Tensor, "unit d"],
    codes: SparseCodes,
    latents: Float[Tensor, "latent d"],
    true: Bool[Tensor, "row latent"],
    share: float = SHARE,
) -> Absorption:
    """Measure units on rows whose latents are known. Raises `InputError` where sizes do not fit each other."""
    if codes.rows != len(true) or codes.units != len(directions):
        raise InputError(
            f"expected codes of {len(true)} rows and {len(directions)} units; got {codes.rows} and {codes.units}"
        )
    along = functional.normalize(latents, dim=-1)
    cosine = functional.normalize(directions, dim=-1) @ along.mT
    nearest, unit = cosine.max(0)
    own = cosine.argmax(-1)  # the latent that each unit is nearest to
    holes, absorbed = torch.zeros(2, len(latents), dtype=torch.int64)
    by = torch.full((len(latents),), -1)
    for latent in range(len(latents)):
        silent = true[:, latent].clone()
        silent[codes.row[codes.unit == unit[latent]]] = False
        holes[latent] = silent.sum()
        inside = silent[codes.row]
        row, who = codes.row[inside], codes.unit[inside]
        part = codes.value[inside] * (directions[who] @ along[latent])
        held = torch.zeros(codes.rows).index_add(0, row, part)
        most = torch.zeros(codes.rows).scatter_reduce(0, row, part, "amax")
        narrower = own[who]
        hit = (part == most[row]) & (part >= share * held[row]) & (part > 0)
        hit &= (narrower != latent) & true[row, narrower]
        absorbed[latent] = len(row[hit].unique())
        if hit.any():
            by[latent] = who[hit].mode().values
    return Absorption(unit, nearest, true.sum(0), holes, absorbed, by)
