"""What is this method, when may it be trusted, and what does its answer cover? The card each method carries.

A card is written as one literal, `card = Card(name="…", …)`, so that a menu can be read off the source without
importing the method. The taxonomy is that of Bereska and Gavves (2024, table 1): causal nature, learning phase,
locality, comprehensiveness.
"""

import re
from dataclasses import dataclass, fields
from typing import Literal, get_args

from microtome.core.errors import PluginError

Needs = Literal["pairs", "tokens", "weights", "hypothesis"]
Causal = Literal["observation", "intervention"]
Phase = Literal["post-hoc", "during", "pre"]
Locality = Literal["local", "global", "both"]
Comprehensiveness = Literal["partial", "comprehensive", "both"]


@dataclass(frozen=True)
class Card:
    """A method on one page.

    name: the file's name, which is also the command-line word. title: the literature's name.
    question: the question it answers, one sentence. steps: the algorithm, a sentence a step.
    reference: paper, authors, year. misleads: when its answer is wrong or means less than it seems.
    needs: what `run` takes as data: clean/corrupt pairs, a batch of tokens, nothing but the weights, or a hypothesis
    (`microtome.data.hypothesis`).
    causal, phase, locality, comprehensiveness: the taxonomy.
    claims: which of its claims an answer key can check (`Result.answers`): `nodes`, `edges`, `circuit`, `directions`,
    `latents` (told by single units), `role:induction` (any role of heads), `rule:bigram` (any kind of rule),
    `quantity:direct` (quantities called `direct.…`). None: it cannot be graded.
    """

    name: str
    title: str
    question: str
    steps: tuple[str, ...]
    reference: str
    misleads: str
    needs: Needs
    causal: Causal
    phase: Phase = "post-hoc"
    locality: Locality = "local"
    comprehensiveness: Comprehensiveness = "partial"
    claims: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise PluginError(
                f"card name {self.name!r} is not a file's name; write it like activation_patching"
            )
        empty = [f.name for f in fields(self) if not getattr(self, f.name) and f.name != "claims"]
        if empty:
            raise PluginError(
                f"the card of {self.name} leaves {', '.join(empty)} empty; say it in a sentence"
            )
        if isinstance(self.steps, str):
            raise PluginError(f"the steps of {self.name} are one string; write a tuple, one sentence a step")
        if strange := [claim for claim in self.claims if not _CLAIM.fullmatch(claim)]:
            raise PluginError(
                f"the card of {self.name} claims {strange[0]!r}; a claim is nodes, edges, circuit, directions, "
                "latents, role:NAME, rule:NAME or quantity:NAME"
            )
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise PluginError(
                    f"the card of {self.name} says {name}={getattr(self, name)!r}; it is one of {', '.join(allowed)}"
                )

    @property
    def scope(self) -> str:
        """What an answer of this method covers, for every result to print."""
        reach = "local or global" if self.locality == "both" else self.locality
        coverage = "partial or comprehensive" if self.comprehensiveness == "both" else self.comprehensiveness
        return f"{self.causal}, {self.phase}, {reach}, {coverage}"


_CLAIM = re.compile(r"nodes|edges|circuit|directions|latents|(role|rule|quantity):[a-z][a-z0-9_]*")
_CHOICES: dict[str, tuple[str, ...]] = {
    "needs": get_args(Needs),
    "causal": get_args(Causal),
    "phase": get_args(Phase),
    "locality": get_args(Locality),
    "comprehensiveness": get_args(Comprehensiveness),
}
