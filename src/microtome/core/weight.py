"""Where does a parameter stand? A `Weight` addresses parameters as `Site` addresses values.

Printed `W_Q.3.h1`. Shapes are the same in every family: `W_Q W_K W_V [head, d_model, d_head]`,
`W_O [head, d_head, d_model]`, `W_in W_gate [d_model, neuron]`, `W_out [neuron, d_model]`,
`W_E [token, d_model]`, `W_pos [position, d_model]`, `W_U [d_model, token]`; biases `b_Q … b_U` accordingly.
Grouped-query models have `kv_head` where others have `head` in `W_K W_V`.
"""

import re
from dataclasses import dataclass
from typing import Final

from microtome.core.errors import SiteError

WEIGHTS: Final[dict[str, tuple[str, ...]]] = {
    "W_E": ("token", "d_model"),
    "W_pos": ("position", "d_model"),
    "W_Q": ("head", "d_model", "d_head"),
    "W_K": ("kv_head", "d_model", "d_head"),
    "W_V": ("kv_head", "d_model", "d_head"),
    "W_O": ("head", "d_head", "d_model"),
    "W_in": ("d_model", "neuron"),
    "W_gate": ("d_model", "neuron"),
    "W_out": ("neuron", "d_model"),
    "W_U": ("d_model", "token"),
    "b_Q": ("head", "d_head"),
    "b_K": ("kv_head", "d_head"),
    "b_V": ("kv_head", "d_head"),
    "b_O": ("d_model",),
    "b_in": ("neuron",),
    "b_gate": ("neuron",),
    "b_out": ("d_model",),
    "b_U": ("token",),
}
_UNLAYERED = {"W_E", "W_pos", "W_U", "b_U"}
_GRAMMAR = re.compile(r"(?P<name>[Wb]_[A-Za-z]+)(?:\.(?P<layer>\d+))?(?:\.h(?P<heads>\d+(?:,\d+)*))?")


@dataclass(frozen=True)
class Weight:
    """An address of a parameter: name, layer, optionally heads."""

    name: str
    layer: int | None = None
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.name not in WEIGHTS:
            raise SiteError(f"{self.name!r} is not a weight; the weights are {' '.join(WEIGHTS)}")
        if (self.layer is None) != (self.name in _UNLAYERED):
            raise SiteError(
                f"{self.name} belongs to no layer: write {self.name}"
                if self.name in _UNLAYERED
                else f"{self.name} belongs to a layer: write {self.name}.0 for the first"
            )
        if self.heads is not None and not self.heads:
            raise SiteError(
                f"heads () of {self.name} select nothing; name at least one, or leave them out for all"
            )
        if self.heads is not None and "head" not in WEIGHTS[self.name][0]:
            raise SiteError(f"{self.name} has no heads (its axes: {', '.join(WEIGHTS[self.name])}); drop .h")

    @staticmethod
    def parse(text: str) -> "Weight":
        """Read the string form. Raises `SiteError`."""
        match = _GRAMMAR.fullmatch(text.strip())
        if match is None:
            raise SiteError(f"{text!r} is not a weight; write NAME.LAYER, for example W_Q.3, W_O.0.h2, W_U")
        heads = match["heads"]
        return Weight(
            match["name"],
            None if match["layer"] is None else int(match["layer"]),
            None if heads is None else tuple(int(h) for h in heads.split(",")),
        )

    def __str__(self) -> str:
        layer = "" if self.layer is None else f".{self.layer}"
        heads = "" if self.heads is None else f".h{','.join(map(str, self.heads))}"
        return f"{self.name}{layer}{heads}"
