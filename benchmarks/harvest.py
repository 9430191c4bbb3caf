"""What does a harvest cost beside the model itself? CPU seconds of one thread, and peak memory.

The model is a random GPT-2 of 6 layers and 512 dimensions. Its own bare forward on the same rows (no hooks, no head) is
what the harvest is compared with: the share of the time that is the model's, taken within each repetition, so that
what else the machine does meets both. Run: python benchmarks/harvest.py
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from clock import interleaved
from microtome.bases.harvest import Harvest
from microtome.bases.harvest_units import harvest_units
from microtome.bases.harvest_values import harvest_values
from microtome.bases.streams import ActivationStream, ArrayStream, stream
from microtome.core.site import as_site
from microtome.data.corpus import Corpus
from microtome.data.corpus_rows import CorpusRows
from microtome.dictionaries.activations import TopK
from microtome.dictionaries.dictionary import Dictionary
from microtome.models.load import load
from microtome.models.model import Model

COLUMNS, TOGETHER, PASSES, WIDTH, VOCABULARY = 128, 16, 4, 512, 5_000
SITES = ("resid_post.5",)
THREE = ("resid_post.1", "mlp_out.3", "resid_post.5")


def built() -> Model:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=COLUMNS,
        n_embd=WIDTH,
        n_layer=6,
        n_head=8,
        bos_token_id=0,
        eos_token_id=0,
    )
    return load(GPT2LMHeadModel(config).eval())


def rows(passes: int = PASSES) -> CorpusRows:
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, passes * TOGETHER * COLUMNS)
    return CorpusRows(Corpus.of([tokens], VOCABULARY), COLUMNS)


@torch.no_grad()
def forward(model: Model) -> None:
    """The model's own pass over the same rows."""
    given = rows()
    for first in range(0, len(given), TOGETHER):
        model.module.transformer(given.batch(np.arange(first, first + TOGETHER)).ids, use_cache=False)


def to_disk(model: Model, sites: tuple[str, ...], gradients: bool = False) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wanted = [*sites, *(f"grad:{site}" for site in sites)] if gradients else sites
        harvest_values(Harvest.of(model, rows(), wanted, together=TOGETHER), folder)


def units_kept(model: Model) -> None:
    """Of a dictionary of 4 096 units, 32 on at a token; its encoding is part of the time."""
    site, random = (as_site(SITES[0]),), torch.Generator().manual_seed(0)
    encoder = torch.randn(4096, WIDTH, generator=random)
    zeros = torch.zeros(WIDTH)
    units = Dictionary(
        "top", site, site, (WIDTH,), (WIDTH,), TopK(32), encoder, torch.zeros(4096), encoder, zeros, zeros
    )
    with tempfile.TemporaryDirectory() as folder:
        harvest_units(model, rows(), [units], folder, together=TOGETHER)


def streamed(model: Model) -> None:
    for _ in stream(model, rows(), SITES, batch_rows=1024, span=4096, together=TOGETHER):
        pass


def buffer_cost(span: int) -> float:
    """CPU microseconds a token of the ring alone: values that are at hand are mixed and served in batches of 4 096."""
    given = rows(1)
    harvest = Harvest.of(built(), given, SITES, together=TOGETHER)
    found = ActivationStream(harvest, 1024, span=2048)
    found.span, found.batch_rows, found.n_steps = span, 4096, 2 * span // 4096
    found._slots = torch.empty(span, WIDTH)
    values = torch.randn(TOGETHER * COLUMNS, WIDTH)

    def endless(row: int):  # in the place of the model
        while True:
            yield values

    found._arrivals = endless  # type: ignore[method-assign]
    next(found)  # fills the buffer
    start = time.process_time()
    served = sum(len(batch) for batch in found)
    return 1e6 * (time.process_time() - start) / served


def peak(passes: int) -> int:
    """Megabytes of peak memory of a harvest of so many passes to disk, in a process of its own."""
    code = (
        "import resource, sys, tempfile; sys.path.insert(0, 'benchmarks'); import harvest as h;"
        "model = h.built(); folder = tempfile.TemporaryDirectory();"
        f"wanted = h.Harvest.of(model, h.rows({passes}), h.SITES, together=4);"
        "h.harvest_values(wanted, folder.name, shard_bytes=1 << 22);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    return int(done.stdout)


def main() -> None:
    model = built()
    work = {
        "the model's bare forward": lambda: forward(model),
        "harvest, one site, kept nowhere": lambda: sum(
            1 for _ in Harvest.of(model, rows(), SITES, together=TOGETHER).passes()
        ),
        "harvest, one site, to disk": lambda: to_disk(model, SITES),
        "harvest, three sites, to disk": lambda: to_disk(model, THREE),
        "harvest, units of a dictionary of 4 096, sorted on disk": lambda: units_kept(model),
        "stream, one site (every value harvested once)": lambda: streamed(model),
    }
    spent = interleaved(work, 3)
    bare = spent["the model's bare forward"]
    print(f"{PASSES * TOGETHER * COLUMNS} tokens, {TOGETHER} rows of {COLUMNS} a pass.\n")
    print(
        "| work | CPU seconds (median of 3) | share that is the model's forward | asked for |\n|---|---|---|---|"
    )
    for name, took in spent.items():
        share = statistics.median(one / other for one, other in zip(bare, took, strict=True))
        asked = "≥ 80 %" if took is not bare else ""
        print(f"| {name} | {statistics.median(took):.2f} | {share:.0%} | {asked} |")
    print("\n| ring of rows of 512 float32, batches of 4 096 | CPU µs a token |\n|---|---|")
    for span in (1 << 15, 1 << 17, 1 << 18):
        print(f"| span {span} | {buffer_cost(span):.2f} |")
    array = ArrayStream(torch.randn(1 << 17, WIDTH), 4096, epochs=1)
    start = time.process_time()
    served = sum(len(batch) for batch in array)
    print(
        f"| (an array of {1 << 17} in memory, permuted) | {1e6 * (time.process_time() - start) / served:.2f} |"
    )
    print("\n| corpus, passes of 4 rows | values, MB | peak memory, MB |\n|---|---|---|")
    for passes in (1, 5):
        print(f"| {4 * passes} | {passes * TOGETHER * COLUMNS * WIDTH * 4 / 1e6:.0f} | {peak(passes)} |")


if __name__ == "__main__":
    main()
