"""What is such a network asked, and which rows does it never see? A causal model, its alignment, and the rows.

Every place of a row has an alphabet; a row is drawn by drawing each place alone, and again until it is a row of the
task. A fifth of all rows, told by the row alone, is kept from every training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from microtome.core.errors import InputError
from microtome.data.causal_model import CausalModel
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds.interchange.alignment import Alignment, Place
from microtome.testbeds.interchange.wiring import Wiring
from microtome.testbeds.training import seeded

Rows = Int[Tensor, "row column"]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 8,
    "intermediate_size": 64,
    "norm": "none",
    "hidden_act": "gelu",
    "initializer_range": 0.15,
}


@dataclass(frozen=True)
class Weights:
    """What the parts of the loss count: doing the task, interchanges of variables, changes outside the circuit."""

    behaviour: float = 1.0
    interchange: float = 1.0
    strict: float = 1.0


def any_row(rows: Rows) -> Bool[Tensor, " row"]:
    """Every row is one of the task."""
    return torch.ones(len(rows), dtype=torch.bool)


@dataclass(frozen=True, eq=False)
class Task:
    """A task with its answer key.

    words: the text of each id. alphabets: the ids that may stand at each place. model: says the answer, an id at each
    place that is asked and `UNASKED` elsewhere. places: where its variables stand. valid: which rows are of the task.
    sizes: of the `TransformerConfig`, where they are not `SIZES`. rate, steps, batch: of AdamW. watched: how many rows
    kept from training tell when to stop.
    """

    name: str
    task: str
    words: tuple[str, ...]
    alphabets: tuple[tuple[int, ...], ...]
    model: CausalModel
    places: Mapping[str, Place]
    valid: Callable[[Rows], Bool[Tensor, " row"]] = any_row
    sizes: Mapping[str, Any] = field(default_factory=dict)
    weights: Weights = field(default_factory=Weights)
    rate: float = 3e-3
    steps: int = 2000
    batch: int = 128
    watched: int = 128

    @property
    def config(self) -> dict[str, Any]:
        """All sizes of the network."""
        own = {"vocab_size": len(self.words), "max_position_embeddings": len(self.alphabets)}
        return {**SIZES, **own, **self.sizes}

    @property
    def settings(self) -> dict[str, Any]:
        """All that the trained weights depend on, besides the seed and the code."""
        parts = vars(self.weights)
        edges = [list(edge) for edge in self.alignment.edges]
        numbers = {name: getattr(self, name) for name in ("name", "rate", "steps", "batch", "watched")}
        return {**numbers, "weights": parts, "edges": edges, "sizes": self.config}

    @cached_property
    def alignment(self) -> Alignment:
        """Variables in their places."""
        layers, heads = self.config["num_hidden_layers"], self.config["num_attention_heads"]
        return Alignment(self.model, self.places, Wiring(layers, heads, self.config["intermediate_size"] > 0))

    def new_module(self, seed: int) -> Transformer:
        """The network before training."""
        with seeded(seed):
            module: Transformer = Transformer(TransformerConfig(**self.config))
        return module

    def answers(self, rows: Rows) -> Rows:
        """What is right at each place."""
        return self.model.run(rows)[self.model.answer]

    def proposals(self, count: int, source: torch.Generator) -> Rows:
        """So many rows, each place drawn alone; not all need be rows of the task."""
        return torch.stack(
            [
                torch.tensor(letters)[torch.randint(len(letters), (count,), generator=source)]
                for letters in self.alphabets
            ],
            1,
        )

    def draw(self, count: int, seen: bool, source: torch.Generator) -> Rows:
        """So many rows that are learned from, or so many that are not.

        Raises `InputError` where the task has too few to find them.
        """
        found: list[Rows] = []
        for _ in range(_PATIENCE):
            rows = self.proposals(8 * count, source)
            found.append(rows[self.valid(rows) & (kept_back(rows) != seen)])
            if sum(map(len, found)) >= count:
                return torch.cat(found)[:count]
        raise InputError(f"{self.name} has too few rows that are {'' if seen else 'not '}learned from")

    def held_out(self, count: int, source: torch.Generator) -> Rows:
        """Up to so many different rows that no training sees, in random order."""
        rows = self.draw(8 * count, False, source).unique(dim=0)
        return rows[torch.randperm(len(rows), generator=source)[:count]]


def kept_back(rows: Rows) -> Bool[Tensor, " row"]:
    """The fifth of all rows that is never learned from."""
    mixed = torch.zeros(len(rows), dtype=torch.long)
    for column in rows.T:
        mixed = (mixed * 1103515245 + column * 40503 + 12345) % 2**31
    return (mixed // 2**10) % 5 == 0


_PATIENCE = 20
