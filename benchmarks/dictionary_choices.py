"""What does each choice in training a dictionary buy? `python benchmarks/dictionary_choices.py [STEPS]`

The small synthetic benchmark: 1024 features in trees, 128 dimensions; dictionaries of 256 units, 8 on, in batches of
1024 rows. Each line of the table changes one choice of the defaults, for TopK and for JumpReLU. All are trained in one
pass, so that all see the same batches. Cost to reach a target: the first measurement, every fiftieth part of the
training, at which so much of the variance of 8192 rows held out is explained: its steps, and the CPU seconds on one
thread that they took, making the batches not included.
"""

import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from microtome.bases.codes import SparseCodes
from microtome.dictionaries.learner import Learner, Taken
from microtome.dictionaries.recipe import Recipe
from microtome.dictionaries.scene import OwnUnits, Target, squared_error
from microtome.dictionaries.trainer import Trained, train
from microtome.evaluation.planted_recovery import planted_recovery
from microtome.testbeds.toys.planted_stream import PlantedStream
from microtome.testbeds.toys.synthetic_benchmark import SMALL, SyntheticBenchmark

RESULT: Final = Path(__file__).parent / "results" / "dictionary_choices.md"
GOALS: Final = (0.65, 0.70)
SEEDS: Final = (0, 1)
KINDS: Final = ("topk", "jumprelu")
CHOICES: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("the defaults", {}),
    ("first directions of rows", {"initial": "data"}),
    ("dead units resampled", {"dead_units": "resample"}),
    ("dead units left dead", {"dead_units": "no"}),
    ("no centring", {"centring": "no"}),
    ("centred at the geometric median", {"centring": "median"}),
    ("no scaling", {"scaling": "no"}),
    ("whitening", {"scaling": "whiten"}),
    ("what is added last not subtracted first", {"tied": False}),
    ("norms of directions free", {"decoder": "free"}),
)


class Timed(Learner):
    """A learner that is timed. spent: CPU seconds of each step, by the name of the recipe."""

    spent: ClassVar[defaultdict[str, list[float]]] = defaultdict(list)

    def learn(self, values: Tensor, wanted: Tensor, target: Target | OwnUnits = squared_error) -> Taken:
        start = time.process_time()
        taken = super().learn(values, wanted, target)
        self.spent[self.recipe.name].append(time.process_time() - start)
        return taken


def reached(each: list[Trained], goal: float) -> str:
    """The first steps measured at which so much is explained, of each, and what they cost on average."""
    steps = [next((entry.step for entry in one.log if entry.explained >= goal), None) for one in each]
    spent = [
        sum(Timed.spent[one.recipe.name][:step])
        for one, step in zip(each, steps, strict=True)
        if step is not None
    ]
    told = ", ".join("–" if step is None else str(step) for step in steps)
    return f"{told} ({statistics.mean(spent):.2f} s)" if len(spent) == len(steps) else told


def main(steps: int) -> None:
    torch.set_num_threads(1)
    planted = SyntheticBenchmark(SMALL)
    held = PlantedStream(planted).held_out(8192)
    truth = SparseCodes(held.row, held.feature, held.coefficient, 8192, SMALL.features)
    lines = [
        f"# Choices in training a dictionary\n\n{(__doc__ or '').split(chr(10) * 2, 1)[1].strip()}\n",
        f"{steps} steps; first directions by seeds {' and '.join(map(str, SEEDS))}, other figures are their means.\n",
        f"| kind | choice | to explain {GOALS[0]} | {GOALS[1]} | explained | L0 | dead | MCC | F1 |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    recipes = [
        Recipe.read(
            {
                "name": f"{kind}-{number}-{seed}",
                "width": 256,
                "l0": 8,
                "steps": steps,
                "activation": kind,
                "seed": seed,
                **choice,
            }
        )
        for kind in KINDS
        for number, (_, choice) in enumerate(CHOICES)
        for seed in SEEDS
    ]
    start = time.process_time()
    found = train(PlantedStream(planted, 1024), recipes, held_out=held.activations, learner=Timed)
    spent = time.process_time() - start
    by_name = {one.recipe.name: one for one in found}
    for kind in KINDS:
        for number, (name, _) in enumerate(CHOICES):
            each = [by_name[f"{kind}-{number}-{seed}"] for seed in SEEDS]
            rows = []
            for one in each:
                codes = one.dictionary.encode_sparsely(held.activations)
                scores = planted_recovery(one.dictionary.directions(), codes, planted.dictionary, truth)
                dead = one.dictionary.n_units - len(codes.unit.unique())
                rows.append((one.final.explained, one.final.on, dead, scores.mcc, scores.f1))
            explained, on, dead, mcc, f1 = map(statistics.mean, zip(*rows, strict=True))
            goals = " | ".join(reached(each, goal) for goal in GOALS)
            lines.append(
                f"| {kind} | {name} | {goals} | {explained:.4f} | {on:.2f} | {dead:.1f} "
                f"| {mcc:.4f} | {f1:.4f} |"
            )
    lines.append(f"\n{len(recipes)} dictionaries in one pass: {spent:.0f} CPU seconds, data included.")
    text = "\n".join(lines) + "\n"
    RESULT.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
