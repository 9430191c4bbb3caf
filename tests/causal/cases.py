"""Networks whose causal model is known, built once."""

from functools import cache

from microtome.testbeds.case import Case
from microtome.testbeds.interchange import testbed as interchange
from microtome.testbeds.programs import testbed as programs


@cache
def compiled(name: str) -> Case:
    return programs.build(name)


@cache
def trained(name: str) -> Case:
    return interchange.build(name)
