"""What does a unit store cost? 50 million activations of 16 384 units: ingested, asked, weighed.

Densities are log-normal, with the median and the largest of a measured dictionary (874 and about 192 000 of 2.1
million tokens); values are log-normal too. Entries are made while they are ingested, so that they never stand in
memory together; only the store's own CPU time is counted. Run: python benchmarks/unit_store.py [activations]
"""

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from microtome.data.corpus import Corpus
from microtome.store.unit_pairs import pairs
from microtome.store.unit_store import UnitStore
from microtome.store.unit_writer import UnitWriter

UNITS = 16_384
DOCUMENTS, LENGTH = 8_192, 256
BATCH = 4_096
MEDIAN, LARGEST = 874, 192_000
Batch = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


def counts(total: int) -> NDArray[np.int64]:
    """How often each unit is on: log-normal with the median and largest told, scaled to the total."""
    normal = np.random.default_rng(0).normal(size=UNITS)
    spread = np.log(LARGEST / MEDIAN) / normal.max()
    raw = MEDIAN * np.exp(spread * normal)
    return np.maximum(1, raw * total / raw.sum()).astype(np.int64)


def batches(total: int) -> Iterator[Batch]:
    """Entries of 4 096 tokens after the other, each unit on at random with its own density."""
    random = np.random.default_rng(1)
    density = counts(total) / (DOCUMENTS * LENGTH)
    for first in range(0, DOCUMENTS * LENGTH, BATCH):
        on = random.binomial(BATCH, density)
        unit = np.repeat(np.arange(UNITS), on)
        token = random.integers(0, BATCH, len(unit)) + first
        key = np.unique(token * UNITS + unit)
        yield key // UNITS, key % UNITS, np.exp(random.normal(0, 0.7, len(key))).astype(np.float32)


def spent(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def ingest(folder: Path, total: int) -> dict[str, float]:
    """CPU seconds of each part."""
    took = dict.fromkeys(("append", "seal"), 0.0)
    entries = 0
    identity = {"basis": "synthetic"}
    with UnitWriter.open(folder, identity, n_units=UNITS, n_tokens=DOCUMENTS * LENGTH) as writer:
        for token, unit, value in batches(total):
            entries += len(token)
            took["append"] += spent(lambda: writer.append(token, unit, value, seen=BATCH))  # noqa: B023
        took["append"] += spent(writer.commit)
        took["seal"] = spent(writer.seal)
    return took | {"entries": entries}


def page(store: UnitStore, unit: int) -> None:
    """All that a unit's page shows: density, histogram, 20 strongest and 10 × 5 other windows with their values."""
    _ = store.counts[unit] / store.manifest.seen
    store.histogram(unit)
    chosen = [store.top(unit, 20), *store.quantiles(unit)]
    store.contexts(unit, np.concatenate([one.token for one in chosen]))


def milliseconds(work: Callable[[int], object], units: list[int]) -> str:
    """Median and 95th percentile of CPU time over units, each asked once before."""
    took = []
    for unit in units:
        work(unit)
        took.append(1000 * min(spent(lambda: work(unit)) for _ in range(3)))  # noqa: B023
    return f"{statistics.median(took):.3f} | {np.quantile(took, 0.95):.3f}"


def main() -> None:
    total = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000_000
    with tempfile.TemporaryDirectory(prefix="unit-store-") as where:
        folder = Path(where)
        words = np.random.default_rng(2).integers(0, 50_257, (DOCUMENTS, LENGTH))
        Corpus.write(words, 50_257, folder / "corpus")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        took = ingest(folder / "units", total)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size = sum(path.stat().st_size for path in (folder / "units").iterdir())
        store = UnitStore.open(folder / "units")
        entries, seconds = took["entries"], took["append"] + took["seal"]
        densest = np.argsort(store.counts)[::-1][:50].tolist()
        some = np.random.default_rng(3).choice(UNITS, 300, replace=False).tolist()
        print(f"{entries / 1e6:.1f} M activations of {UNITS} units (median {np.median(store.counts):.0f}, "
              f"largest {store.counts.max()}), {DOCUMENTS} documents of {LENGTH} tokens.\n")  # fmt: skip
        print("| figure | measured | asked for |\n|---|---|---|")
        print(f"| ingested, M activations a CPU second | {entries / seconds / 1e6:.2f} | ≥ 2 |")
        print(f"| … appending / sealing, CPU seconds | {took['append']:.1f} / {took['seal']:.1f} | |")
        print(f"| bytes an activation, both orders | {size / entries:.2f} | ≤ 13 |")
        print(
            f"| growth of peak memory while ingesting, MB (maps included) | {(after - before) / 1000:.0f} | |\n"
        )
        print("| warm query, CPU milliseconds | median | 95 % |\n|---|---|---|")
        everything: dict[str, tuple[Callable[[int], object], list[int]]] = {
            "all of a unit's page (≤ 1 asked)": (lambda unit: page(store, unit), some),
            "… of the 50 densest units": (lambda unit: page(store, unit), densest),
            "top 20": (lambda unit: store.top(unit, 20), some),
            "10 quantiles × 5": (store.quantiles, some),
            "histogram": (store.histogram, some),
            "all units of a document": (store.document, list(range(0, 8000, 80))),
        }
        for name, (work, units) in everything.items():
            print(f"| {name} | {milliseconds(work, units)} |")
        print(
            f"\nTop 20 of all units: {spent(lambda: [store.top(unit, 20) for unit in range(UNITS)]):.2f} CPU s. "
        )
        print(
            f"Counts and correlations of 16 units with all: {spent(lambda: pairs(store, some[:16])):.2f} CPU s."
        )


if __name__ == "__main__":
    main()
