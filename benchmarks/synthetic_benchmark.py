"""Do our variants find more of a synthetic benchmark than SAELens's? `python benchmarks/synthetic_benchmark.py [full]`

small (or the names of variants, whose lines of the table are then measured anew): 1024 features in 128 dimensions,
dictionaries of 256 units, 3 million rows in batches of 1024. SAELens's figures (6.54.12) were measured at such settings
on this kind of machine; its rows are drawn by other random numbers of the same distribution, but where the table says
"these rows": there its trainer was given ours. Ours: the defaults of `Recipe` in everything that is not in the table; λ
is told as SAELens's is, for values that are not scaled. All are trained in one pass.
full: SynthSAEBench-16k, 16384 features in 768 dimensions, width 4096, 200 million rows, beside the published table; for
a machine with a GPU (`full ROWS` for fewer rows).

Scores are those of `microtome.evaluation.planted_recovery` on 100 000 rows (full: 20 000) that were not trained on.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from microtome.bases.codes import SparseCodes
from microtome.bases.reconstruction import reconstruction
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.trainer import Trained, train
from microtome.evaluation.planted_recovery import planted_recovery
from microtome.testbeds.toys.planted_stream import PlantedStream
from microtome.testbeds.toys.synthetic_benchmark import FULL, SMALL, SyntheticBenchmark

RESULT = Path(__file__).parent / "results" / "synthetic_benchmark.md"
SEED = 42
GENERATOR_OF_SAELENS = 1061  # rows a CPU second at the full settings
PREFIXES = (32, 64, 128, 256)
WIDE = (128, 512, 2048, 4096)
# L0, dead units, explained variance, MCC, uniqueness, F1, norm ratio; at L0 25 the published means.
SAELENS_SMALL: dict[str, tuple[float, ...]] = {
    "TopK": (8.00, 2, 0.7337, 0.6599, 0.8750, 0.5099, 0.865),
    "BatchTopK": (8.00, 16, 0.7261, 0.6157, 0.8125, 0.4914, 0.841),
    "Matryoshka": (8.00, 13, 0.6919, 0.6029, 0.7812, 0.5041, 0.839),
    "L1, L0 54.3": (54.3, 0, 0.852, 0.645, 0.86, 0.226, 0.814),
    "L1, λ 1": (54.3, 0, 0.852, 0.645, 0.86, 0.226, 0.814),
    "L1, L0 14.7": (14.7, 0, 0.717, 0.656, 0.81, 0.515, 0.710),
    "L1, λ 3": (14.7, 0, 0.717, 0.656, 0.81, 0.515, 0.710),
    "JumpReLU": (186.5, 0, 0.9785, 0.3048, 0.8008, 0.0809, 0.998),
    "MatchingPursuit": (7.81, 0, 0.8119, 0.6910, 0.7070, 0.4643, 0.902),
}
SAELENS_ON_THESE_ROWS: dict[str, tuple[float, ...]] = {  # at λ 2.8 and 5.3; 50 000 rows to measure on
    "L1, L0 14.7": (15.33, 0, 0.7279, 0.6663, 0.8516, 0.4992, 0.7250),
    "L1, L0 8": (10.39, 0, 0.5915, 0.6319, 0.7188, 0.6091, 0.5864),
}
TOLD = """\
L1 at an equal number on: ours explain more and have a higher MCC, but at 14.7 and 54.3 on a lower F1. The cause is
how far training goes, not how it is scored. With SAELens's settings (rate 3e-4 throughout, no scaling, free norms, λ
3) our trainer gives what SAELens's does: 13.7 on, 0.719 explained, F1 0.506. Of our defaults, its rate alone gives
0.486 at 14.7 on (0.707 explained), a third of the steps 0.473 (0.732). Of the features that 256 units can hold about
8 are on: trained further, units on beyond that are spent, weakly and by many, on what is not explained yet. At equal
explained variance ours has fewer on and a higher F1 (coefficient 2.2 of scaled values: 10.4 on, 0.732 explained, MCC
0.667, F1 0.536). SAELens's F1 of 0.609 at 10.4 on comes with 0.592 explained, and 28 of 100 units second to a feature
that another has. No default was changed for it: at 8 on the lower rate lowers everything (explained 0.540, MCC 0.613,
F1 0.533). The lines of other variants are of an earlier run.
"""
NAN = float("nan")
SAELENS_FULL: dict[str, tuple[float, ...]] = {
    "BatchTopK": (25, NAN, 0.7923, 0.7574, 0.9837, 0.7316, NAN),
    "Matryoshka": (25, NAN, 0.7792, 0.7927, 0.9987, 0.8793, NAN),
    "L1": (25, NAN, 0.7654, 0.6039, 0.8976, 0.5562, NAN),
    "JumpReLU": (25, NAN, 0.7951, 0.7527, 0.9885, 0.7317, NAN),
    "MatchingPursuit": (25, NAN, 0.8351, 0.6930, 0.8281, 0.4464, NAN),
}


def recipes(small: bool, steps: int) -> dict[str, Recipe]:
    """What is trained: the variants at the published number of units on."""
    base: dict[str, Any] = {"width": 256 if small else 4096, "l0": 8.0 if small else 25.0, "steps": steps}
    base |= {"half": torch.cuda.is_available()}
    found = {"TopK": Recipe(**base, activation="topk")} if small else {}
    found |= {
        "BatchTopK": Recipe(**base, activation="batch_topk"),
        "Matryoshka": Recipe(**base, activation="batch_topk", prefixes=PREFIXES if small else WIDE),
    }
    if small:
        paying = {name: value for name, value in base.items() if name != "l0"} | {"scaling": "no"}
        for l0, price in ((54.3, 1.0), (14.7, 3.0)):
            found[f"L1, L0 {l0}"] = Recipe(**base | {"l0": l0}, activation="relu")
            found[f"L1, λ {price:g}"] = Recipe(**paying, coefficient=price, activation="relu")
        found["L1, L0 8"] = Recipe(**base, activation="relu")
    else:
        found["L1"] = Recipe(**base, activation="relu")
    found["JumpReLU"] = Recipe(**base, activation="jumprelu")
    found["MatchingPursuit"] = Recipe(**base, activation="matching_pursuit")
    return found


def scores(trained: Trained, stream: PlantedStream, rows: int) -> tuple[float, ...]:
    """In the order of SAELens's figures."""
    chunk = stream.held_out(rows)
    dictionary = trained.dictionary.mapped(lambda tensor: tensor.cpu())
    kept = reconstruction(dictionary, chunk.activations)
    real = SparseCodes(chunk.row, chunk.feature, chunk.coefficient, rows, len(stream.planted.dictionary))
    codes = dictionary.encode_sparsely(chunk.activations)
    found = planted_recovery(dictionary.directions(), codes, stream.planted.dictionary, real)
    dead = kept.dead * dictionary.n_units
    return kept.l0, dead, kept.explained_variance, found.mcc, found.uniqueness, found.f1, kept.norm_ratio


def rows_a_second(planted: SyntheticBenchmark) -> float:
    """Median over chunks of 4096, in CPU seconds."""
    planted.chunk(0, 4096)
    spent = []
    for number in range(7):
        start = time.process_time()
        planted.chunk(number, 4096)
        spent.append(time.process_time() - start)
    return 4096 / statistics.median(spent)


def line(name: str, who: str, found: tuple[float, ...]) -> str:
    l0, dead, *others = found
    told = [
        f"{l0:.2f}",
        "" if dead != dead else f"{dead:.0f}",
        *("" if x != x else f"{x:.4f}" for x in others),
    ]
    return f"| {name} | {who} | {' | '.join(told)} |"


def speeds() -> str:
    """How fast rows are made."""
    full = rows_a_second(SyntheticBenchmark(FULL.model_copy(update={"steps": 0}), SEED))
    return (
        f"Rows at the full settings: {full:,.0f} a CPU second, {full / GENERATOR_OF_SAELENS:.1f} times SAELens's "
        f"{GENERATOR_OF_SAELENS:,}; at the small settings {rows_a_second(SyntheticBenchmark(SMALL, SEED)):,.0f}."
    )


def earlier(beginning: str) -> str:
    """The line of an earlier result that begins so."""
    return next(told for told in RESULT.read_text().splitlines() if told.startswith(beginning))


def main() -> None:
    small = "full" not in sys.argv
    torch.set_num_threads(1 if small else torch.get_num_threads())
    rows = int(sys.argv[-1]) if sys.argv[-1].isdigit() else 3_000_000 if small else 200_000_000
    planted = SyntheticBenchmark(SMALL if small else FULL, SEED)
    stream = PlantedStream(planted, 1024)
    every = recipes(small, rows // 1024)
    wanted = {name: recipe for name, recipe in every.items() if small and name in sys.argv} or every
    start = time.process_time()
    device = "cuda" if torch.cuda.is_available() else None
    trained = train(
        stream, list(wanted.values()), device=device, folder=None if small else "synthetic-benchmark"
    )
    spent = time.process_time() - start
    ours = {
        name: line(name, "microtome", scores(one, stream, 100_000 if small else 20_000))
        for name, one in zip(wanted, trained, strict=True)
    }
    peer = SAELENS_SMALL if small else SAELENS_FULL
    lines = [
        f"# Synthetic benchmark, {'small' if small else 'SynthSAEBench-16k'}",
        "",
        f"{rows:,} rows; {len(wanted)} dictionaries of {trained[0].dictionary.n_units} units in one pass: "
        f"{spent:.0f} CPU seconds, data included.",
        "",
        "| variant | by | L0 | dead | explained variance | MCC | uniqueness | F1 | norm ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in every:
        lines.append(ours[name] if name in ours else earlier(f"| {name} | microtome"))
        if name in peer:
            lines.append(line(name, "SAELens", peer[name]))
        if small and name in SAELENS_ON_THESE_ROWS:
            lines.append(line(name, "SAELens, these rows", SAELENS_ON_THESE_ROWS[name]))
    lines += [
        "",
        *([TOLD] if small else []),
        speeds() if wanted is every else earlier("Rows at the full"),
        "",
    ]
    text = "\n".join(lines)
    if small:
        RESULT.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
