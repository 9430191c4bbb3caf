"""Is that more than luck? The five tests of a circuit as plain statistics: numbers in, a p-value out.

1. *Equivalence*. H0: the circuit scores above the network on half of all inputs, give or take `margin`. The statistic
   is the share of inputs on which it scores higher, not the size of the differences; ties go either way by a coin. The
   p-value is the chance of a share as far from one half if the true one stood at the margin.
2. *Independence*. H0: what the complement of the circuit scores says nothing of what the network scores. Dependence is
   the Hilbert–Schmidt criterion with Gaussian kernels of median width; its null comes from permutations.
3. *Minimality*. H0, for each edge: cutting it does more than cutting an edge that was added at random does, in at least
   a `quantile` of cases. All edges are tested at once, with Holm's correction.
4. *Sufficiency* and 5. *partial necessity*. H0: no better than a `quantile` of random circuits. Here to reject is to
   pass.

Reference: Shi et al. (2024), Hypothesis Testing the Circuit Hypothesis in LLMs; Gretton et al. (2007) for dependence.
"""

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from scipy import stats

from microtome.core.errors import InputError

Values = Float[NDArray[np.floating], " value"]
Edges = Float[NDArray[np.floating], " edge"]


def equivalence(differences: Values, margin: float, seed: int = 0, tie: float = 0.0) -> tuple[float, float]:
    """The share of inputs on which the circuit scores above the network, and the p-value of equivalence.

    differences: circuit minus network, one for each input. tie: differences up to this size are ties.
    """
    _some(differences)
    if not 0 <= margin < 0.5:
        raise InputError(f"a margin lies between 0 and 0.5, got {margin}")
    tied = np.abs(differences) <= tie
    coins = np.random.default_rng(seed).random(len(differences)) < 0.5
    n, above = len(differences), int(np.where(tied, coins, differences > 0).sum())
    counts = np.arange(n + 1)
    # In whole numbers: 2k - n, so that rounding cannot leave a count out.
    extreme = np.abs(2 * counts - n) >= abs(2 * above - n)
    p = float(stats.binom.pmf(counts[extreme], n, 0.5 + margin).sum())
    return above / n, min(1.0, p)


def independence(
    one: Values, other: Float[NDArray[np.floating], " _"], permutations: int, seed: int = 0
) -> tuple[float, float]:
    """The dependence of two scores of the same inputs, and the p-value of independence."""
    _some(one)
    if len(one) != len(other):
        raise InputError(f"{len(one)} and {len(other)} scores are not of the same inputs")
    n = len(one)
    centre = np.eye(n) - 1 / n
    left, right = centre @ _kernel(one) @ centre, _kernel(other)
    observed = float((left * right).sum()) / n**2
    random = np.random.default_rng(seed)
    found = np.empty(permutations)
    for i in range(permutations):
        order = random.permutation(n)
        found[i] = (left * right[np.ix_(order, order)]).sum() / n**2
    # Equal up to rounding is equal: with constant scores every permutation is.
    as_large = int((found >= observed - 1e-12 * max(1.0, abs(observed))).sum())
    return observed, (1 + as_large) / (1 + permutations)


def needless(effects: Edges, references: Values, quantile: float, tie: float = 0.0) -> Edges:
    """For each edge the p-value of being needed, corrected (Holm) for their number. Small: it is not needed.

    effects: of cutting each edge of the circuit. references: of cutting edges that were added at random.
    """
    _some(references)
    below = (references[None] < effects[:, None] - tie).sum(axis=1)
    return holm(stats.binom.cdf(below, len(references), quantile))


def better(value: float, random: Values, quantile: float) -> tuple[float, float]:
    """The share of random values that are larger, and the p-value of being no better than a quantile of them.

    value: a distance, less is better. Small p: less than more than the quantile.
    """
    _some(random)
    beaten = int((random > value).sum())
    return beaten / len(random), float(stats.binom.sf(beaten - 1, len(random), quantile))


def holm(p: Edges) -> Edges:
    """p-values corrected for their number, so that the chance of any false rejection stays what it is for one."""
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    found = np.empty(len(p))
    found[order] = np.minimum(1.0, raised)
    return found


def _kernel(values: Values) -> Float[NDArray[np.float64], "value value"]:
    squared = (values[:, None] - values[None]) ** 2
    different = squared[squared > 0]
    width = float(np.median(different)) if len(different) else 1.0
    kernel: NDArray[np.float64] = np.exp(-squared / width)
    return kernel


def _some(values: Values) -> None:
    if not len(values) or not np.isfinite(values).all():
        raise InputError(f"a test needs finite numbers and at least one, got {values[:3]} …")
