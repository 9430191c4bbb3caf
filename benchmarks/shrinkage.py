"""How much of what a penalty took is given back, and what is the rest? `python benchmarks/shrinkage.py`

Planted features of norm 1, an L1 penalty, as many units as features, 800 steps of 512 rows. On 8192 rows that were not
trained on, averaged over features with a unit of cosine 0.9 at least, in rows where both are on:

    undershoot    by what share of the feature's coefficient the unit falls short of it
    lost          the part of it that is missing from the whole reconstruction
    by others     the part that other units, and the bias, write in its stead
    rightly on    of the places where those units are on, how many have their feature

corrected: a scale and a shift for each unit, fitted on 8192 other rows. refitted: which units are on is kept, and how
strongly is solved for in each row.
"""

import sys
import time
from pathlib import Path
from typing import Final

import torch
from torch.nn import functional

from microtome.bases.basis import Basis
from microtome.bases.codes import SparseCodes
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.refitted_dictionary import RefittedDictionary
from microtome.dictionaries.shrinkage import corrected, undershoot
from microtome.dictionaries.trainer import train
from microtome.testbeds.toys.planted_dictionary import Chunk, PlantedDictionary, Setting
from microtome.testbeds.toys.planted_stream import PlantedStream

TOLD: Final = """\
Where directions do not overlap a scale and a shift give back all. Where they do, half of the places where a unit is on
lack its feature; one scale and shift must serve both, and the fit gives back 35 to 57 %. Of what is then missing, more
than half is written by others. Solved for in each row, the same units give back 87 to 92 %, the reconstruction lacks
nearly nothing, and what remains is written by others, whose learned directions are not quite those of their features.
"""
RESULT: Final = Path(__file__).parent / "results" / "shrinkage.md"
ROWS: Final = 8192
PENALTIES: Final = (1.0, 2.0)
PLANTED: Final = {
    "24 in 24, 1.4 on": Setting(features=24, dimensions=24, highest=0.1, lowest=0.05, spread=100, bias=0.5),
    "128 in 64, 1.7 on": Setting(features=128, dimensions=64, highest=0.05, lowest=0.01, spread=50, bias=0.5),
    "128 in 64, 7 on": Setting(features=128, dimensions=64, highest=0.1, lowest=0.05, spread=100, bias=0.5),
}


def rightly_on(basis: Basis, chunk: Chunk, features: torch.Tensor) -> float:
    """Of the places where the units next to features are on, how many have the feature."""
    directions = functional.normalize(basis.directions(), dim=-1)
    near, unit = (functional.normalize(features, dim=-1) @ directions.mT).max(-1)
    on = (basis.encode(chunk.activations)[:, unit] != 0)[:, near >= 0.9]
    there = (chunk.coefficients(len(features)) != 0)[:, near >= 0.9]
    return float((on & there).sum() / on.sum().clamp_min(1))


def main() -> None:
    torch.set_num_threads(1)
    start = time.process_time()
    lines = [
        f"# What is given back of what a penalty took\n\n{(__doc__ or '').split(chr(10) * 2, 1)[1]}",
        "| planted | coefficient | dictionary | L0 | rightly on | undershoot | lost | by others | removed |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, setting in PLANTED.items():
        made = PlantedDictionary(setting, 0)
        units = setting.features
        recipes = [
            Recipe(width=units, activation="relu", coefficient=price, steps=800, dead_units="no")
            for price in PENALTIES
        ]
        fit, held = made.chunk(10**6, ROWS), made.chunk(10**6 + 1, ROWS)
        truth = SparseCodes(held.row, held.feature, held.coefficient, ROWS, units)
        for one in train(PlantedStream(made, 512), recipes):
            kinds: dict[str, Basis] = {
                "as trained": one.dictionary,
                "corrected": corrected(one.dictionary, fit.activations),
                "refitted": RefittedDictionary(one.dictionary),
            }
            first = None
            for kind, basis in kinds.items():
                found = undershoot(basis, held.activations, made.dictionary, truth)
                whole, lost, others = (
                    float(part.nanmean()) for part in (found.whole, found.lost, found.by_others)
                )
                first = first or whole
                on = len(basis.encode_sparsely(held.activations).value) / ROWS
                lines.append(
                    f"| {name} | {one.recipe.coefficient:g} | {kind} | {on:.2f} "
                    f"| {rightly_on(basis, held, made.dictionary):.2f} | {whole:.3f} | {lost:.3f} | {others:.3f} "
                    f"| {1 - whole / first:.0%} |"
                )
    lines.append(f"\n{TOLD}\n{time.process_time() - start:.0f} CPU seconds.")
    text = "\n".join(lines) + "\n"
    RESULT.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
