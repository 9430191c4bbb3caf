"""Given which directions a row may use, how much of each? Least squares, signed or with nothing below zero, exactly.

1. Solve the normal equations of the directions that are on, a small system a row, all rows in one call.
2. Where nothing may be negative and something came out so: walk from the present coefficients towards that solution
   until the first reaches zero, take it out, and solve again. The distance shrinks on the way, so this ends.

Lawson and Hanson (1974), Solving least squares problems, chapter 23 (the inner loop).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def fit(
    values: Float[Tensor, "row d"],
    atoms: Float[Tensor, "row k d"],
    start: Float[Tensor, "row k"],
    on: Bool[Tensor, "row k"],
    nonnegative: bool,
) -> tuple[Float[Tensor, "row k"], Bool[Tensor, "row k"]]:
    """Coefficients of the atoms that are on, and which still are.

    start: coefficients to begin with, zero where off (and none negative, if nothing may be). No row ends farther from
    its value than it began.
    """
    gram = (atoms @ atoms.mT).double()
    wanted = (atoms @ values[..., None])[..., 0].double()
    present, on = start.double(), on.clone()
    open_rows = on.any(-1)
    while bool(open_rows.any()):
        here = open_rows.nonzero()[:, 0]
        solved = _solve(gram[here], wanted[here], on[here])
        if not nonnegative:
            present[here] = solved
            break
        below = on[here] & (solved <= 0)
        gap = present[here] - solved
        reach = torch.where(below & (gap > 0), present[here] / gap, torch.inf)
        reach = torch.where(below & (gap <= 0), 0.0, reach)
        share, first = reach.min(-1)
        present[here] += share.clamp(max=1.0)[:, None] * (solved - present[here])
        stopped = share <= 1
        gone = here[stopped]
        on[gone, first[stopped]] = False
        present[gone, first[stopped]] = 0.0
        open_rows[here[~stopped]] = False
        open_rows &= on.any(-1)
    worse = _cost(gram, wanted, present) > _cost(gram, wanted, start.double())
    present[worse], on[worse] = start[worse].double(), start[worse] != 0
    return present.to(start.dtype), on


def _solve(
    gram: Float[Tensor, "row k k"], wanted: Float[Tensor, "row k"], on: Bool[Tensor, "row k"]
) -> Float[Tensor, "row k"]:
    """The least-squares solution on the atoms that are on; where they depend on one another, the shortest one."""
    both = on[:, :, None] & on[:, None, :]
    system = torch.where(both, gram, 0.0) + torch.diag_embed((~on).double())
    right = torch.where(on, wanted, 0.0)
    factor, failed = torch.linalg.cholesky_ex(system)
    solved = torch.cholesky_solve(right[..., None], factor)[..., 0]
    if bool((failed > 0).any()):
        bad = failed > 0
        solved[bad] = (torch.linalg.pinv(system[bad], hermitian=True) @ right[bad][..., None])[..., 0]
    return torch.where(on, solved, 0.0)


def _cost(
    gram: Float[Tensor, "row k k"], wanted: Float[Tensor, "row k"], codes: Float[Tensor, "row k"]
) -> Float[Tensor, " row"]:
    """The squared distance less what does not depend on the coefficients."""
    return (codes * ((gram @ codes[..., None])[..., 0] - 2 * wanted)).sum(-1)
