"""Which units go together? Co-activation and correlation, from the sparse activations, a stretch of tokens at a time.

Counts and correlations are over all tokens looked at, so a token where both units are off counts as agreement of two
zeros. Two bases on one corpus are compared alike. Misleads where units are rare: a unit that is on three times is
perfectly correlated with any other that is on the same three times; look at the counts.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from microtome.core.errors import InputError, StoreError
from microtome.store.unit_store import UnitStore

_ENTRIES: Final = 1 << 20


@dataclass(frozen=True, eq=False)
class Pairs:
    """Units against units. together: at how many tokens both are on. correlation: Pearson's, NaN where a unit never
    varies. Each `[asked, unit]`.
    """

    together: NDArray[np.int64]
    correlation: NDArray[np.float64]


def pairs(
    store: UnitStore, units: NDArray[np.integer[Any]] | list[int], other: UnitStore | None = None
) -> Pairs:
    """Some units of a store against all units, of the same store or of another on the same tokens.

    Takes one pass over the entries and memory for the answer. Raises `InputError` for units that are not there,
    `StoreError` for stores of different tokens.
    """
    other = store if other is None else other
    chosen = np.asarray(units, np.int64)
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < store.n_units:
        raise InputError(f"there are units 0 … {store.n_units - 1}; got {chosen.min()} … {chosen.max()}")
    mine, theirs = store.manifest, other.manifest
    if (mine.n_tokens, mine.seen) != (theirs.n_tokens, theirs.seen) or (
        store.identity.get("corpus_hash") != other.identity.get("corpus_hash")
    ):
        raise StoreError(
            f"{store.folder} and {other.folder} were harvested on different tokens; harvest both on the same"
        )
    together = np.zeros((len(chosen), other.n_units), np.int64)
    products = np.zeros((len(chosen), other.n_units))
    for first, stop in _stretches(store):
        one = _matrix(store, first, stop)[:, chosen].T.tocsr()
        two = _matrix(other, first, stop)
        _add(products, one @ two)
        _add(together, _on(one) @ _on(two))
    return Pairs(together, _correlation(products, store, chosen, other))


def _on(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """1 wherever there is an entry, also one so small that its value is kept as zero."""
    return sparse.csr_matrix(
        (np.ones(matrix.nnz, np.int64), matrix.indices, matrix.indptr), shape=matrix.shape
    )


def _add(total: NDArray[Any], part: sparse.csr_matrix) -> None:
    part = part.tocoo()
    total[part.row, part.col] += part.data


def _correlation(
    products: NDArray[np.float64], store: UnitStore, chosen: NDArray[np.int64], other: UnitStore
) -> NDArray[np.float64]:
    n = store.manifest.seen
    sums, squares = store.by_unit["sum"][chosen, None], store.by_unit["squares"][chosen, None]
    spread = np.maximum(n * squares - sums**2, 0)
    other_sums, other_squares = other.by_unit["sum"], other.by_unit["squares"]
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = np.sqrt(spread) * np.sqrt(np.maximum(n * other_squares - other_sums**2, 0))
        return np.where(scale > 0, (n * products - sums * other_sums) / scale, np.nan)


def _stretches(store: UnitStore) -> list[tuple[int, int]]:
    """Tokens cut where about so many entries are full."""
    starts = store.by_token["starts"]
    cuts = np.searchsorted(starts, np.arange(_ENTRIES, int(starts[-1]), _ENTRIES))
    edges = np.unique(np.concatenate([[0], cuts, [store.manifest.n_tokens]])).tolist()
    return list(pairwise(edges))


def _matrix(store: UnitStore, first: int, stop: int) -> sparse.csr_matrix:
    """Values of a stretch of tokens, `[token, unit]`."""
    begins = store.by_token["starts"][first : stop + 1]
    entries = slice(begins[0], begins[-1])
    value, unit = store.by_token["value"][entries].astype(np.float64), store.by_token["unit"][entries]
    return sparse.csr_matrix(
        (value, unit.astype(np.int32), begins - begins[0]), (stop - first, store.n_units)
    )
