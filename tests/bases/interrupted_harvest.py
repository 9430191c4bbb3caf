"""Small harvests in processes of their own that are killed, or run out of disk: prints as JSON what happened.

kills    values and units harvested whole, then with a kill before every few touches of a file, each time resumed; in
         FOLDER/whole, FOLDER/killed-N
full     both, where no file may grow past a few kilobytes, then without that limit; in FOLDER/full
memory   peak memory of harvests of a short and of a long corpus; in FOLDER/memory
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from microtome.bases.harvest import Harvest
from microtome.bases.harvest_units import harvest_units
from microtome.bases.harvest_values import harvest_values
from microtome.bases.linear import LinearBasis
from microtome.core.errors import StoreError
from microtome.data.corpus import Corpus
from microtome.data.corpus_rows import CorpusRows
from microtome.store import unit_writer
from models import families

torch.set_num_threads(1)
MODEL = families.model("gpt2")
DIRECTIONS = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
TOUCHES = ("open", "os.rename", "os.mkdir", "os.remove", "os.truncate", "os.listdir", "os.scandir")


def rows(tokens: int) -> CorpusRows:
    ids = np.random.default_rng(0).integers(0, families.VOCABULARY, tokens)
    return CorpusRows(Corpus.of(np.split(ids, range(50, tokens, 50)), families.VOCABULARY), 10)


def harvest(folder: Path, tokens: int = 300, shard_bytes: int = 10_000, together: int = 10) -> None:
    """Values at two sites, and units of two bases, of which one fills its shards six times as fast."""
    values = Harvest.of(MODEL, rows(tokens), ["resid_post.0", "grad:resid_post.0"], together=together)
    harvest_values(values, folder / "values", shard_bytes=shard_bytes)
    many = LinearBasis("resid_post.1", DIRECTIONS, name="random")
    few = LinearBasis("resid_post.0", DIRECTIONS[:7], name="few")
    harvest_units(MODEL, rows(tokens), [many, few], folder / "units", gradients=True, together=together)


def in_child(work: Callable[[], object]) -> int:
    """The status of a process that does the work; told apart: 0 done, 1 failed, 2 a `StoreError`, -9 killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except StoreError as error:
            print(error, file=sys.stderr)
            os._exit(2)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(folder: Path, at: int) -> bool:
    """Harvest in a child that kills itself just before its `at`-th touch of a file; whether it came to that."""

    def work() -> None:
        left = at

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event in TOUCHES:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        harvest(folder)

    status = in_child(work)
    if status not in (0, -signal.SIGKILL):
        sys.exit(f"the harvest failed with {status}")
    return status != 0


def kills(folder: Path) -> dict[str, int]:
    harvest(folder / "whole")
    struck = 0
    while killed(folder / f"killed-{struck}", 1 + 13 * struck):
        harvest(folder / f"killed-{struck}")
        struck += 1
    return {"struck": struck}


def full(folder: Path) -> dict[str, int]:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        harvest(folder)

    found = {}
    for limit in (500, 20_000, 30_000, 46_000):
        found[str(limit)] = in_child(limited)
    harvest(folder)
    return found


def memory(folder: Path) -> dict[str, int]:
    """Kilobytes of peak memory; each corpus in a process of its own."""
    found = {}
    for tokens in (2_000, 22_000):
        pipe, end = os.pipe()

        def work(tokens: int = tokens, end: int = end) -> None:
            harvest(folder / str(tokens), tokens, shard_bytes=100_000, together=100)
            status = Path("/proc/self/status").read_text()
            peak = status.partition("VmHWM:")[2].split()[0]
            os.write(end, peak.encode())

        if in_child(work):
            sys.exit("the harvest failed")
        found[str(tokens)] = int(os.read(pipe, 99))
    return found


if __name__ == "__main__":
    unit_writer.UnitWriter.open.__func__.__kwdefaults__["at_once"] = 1_500
    where = Path(sys.argv[1])
    print(
        json.dumps({"kills": kills(where), "full": full(where / "full"), "memory": memory(where / "memory")})
    )
