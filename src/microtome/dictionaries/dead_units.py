"""What becomes of units that are never on? They get no gradient from the error; two ways to give them another chance.

AuxK: the dead units that would be strongest rebuild, by themselves, what the others left. The error is what it is (its
gradient goes to dead units alone), no bias is added twice, and encoder and decoder of a dead unit both learn.

Resampling: dead units start anew in the direction of rows that are rebuilt worst (drawn by the square of their error).

Gao et al. (2024), Scaling and evaluating sparse autoencoders; Bricken et al. (2023), Towards monosemanticity.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from microtome.dictionaries.drive import Entries, SparseDrive
from microtome.dictionaries.scene import Scene
from microtome.dictionaries.selection import Selection, top_k


def auxiliary_loss(
    scene: Scene, dead: Bool[Tensor, " unit"], left: Float[Tensor, "row d_write"]
) -> Float[Tensor, ""]:
    """Squared error of dead units rebuilding what is left: as many in each row as half the dimensions, or all."""
    units = dead.nonzero()[:, 0]
    x, encoder, bias = scene.product
    k = min(len(units), max(1, left.shape[1] // 2))
    chosen = top_k(x, encoder[units], bias[units], k)
    entries = Entries(chosen.entries.row, units[chosen.entries.unit], len(x), len(encoder))
    drive: SparseDrive = scene.sparse(Selection(entries, chosen.pre))
    written = drive.written(drive.pre.relu(), scene.parameters["decoder"])
    return (written - left.detach()).square().sum(-1).mean()


@torch.no_grad()
def fresh_start(
    scene: Scene,
    dead: Bool[Tensor, " unit"],
    left: Float[Tensor, "row d_write"],
    source: torch.Generator,
) -> None:
    """Put dead units where rows are rebuilt worst, reading what is there a fifth as keenly as living units read.

    Directions read are those of rows, directions written those of what is left of them; thresholds and gates are set
    to the mean of the living.
    """
    units = dead.nonzero()[:, 0]
    parameters = scene.parameters
    chance = left.square().sum(-1).square().double().cpu()
    if not bool(chance.sum() > 0):
        return
    rows = torch.multinomial(chance, len(units), replacement=True, generator=source).to(left.device)
    x, encoder, _ = scene.product
    norms = encoder[~dead].norm(dim=-1)
    keen = 0.2 * float(norms.mean()) if len(norms) else 0.2
    parameters["encoder"][units] = functional.normalize(x[rows], dim=-1) * keen
    parameters["decoder"][units] = functional.normalize(left[rows], dim=-1)
    parameters["bias"][units] = 0.0
    for name in ("log_threshold", "log_scale", "shift"):
        if name in parameters and len(norms):
            parameters[name][units] = parameters[name][~dead].mean()
