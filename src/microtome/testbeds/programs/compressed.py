"""Compiled programs in fewer dimensions than they have directions: the true dictionary is known, and not in sight.

`PROGRAM_turned` keeps all that its streams hold; `PROGRAM_learned` was trained into less and ships (its matrix alone,
made by `python -m microtome.testbeds.programs.compressed`). Network and program agree on every input in both, or there
is no case.
"""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import torch
import typer
from jaxtyping import Bool, Float
from torch import Tensor

from microtome.core.errors import InputError
from microtome.models.load import load
from microtome.testbeds import kept
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth
from microtome.testbeds.programs.compiler import Compiled
from microtome.testbeds.programs.compression import compressed, learned, occupied
from microtome.testbeds.programs.library import Program, program
from microtome.testbeds.programs.testbed import changing, served, shown

card = TestbedCard(
    name="compressed_programs",
    title="Compiled programs in superposition",
    question="Does a method find the directions of a program that share too few dimensions?",
    reference="Lindner et al. (2023), Tracr, section 5; Elhage et al. (2022), Toy Models of Superposition",
    kinds=("circuit", "variables", "features", "labels"),
    misleads=(
        "A categorical variable has one direction a value, and their sum is constant: along it nothing can be learned, "
        "so a method may be right about a program and still miss part of a direction."
    ),
)

TURNED: Final = ("reverse", "histogram", "sort", "majority", "most_frequent", "induction")
LEARNED: Final = {  # by how many dimensions less than the streams fill
    "copy": 4,
    "previous_token": 4,
    "length": 2,
    "fraction_of_previous": 2,
}
WEIGHTS: Final = Path(__file__).parent / "weights"


def cases() -> tuple[str, ...]:
    """Each program with the way of its compression."""
    return (*(f"{name}_turned" for name in TURNED), *(f"{name}_learned" for name in LEARNED))


def build(case: str, seed: int = 0) -> Case:
    """A compressed program with its dictionary. The seed turns, and draws the pairs; learned matrices ship with seed 0.

    Raises `InputError` for an unknown name, `StoreError` where a learned matrix is damaged, `TruthError` where the
    network says anything else than the program.
    """
    if case not in cases():
        raise InputError(f"compressed_programs has no case {case!r}; it has {', '.join(cases())}")
    name, _, way = case.rpartition("_")
    one = program(name)
    compiled = one.compile()
    wide = compiled.transformer().requires_grad_(False)
    tokens = compiled.encode(_inputs(one))
    if way == "turned":
        matrix = occupied(wide, tokens, seed)
    else:
        weights, record = kept.read(WEIGHTS / f"{name}.safetensors")
        kept.same_settings(WEIGHTS / f"{name}.safetensors", record, _settings(name))
        matrix = weights["matrix"]
    return served(
        f"compressed_programs/{case}",
        one,
        compiled,
        compressed(wide, matrix).requires_grad_(False),
        truth(compiled, matrix, way, changing(load(wide), tokens)),
        seed,
        (Evidence("directions for each dimension", len(matrix) / matrix.shape[1], least=1.05),),
    )


def truth(
    compiled: Compiled,
    matrix: Float[Tensor, "d_model narrow"],
    way: str,
    changes: Mapping[str, Bool[Tensor, " d_model"]],
) -> Truth:
    """The truth of the wide network, its directions put through the matrix; the dictionary at every stream has those
    along which something changes there. Where something was lost, other edges may carry a little of it, so a learned
    one has no circuit."""
    wide = compiled.truth()
    return replace(
        wide,
        circuit=wide.circuit if way == "turned" else None,
        variables=tuple(
            replace(one, directions=one.directions @ matrix) for one in shown(wide.variables, changes)
        ),
        features={site: matrix[there] for site, there in changes.items()},
    )


def _inputs(one: Program) -> list[tuple[object, ...]]:
    return list(itertools.product(one.vocabulary, repeat=one.length))


def _settings(name: str) -> dict[str, object]:
    return {"program": name, "fewer": LEARNED[name]}


def train(
    out: Annotated[Path, typer.Option(help="Where the matrices are written.")] = WEIGHTS,
    only: Annotated[str, typer.Option(help="One program; default: all.")] = "",
) -> None:
    """Train the matrices that ship."""
    for name, fewer in LEARNED.items():
        if only not in ("", name):
            continue
        one = program(name)
        compiled = one.compile()
        inputs = _inputs(one)
        targets = torch.tensor([[compiled.id(value) for value in one.interpret(given)] for given in inputs])
        wide = compiled.transformer().requires_grad_(False)
        matrix = learned(wide, compiled.encode(inputs), targets, fewer, seed=0)
        kept.keep(out / f"{name}.safetensors", {"matrix": matrix}, {"settings": _settings(name), "seed": 0})


if __name__ == "__main__":
    typer.run(train)
