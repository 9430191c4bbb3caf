"""What part of a function of numbers mod p is carried by which frequency? Fourier sums on a circle of p points.

1. The waves: a constant, and cos and sin of 2πkx/p for k = 1 … (p−1)/2; scaled, they are an orthonormal basis.
2. Of logits `[a, b, c]`, the share of their variance that is a multiple of cos(2πk(a + b − c)/p), k by k.
3. Of logits, the part that depends on a and b only through cos and sin of 2πk(a + b)/p, for chosen k. Kept alone, with
   the mean, it gives the restricted loss; taken away, the excluded loss.
4. Of a neuron's values `[a, b]`, the share of variance in the waves of one frequency in a, in b, and their products.

Nanda et al. (2023), Progress measures for grokking via mechanistic interpretability.
"""

import math
from collections.abc import Collection

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from microtome.core.errors import InputError

CUTS, PARTS = ("whole", "restricted", "excluded"), ("given", "others")


def frequencies(p: int) -> range:
    """1 … (p−1)/2. Raises `InputError` for an even number or one below 3, on whose circle waves do not pair up."""
    if p < 3 or p % 2 == 0:
        raise InputError(f"expected an odd number of numbers, at least 3, to add on a circle; got {p}")
    return range(1, (p - 1) // 2 + 1)


def waves(p: int) -> Float[Tensor, "wave number"]:
    """The orthonormal basis: the constant, then cos 1, sin 1, cos 2, sin 2, … in double precision."""
    x = torch.arange(p, dtype=torch.double)
    rows = [torch.full_like(x, p**-0.5)]
    for k in frequencies(p):
        angle = 2 * math.pi * k * x / p
        rows += [angle.cos() * (2 / p) ** 0.5, angle.sin() * (2 / p) ** 0.5]
    return torch.stack(rows)


def centred(logits: Float[Tensor, "a b c"]) -> Float[Tensor, "a b c"]:
    """Without what is the same for every answer, which no softmax sees. In double precision."""
    exact = logits.double()
    return exact - exact.mean(-1, keepdim=True)


def logit_shares(logits: Float[Tensor, "a b c"]) -> Float[Tensor, " frequency"]:
    """For each frequency, the share of the variance of the centred logits in the direction cos w(a + b − c).

    That cosine is a sum of products of waves in a, b and c, so it is found in three small transforms. 0 for logits that
    do not vary.
    """
    p = logits.shape[-1]
    basis = waves(p)
    table = centred(logits)
    spectrum = torch.einsum("abc,ia,jb,kc->ijk", table, basis, basis, basis)
    total = (table - table.mean()).square().sum()
    shares = []
    for k in frequencies(p):
        cos, sin = 2 * k - 1, 2 * k
        # cos(x + y − z) = cc·c − ss·c + sc·s + cs·s, each with the same amplitude.
        amplitude = (
            spectrum[cos, cos, cos]
            - spectrum[sin, sin, cos]
            + spectrum[sin, cos, sin]
            + spectrum[cos, sin, sin]
        ) / 2
        shares.append(amplitude.square() / total if total > 0 else torch.zeros((), dtype=torch.double))
    return torch.stack(shares)


def key_frequencies(shares: Float[Tensor, " frequency"], least: float, carry: float) -> tuple[int, ...]:
    """The frequencies that hold at least `least` of the logit variance each; none unless they hold `carry` together."""
    held = shares >= least
    if not bool(shares[held].sum() >= carry):
        return ()
    return tuple((torch.nonzero(held)[:, 0] + 1).tolist())


def sum_part(logits: Float[Tensor, "a b c"], keys: Collection[int]) -> Float[Tensor, "a b c"]:
    """The part that depends on a and b through the waves of w(a + b) of these frequencies alone, for every answer."""
    p = logits.shape[-1]
    table = logits.double()
    total = torch.arange(p)[:, None] + torch.arange(p)
    part = torch.zeros_like(table)
    for k in keys:
        angle = 2 * math.pi * k * total.double() / p
        for wave in (angle.cos(), angle.sin()):
            unit = wave / wave.norm()
            part += unit[..., None] * torch.einsum("ab,abc->c", unit, table)
    return part


def restricted(logits: Float[Tensor, "a b c"], keys: Collection[int]) -> Float[Tensor, "a b c"]:
    """Only the mean over all sums, and the waves of these frequencies."""
    return logits.double().mean((0, 1), keepdim=True) + sum_part(logits, keys)


def excluded(logits: Float[Tensor, "a b c"], keys: Collection[int]) -> Float[Tensor, "a b c"]:
    """All but the waves of these frequencies."""
    return logits.double() - sum_part(logits, keys)


def sums(p: int) -> Int[Tensor, "a b"]:
    """a + b mod p."""
    number = torch.arange(p)
    return (number[:, None] + number) % p


def cut_losses(
    logits: Float[Tensor, "a b c"], given: Bool[Tensor, "a b"], keys: Collection[int]
) -> Float[Tensor, "cut part"]:
    """Mean cross-entropy in nats of the logits whole, restricted to the waves of these frequencies, and without them;
    over the pairs given and over all others (NaN where there are none)."""
    right = sums(logits.shape[-1]).flatten()
    cuts = (logits.double(), restricted(logits, keys), excluded(logits, keys))
    lost = torch.stack([functional.cross_entropy(cut.flatten(0, 1), right, reduction="none") for cut in cuts])
    seen = given.flatten()
    return torch.stack([lost[:, seen].mean(-1), lost[:, ~seen].mean(-1)], -1)


def neuron_shares(values: Float[Tensor, "a b unit"]) -> Float[Tensor, "frequency unit"]:
    """For each unit, the share of its variance over (a, b) in waves of one frequency: of a, of b, and products of the
    two. 0 for a unit that does not vary."""
    p = values.shape[0]
    basis = waves(p)
    spectrum = torch.einsum("abu,ia,jb->iju", values.double(), basis, basis).square()
    mean = spectrum[0, 0].clone()
    spectrum[0, 0] = 0
    total = spectrum.sum((0, 1))
    shares = []
    for k in frequencies(p):
        mine = [0, 2 * k - 1, 2 * k]
        shares.append(spectrum[mine][:, mine].sum((0, 1)))
    # Beside a mean this much larger, what is left is rounding.
    varies = total > 1e-24 * mean
    return torch.where(varies, torch.stack(shares) / torch.where(varies, total, 1.0), 0.0)


def wave_norms(vectors: Float[Tensor, "number d"]) -> Float[Tensor, " wave"]:
    """How much of vectors, one for each number, runs along each wave: the norm of each Fourier component."""
    return (waves(len(vectors)) @ vectors.double()).norm(dim=-1)


def gini(values: Float[Tensor, " part"]) -> float:
    """How unevenly a sum is spread over its parts: 0 evenly, nearly 1 on one part alone. NaN for a sum of zero."""
    ordered = values.double().sort().values
    n = len(ordered)
    rank = torch.arange(1, n + 1, dtype=torch.double)
    total = ordered.sum()
    return float((2 * (rank * ordered).sum() / (n * total)) - (n + 1) / n) if total > 0 else math.nan
