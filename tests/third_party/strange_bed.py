"""Heads 2, 5 and 7 write, the others hardly: a testbed as a stranger would write it, to test the grader."""

import torch

from microtome.core.circuit import Circuit, Edge
from microtome.core.errors import InputError
from microtome.models.load import load
from microtome.models.transformer import Transformer, TransformerConfig
from microtome.testbeds.case import Case, Evidence, TestbedCard, Truth
from microtome.testbeds.training import seeded

HEADS = 12
TRUE = (2, 5, 7)

card = TestbedCard(
    "strange_bed", "Strange bed", "Which heads write?", "folklore", ("circuit",), "Only sizes differ."
)


def cases() -> tuple[str, ...]:
    return ("one", "two", "broken")


def build(case: str, seed: int = 0) -> Case:
    if case == "broken":
        raise InputError("this case is broken")
    with seeded(seed):
        module = Transformer(
            TransformerConfig(
                vocab_size=5, hidden_size=24, num_hidden_layers=1, num_attention_heads=HEADS, head_dim=2,
                intermediate_size=0, norm="none",
            )
        ).eval()  # fmt: skip
    with torch.no_grad():
        for head in set(range(HEADS)) - set(TRUE):
            module.blocks[0].attn.o.weight[:, 2 * head : 2 * head + 2] *= 0.01
    edges = [Edge(f"z.0.h{head}", "logits", "logits") for head in TRUE]
    circuit = Circuit.of(["logits", *(edge.source for edge in edges)], edges)
    return Case(
        f"strange_bed/{case}",
        "Nothing.",
        load(module),
        Truth(circuit=circuit),
        (Evidence("heads", HEADS, least=HEADS),),
        tokens=torch.zeros(1, 3, dtype=torch.long),
        seed=seed,
        twin="drawn",
    )
