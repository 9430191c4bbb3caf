"""Networks written by hand, for methods that claim to read off what a part is, says, or is joined to."""

from typing import Final

from microtome.core.errors import InputError
from microtome.testbeds.case import Case, TestbedCard
from microtome.testbeds.hand_set import (
    backup_heads,
    exact_sums,
    gates,
    planted_heads,
    planted_rules,
    rotated_stream,
    wired_heads,
)

card = TestbedCard(
    name="hand_set",
    title="Networks written by hand",
    question="Does a method name planted heads, wires and rules, give exact sums, notice backups and a turned basis?",
    reference="Elhage et al. (2021), A Mathematical Framework for Transformer Circuits, for the kinds of heads",
    kinds=("circuit", "roles", "rules", "quantities"),
    misleads="Written weights are clean: every head does one thing. A trained head does several, and less sharply.",
)

_BUILD: Final = {
    "planted_heads": planted_heads.build,
    "induction_circuit": planted_heads.build,
    "wired_heads": wired_heads.build,
    "exact_sums": exact_sums.build,
    "gates": gates.build,
    "backup": backup_heads.build,
    "no_backup": backup_heads.build,
    "skip_trigrams": planted_rules.skip_trigrams,
    "ngram_facts": planted_rules.ngram_facts,
    "straight": rotated_stream.build,
    "rotated": rotated_stream.build,
}


def cases() -> tuple[str, ...]:
    """The networks."""
    return tuple(_BUILD)


def build(case: str, seed: int = 0) -> Case:
    """One of them. The seed draws what is random in the weights, and the data."""
    if case not in _BUILD:
        raise InputError(f"hand_set has no case {case!r}; it has {', '.join(_BUILD)}")
    return _BUILD[case](f"hand_set/{case}", seed)
