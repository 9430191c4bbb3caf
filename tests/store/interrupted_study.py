"""A small study run in processes of its own that are killed: `interrupted_study.py FOLDER KILLS…`, see `main`.

It has every kind of thing a study keeps: plain stages that build on each other, a result, a ledger, a report.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import weight_norms
import xarray as xr

from microtome.core.claim import Claim, Evidence, Prediction
from microtome.core.provenance import Provenance
from microtome.store.study_folder import StudyFolder

IDENTITY = {"model": {"name": "toy", "hash": "ab" * 32}, "config": {"seed": 3}, "tasks": ["count"]}


def norms(scale: float) -> weight_norms.Result:
    data = xr.Dataset({"norm": ("parameter", np.arange(3.0) * scale)}, {"parameter": ["a", "b", "c"]})
    return weight_norms.Result("weight_norms", data, weight_norms.Config(), 3, Provenance("toy"))


def study(path: Path) -> None:
    with StudyFolder.open(path, IDENTITY) as folder:
        numbers = folder.stage("count/numbers", lambda: [k * 0.1 for k in range(200)])
        total = folder.stage("count/total", lambda: {"total": sum(numbers), "of": (1, 2)})
        found = folder.result("count/weight_norms", lambda: norms(total["total"]))

        def test() -> dict[str, bool]:
            claim = folder.ledger.add(Claim("norms grow", ("a", "b"), "toy"))
            foretold = Prediction(claim, "largest norm", "data", low=1.0)
            folder.ledger.register(foretold)
            largest = float(found.data["norm"].max())
            return {"hit": folder.ledger.record(foretold, Evidence(largest, 3, "correlational", "data")).hit}

        tested = folder.stage("count/test", test)
        folder.write_text("report.html", f"<p>{len(numbers)} {total} {tested}</p>" * 50)


def killed(path: Path, at: int) -> bool:
    """Run the study in a child that kills itself just before its `at`-th touch of a file; whether it came to that."""
    child = os.fork()
    if child == 0:
        left = at

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event in (
                "open",
                "os.rename",
                "os.mkdir",
                "os.remove",
                "os.truncate",
                "os.listdir",
                "os.scandir",
            ):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(watch)
            study(path)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0:
        sys.exit("the study failed")
    return os.WIFSIGNALED(status)


def main() -> None:
    """Each argument is a folder and the touches at which successive runs are killed: `out=3,17`. `out=each` kills a
    fresh study once at every touch it makes, in `out-1`, `out-2`, …. All are resumed to the end; prints how many
    kills struck.
    """
    struck = {}
    for argument in sys.argv[1:]:
        path, _, kills = argument.partition("=")
        if kills == "each":
            struck[path] = 0
            while killed(Path(f"{path}-{struck[path] + 1}"), struck[path] + 1):
                struck[path] += 1
                study(Path(f"{path}-{struck[path]}"))
        else:
            struck[path] = sum(killed(Path(path), int(at)) for at in filter(None, kills.split(",")))
            study(Path(path))
    print(json.dumps(struck))


if __name__ == "__main__":
    main()
