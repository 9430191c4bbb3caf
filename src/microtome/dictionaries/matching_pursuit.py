"""Which units make up a value, if each is chosen for what those before it left? Matching pursuit with k steps.

1. Of the units not yet taken, take the one driven most. Its strength is how far it is driven.
2. What it writes is taken away, so that every unit is driven less by as much as it reads of that direction.
3. Stop with k units, or where none is driven any more.

Where each unit reads the direction of norm 1 that it writes, every step leaves less of the value, and where directions
are orthogonal this is the k largest. With the choice given, strengths solve a triangular system, which is what is
differentiated: Σ_{s ≤ t} ⟨reader_t, writer_s⟩ strength_s = how far t was driven at first.

Costa et al. (2025), From flat to hierarchical: extracting sparse representations with matching pursuit. k products
instead of one. Misleads as a detector: a unit may be on to mend what another wrote too much of, so that what is rebuilt
best of all kinds is found worst.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def pursued(
    pre: Float[Tensor, "row unit"],
    readers: Float[Tensor, "unit d"],
    writers: Float[Tensor, "unit d"],
    k: int,
    weight: Float[Tensor, " unit"] | None = None,
) -> tuple[Int[Tensor, "row k"], Float[Tensor, "row k"]]:
    """Units in the order in which they are taken, and their strengths, zero once none is driven.

    pre: how far units are driven at first. weight: units are compared by how far they are driven times this.
    """
    taken: list[Tensor] = []
    strengths: list[Tensor] = []
    left = pre.clone()
    for _ in range(k):
        ranked = left if weight is None else left * weight
        unit = ranked.argmax(-1, keepdim=True)
        strength = left.gather(-1, unit).clamp_min(0.0)
        left -= functional.linear(strength * writers[unit[:, 0]], readers)
        for earlier in (*taken, unit):
            left.scatter_(-1, earlier, -torch.inf)
        taken.append(unit)
        strengths.append(strength)
    return torch.cat(taken, -1), torch.cat(strengths, -1)


def solved(
    pre: Float[Tensor, "row k"],
    unit: Int[Tensor, "row k"],
    readers: Float[Tensor, "unit d"],
    writers: Float[Tensor, "unit d"],
) -> Float[Tensor, "row k"]:
    """The strengths of units in the order in which they were taken, with gradients.

    pre: how far each was driven at first.
    """
    overlap = functional.embedding(unit, readers) @ functional.embedding(unit, writers).mT
    return torch.linalg.solve_triangular(overlap, pre[..., None], upper=False, unitriangular=True)[..., 0]
