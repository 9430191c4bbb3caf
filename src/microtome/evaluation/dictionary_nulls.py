"""What would a dictionary score that has learned nothing, or values without structure? The nulls beside each score.

    random directions   as many units, with frozen random directions, the same number on in a row, one scale fitted
    shuffled values     the dictionary itself, on values whose dimensions are dealt out anew among rows
    Gaussian values     the dictionary itself, on normally distributed values of the same mean and covariance
    random weights      the dictionary itself, on the values of the model with its weights shuffled

Misleads: a dictionary trained anew on shuffled values, or on a random model, scores better than one that was trained
elsewhere; methods that train have that control (`sparse_autoencoder`).
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from microtome.bases.basis import Basis
from microtome.dictionaries.activations import MatchingPursuit, TopK
from microtome.dictionaries.dictionary import Dictionary


def shuffled(values: Float[Tensor, "row d"], seed: int) -> Float[Tensor, "row d"]:
    """Each dimension keeps its numbers, and has them in other rows."""
    source = torch.Generator().manual_seed(seed)
    return values.gather(0, torch.rand(values.shape, generator=source).argsort(0).to(values.device))


def gaussian(values: Float[Tensor, "row d"], seed: int) -> Float[Tensor, "row d"]:
    """As many rows of a normal distribution with the mean and covariance of the values."""
    mean = values.double().mean(0)
    centred = values.double() - mean
    eigenvalues, vectors = torch.linalg.eigh(centred.mT @ centred / len(values))
    drawn = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn.to(values.device) * eigenvalues.clamp_min(0).sqrt() @ vectors.mT + mean).to(values.dtype)


@torch.no_grad()
def random_directions(
    basis: Basis,
    values: Float[Tensor, "row d_read"],
    target: Float[Tensor, "row d_write"],
    on: float,
    seed: int,
) -> Dictionary:
    """A frozen dictionary as wide as the basis, with `on` units on in a row, rounded; one scale is fitted.

    A basis that reads one thing and writes another gets random directions for both. Where a basis pursues its units
    one after the other, so does the null, whose scale needs no fit then.
    """
    source = torch.Generator().manual_seed(seed)
    width = basis.n_units
    reading = functional.normalize(torch.randn(width, values.shape[1], generator=source), dim=-1)
    writing = functional.normalize(torch.randn(width, target.shape[1], generator=source), dim=-1)
    if basis.in_place:
        writing = reading
    k = min(width, max(1, round(on)))
    pursues = isinstance(basis, Dictionary) and isinstance(basis.activation, MatchingPursuit)
    made = Dictionary(
        name="random",
        reads=basis.reads,
        writes=basis.writes,
        read_widths=basis.read_widths,
        write_widths=basis.write_widths,
        activation=MatchingPursuit(k) if pursues else TopK(k),
        encoder=reading,
        encoder_bias=torch.zeros(width),
        decoder=writing,
        decoder_bias=torch.zeros(target.shape[1]),
        centre=values.mean(0),
    )
    middle = target.mean(0)
    if pursues:
        return replace(made, decoder_bias=middle)
    written = made.reconstruct(values)
    size = float(((target - middle) * written).sum() / written.square().sum().clamp_min(1e-30))
    return replace(made, decoder=size * writing, decoder_bias=middle)
