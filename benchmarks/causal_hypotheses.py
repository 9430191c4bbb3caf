"""Do the tests of hypotheses pass what is true and no more? `python benchmarks/causal_hypotheses.py [PROGRAM …]`.

Three tables over compiled programs and networks trained by interchange: the true hypothesis on every rung of the
strictness ladder, worst share beside its control; the variables of compiled programs as found by distributed alignment
search, on held-out rows, beside random weights; and where the search for hypotheses places a trained network's
variables.
"""

import sys
import time
from collections.abc import Callable, Iterator

import torch

from microtome.causal import distributed_alignment_search as alignment
from microtome.causal import hypothesis_search, strictness_ladder
from microtome.core.draws import generator
from microtome.data.hypothesis import Hypothesis
from microtome.models.load import load
from microtome.models.model import Model
from microtome.testbeds.interchange.library import TASKS
from microtome.testbeds.interchange.network import network
from microtome.testbeds.interchange.testbed import hypothesis as of_task
from microtome.testbeds.programs.causal_model import hypothesis as of_program
from microtome.testbeds.programs.library import PROGRAMS
from microtome.testbeds.programs.testbed import decoys

ROWS = 96
MOST = 6  # variables of a hypothesis; two programs have more, and are left out
SEARCHED = 2  # variables of a program whose directions are searched


def main() -> None:
    torch.set_num_threads(1)
    chosen = sys.argv[1:]
    networks = [
        (name, *found)
        for name, find in cases()
        if (not chosen or name in chosen)
        and (found := find()) is not None
        and len(found[1].model.inner) <= MOST
    ]
    print("## The strictness ladder: worst share (control)\n")
    print("| network | behaviour | scrubbing | local | abstraction | of | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for name, model, data in networks:
        start = time.process_time()
        found = strictness_ladder.run(model, data, strictness_ladder.Config(draws=2)).data
        spent = time.process_time() - start
        shares = [
            f"{worst:.3f}" if control != control else f"{worst:.3f} ({control:.2f})"
            for worst, control in zip(found["worst"].values, found["control"].values, strict=True)
        ]
        print(f"| {name} | {' | '.join(shares)} | {found['where'].values[3]} | {spent:.1f} |", flush=True)
    print("\n## Distributed alignment search: share right among rows whose answer changes\n")
    print(
        "| variable | site | directions | held out | learned | random weights | identity | dormant | n | CPU s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, model, data in networks:
        if name.startswith("programs/") and len(data.model.inner) <= SEARCHED:
            searched(name, model, data)
    print("\n## Search for the simplest hypothesis: from the algorithm alone\n")
    print("| network | found | true | in random weights | CPU s |")
    print("|---|---|---|---|---|")
    for name, model, data in networks:
        if name.startswith("interchange/"):
            start = time.process_time()
            best = hypothesis_search.run(model, data)
            spent = time.process_time() - start
            attributes = best.data.attrs
            print(
                f"| {name} | {best.best or 'none'} | {best.best == data.told()} | "
                f"{attributes['twin_survivors']} of {attributes['twin_tried']} | {spent:.1f} |",
                flush=True,
            )


def cases() -> Iterator[tuple[str, Callable[[], tuple[Model, Hypothesis] | None]]]:
    """Every network with a function that gives it and the true hypothesis about it; none where nothing varies."""
    for program in PROGRAMS:

        def compiled(program=program):  # type: ignore[no-untyped-def]
            made = program.compile(decoys())
            source = generator(0)
            size, length = len(program.vocabulary), program.length
            drawn = torch.randint(size, (4 * ROWS, length), generator=source).unique(dim=0)
            rows = drawn[torch.randperm(len(drawn), generator=source)[:ROWS]]
            inputs = [[program.vocabulary[i] for i in row] for row in rows.tolist()]
            data = of_program(made, program.expression, made.encode(inputs))
            return None if data is None else (load(made.transformer()), data)

        yield f"programs/{program.name}", compiled
    for task in TASKS:

        def trained(task=task):  # type: ignore[no-untyped-def]
            return load(network(task).eval()), of_task(task, task.held_out(ROWS, generator(0, -3)))

        yield f"interchange/{task.name}", trained


def searched(name: str, model: Model, data: Hypothesis) -> None:
    """A line for each variable."""
    for variable in data.model.inner:
        start = time.process_time()
        config = alignment.Config(variables=(variable,))
        try:
            found = alignment.run(model, data, config).data.isel(variable=0)
        except ValueError as error:
            print(f"| {name}: {variable} | {error} | | | | | | | | |", flush=True)
            continue
        spent = time.process_time() - start
        shares = [
            float(found[column])
            for column in (
                "accuracy_changed",
                "learned_changed",
                "twin_changed",
                "identity_changed",
                "dormant",
            )
        ]
        print(
            f"| {name}: {variable} | {found['site'].values!s} | {int(found['size'])} | "
            f"{' | '.join(f'{share:.3f}' for share in shares)} | {int(found['n_changed'])} | {spent:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
