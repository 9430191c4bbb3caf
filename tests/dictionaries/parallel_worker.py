"""Train a few dictionaries, alone or as one of several processes; run by `test_parallel`, as torchrun would run it:

RANK=… WORLD_SIZE=… MASTER_ADDR=… MASTER_PORT=… python parallel_worker.py OUT
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from microtome.bases.streams import ArrayStream
from microtome.core.errors import InputError
from microtome.core.site import Site
from microtome.dictionaries import files
from microtome.dictionaries.layout import Layout
from microtome.dictionaries.learner import Learner
from microtome.dictionaries.multi_site import cross_layer, transcoder
from microtome.dictionaries.parallel import DataParallel, Sharded
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.shared_rows import ShareOfRows
from microtome.dictionaries.trainer import train

SITE = Layout.autoencoder(Site("resid_post", 0))
BASE = Recipe(width=32, l0=4, steps=5, rate=1e-3, warm_up=0.0)
CASES: dict[str, tuple[Recipe, Layout]] = {
    "topk": (BASE, SITE),
    "auxk": (BASE.model_copy(update={"l0": 1.0, "dead_after": 100, "initial": "data"}), SITE),
    "relu": (BASE.model_copy(update={"activation": "relu"}), SITE),
    "free": (BASE.model_copy(update={"activation": "relu", "decoder": "free"}), SITE),
    "gated": (BASE.model_copy(update={"activation": "gated"}), SITE),
    "jumprelu": (BASE.model_copy(update={"activation": "jumprelu"}), SITE),
    "batch": (BASE.model_copy(update={"activation": "batch_topk"}), SITE),
    "skip": (BASE, transcoder(0, skip=True)),
    "cross": (BASE.model_copy(update={"activation": "relu"}), cross_layer(2)),
}


def values(layout: Layout) -> tuple[Tensor, tuple[Site, ...]]:
    """Sums of few of many directions, at each site."""
    sites = tuple(dict.fromkeys(layout.reads + layout.writes))
    source = torch.Generator().manual_seed(0)
    true = torch.randn(40, 12 * len(sites), generator=source)
    strength = (torch.rand(600, 40, generator=source) < 0.1) * torch.rand(600, 40, generator=source)
    return strength @ true, sites


def run(out: Path, shared: bool) -> None:
    rank = distributed.get_rank() if shared else 0
    ways: dict[str, type[Learner]] = (
        {"rows": DataParallel, "units": Sharded} if shared else {"alone": Learner}
    )
    for way, learner in ways.items():
        for name, (recipe, layout) in CASES.items():
            if way == "units" and name == "jumprelu":
                continue
            rows, sites = values(layout)
            stream = ArrayStream(rows, 64, sites=sites, widths=(12,) * len(sites))
            losses: list[float] = []
            dead: list[int] = []

            def report(
                step: int, taken: object, losses: list[float] = losses, dead: list[int] = dead
            ) -> None:
                losses.append(taken[0].loss)  # type: ignore[index]
                dead.append(taken[0].dead)  # type: ignore[index]

            given = ShareOfRows(stream) if way == "rows" else stream
            folder = out / f"{way}-{name}-kept"
            (found,) = train(given, [recipe], layout=layout, learner=learner, report=report, folder=folder)
            if rank == 0:
                files.save(found.dictionary, out / f"{way}-{name}.safetensors")
                (out / f"{way}-{name}.json").write_text(json.dumps({"loss": losses, "dead": dead}))


def refused() -> None:
    """What cannot be shared says so, on every process."""
    rows, sites = values(SITE)
    cannot = "several processes train"
    for learner, change, words in (
        (DataParallel, {"activation": "matching_pursuit"}, cannot),
        (DataParallel, {"dead_units": "resample"}, cannot),
        (Sharded, {"activation": "matching_pursuit"}, cannot),
        (Sharded, {"activation": "jumprelu"}, cannot),
        (Sharded, {"width": 33}, "dealt out to 2 processes evenly"),
        (Sharded, {"prefixes": (8, 32)}, "units in one process"),
    ):
        stream = ArrayStream(rows, 64, sites=sites, widths=(12,))
        refuses(stream, BASE.model_copy(update=change), learner, words)


def refuses(stream: ArrayStream, recipe: Recipe, learner: type[Learner], words: str) -> None:
    with pytest.raises(InputError, match=words):
        train(stream, [recipe], learner=learner)


def main() -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    run(Path(sys.argv[1]), shared=True)
    refused()
    distributed.barrier()
    distributed.destroy_process_group()
    # Threads of gloo that still let go of tensors abort when they meet an interpreter that ends (pytorch#190489).
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
