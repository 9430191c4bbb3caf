"""Networks whose causal model is known, on a few of their inputs; what the testbeds measure of them is not repeated."""

import itertools
from dataclasses import dataclass
from functools import cache

import torch

from microtome.core.draws import generator
from microtome.data.hypothesis import Hypothesis
from microtome.models.load import load
from microtome.models.model import Model
from microtome.testbeds.interchange.library import task
from microtome.testbeds.interchange.network import network
from microtome.testbeds.interchange.testbed import hypothesis as of_task
from microtome.testbeds.programs.causal_model import hypothesis as of_program
from microtome.testbeds.programs.library import program
from microtome.testbeds.programs.testbed import decoys

ROWS = 96


@dataclass(frozen=True)
class Known:
    """A network and the true hypothesis about it."""

    model: Model
    hypothesis: Hypothesis


@cache
def compiled(name: str) -> Known:
    """A compiled program, with decoys."""
    one = program(name)
    network = one.compile(decoys())
    inputs = list(itertools.product(one.vocabulary, repeat=one.length))
    order = torch.randperm(len(inputs), generator=generator(0))[:ROWS].tolist()
    found = of_program(network, one.expression, network.encode([inputs[i] for i in order]))
    assert found is not None
    return Known(load(network.transformer()), found)


@cache
def trained(name: str) -> Known:
    """A network trained by interchanges, on rows it never saw."""
    one = task(name)
    return Known(load(network(one).eval()), of_task(one, one.held_out(ROWS, generator(0, -3))))
