"""Where does a value stand? A `Site` is an address: a part of the network, a layer; optionally heads, units, positions.

A site prints to and parses from a short string, the same for every model:

    resid_post.3            the residual stream after block 3
    z.5.h1,7                heads 1 and 7 of block 5, before the output projection
    mlp_post.0.u12@-1       neuron 12 of block 0 at the last real token of each row
    grad:resid_pre.2        the gradient of the run's metric there
    path:features.3:in      the input of a module, addressed by its path (any `nn.Module`)
    path:features.3:out.u7  unit 7 of its output
    encoder/resid_post.1    a block of the encoder of an encoder–decoder

Positions count real tokens: 0 is a row's first token whatever the padding, -1 its last. Units of scores and patterns
are keys, counted the same way.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from microtome.core.errors import SiteError


@dataclass(frozen=True)
class Part:
    """What a standard part name means: its named axes, whether it belongs to a layer, and a sentence."""

    axes: tuple[str, ...]
    layered: bool
    meaning: str


_STREAM = ("batch", "position", "d_model")
_HEADED = ("batch", "position", "head", "d_head")
_NEURON = ("batch", "position", "neuron")
_ATTEND = ("batch", "head", "query", "key")

PARTS: Final[dict[str, Part]] = {
    "embed": Part(_STREAM, False, "token embedding"),
    "pos_embed": Part(_STREAM, False, "learned position embedding"),
    "resid_pre": Part(_STREAM, True, "residual stream entering the block"),
    "attn_norm_scale": Part(("batch", "position", "one"), True, "divisor of the norm before attention"),
    "attn_in": Part(_STREAM, True, "what the attention reads (after its norm)"),
    "q_proj": Part(_HEADED, True, "queries as projected, before any norm or rotation"),
    "k_proj": Part(("batch", "position", "kv_head", "d_head"), True, "keys as projected"),
    "v_proj": Part(("batch", "position", "kv_head", "d_head"), True, "values as projected"),
    "q": Part(_HEADED, True, "queries as the kernel sees them (after any rotation)"),
    "k": Part(("batch", "position", "kv_head", "d_head"), True, "keys as the kernel sees them"),
    "v": Part(("batch", "position", "kv_head", "d_head"), True, "values"),
    "scores": Part(_ATTEND, True, "attention scores: scaled, capped, masked (-inf), before the softmax"),
    "pattern": Part(_ATTEND, True, "attention probabilities"),
    "z": Part(_HEADED, True, "values mixed by the pattern, per head"),
    "result": Part(("batch", "position", "head", "d_model"), True, "what each head writes (no bias)"),
    "attn_out_norm_scale": Part(
        ("batch", "position", "one"), True, "divisor of the norm between attention and stream"
    ),
    "attn_out": Part(_STREAM, True, "what the attention adds to the stream"),
    "resid_mid": Part(_STREAM, True, "residual stream between attention and MLP"),
    "mlp_norm_scale": Part(("batch", "position", "one"), True, "divisor of the norm before the MLP"),
    "mlp_in": Part(_STREAM, True, "what the MLP reads (after its norm)"),
    "mlp_pre": Part(_NEURON, True, "neurons before the activation (the gate, where there is one)"),
    "mlp_post": Part(_NEURON, True, "neurons after the activation (times the gate's partner)"),
    "router": Part(("batch", "position", "expert"), True, "routing logits of a mixture of experts"),
    "mlp_out_norm_scale": Part(
        ("batch", "position", "one"), True, "divisor of the norm between MLP and stream"
    ),
    "mlp_out": Part(_STREAM, True, "what the MLP adds to the stream"),
    "resid_post": Part(_STREAM, True, "residual stream leaving the block"),
    "final_norm_scale": Part(
        ("batch", "position", "one"), False, "divisor of the norm before the unembedding"
    ),
    "logits": Part(("batch", "position", "token"), False, "the model's output, cap and all"),
}

_ORDER = {name: index for index, name in enumerate(PARTS)}
_HEAD_AXES = {"head", "kv_head"}
_UNIT_AXES = {"d_model", "d_head", "neuron", "expert", "token", "key"}
_NUMBERS = r"-?\d+(?:,-?\d+)*"
_GRAMMAR = re.compile(
    rf"(?P<grad>grad:)?(?:(?P<stack>encoder)/)?(?P<part>[a-z_]+)(?:\.(?P<layer>\d+))?"
    rf"(?:\.h(?P<heads>{_NUMBERS}))?(?:\.u(?P<units>{_NUMBERS}))?(?:@(?P<positions>{_NUMBERS}))?"
)
_PATH_GRAMMAR = re.compile(
    rf"(?P<grad>grad:)?path:(?P<path>[^@:\s]*)(?::(?P<side>in|out)(?:\.u(?P<units>{_NUMBERS}))?)?"
    rf"(?:@(?P<positions>{_NUMBERS}))?"
)


@dataclass(frozen=True)
class Site:
    """An address of a value. See the module's docstring for the string form.

    part: a name in `PARTS`, or `"path"` for a module addressed by `path` and `side`.
    heads, units, positions: a selection, or `None` for all. Selected axes are kept, never squeezed.
    stack: `"encoder"` for the encoder of an encoder–decoder, empty for the decoder or only stack.

    Raises `SiteError` for a part, layer or selection that no model can have.
    """

    part: str
    layer: int | None = None
    heads: tuple[int, ...] | None = None
    units: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    gradient: bool = False
    stack: str = ""
    path: str = ""
    side: str = "out"

    def __post_init__(self) -> None:
        for name in ("heads", "units", "positions"):
            chosen = getattr(self, name)
            if chosen is not None and not chosen:
                raise SiteError(f"{name} () select nothing; name at least one, or leave {name} out for all")
            if chosen is not None and len(set(chosen)) != len(chosen):
                raise SiteError(f"{name} {chosen} name the same one twice; name each once")
        if self.part == "path":
            self._check_path()
            return
        if self.path or self.side != "out":
            raise SiteError(
                f"{self.part} is a standard part; a module's {self.side}put by path is Site.module(path)"
            )
        if self.stack not in ("", "encoder"):
            raise SiteError(
                f"there is no stack {self.stack!r}; leave it empty for a decoder or only stack, or encoder"
            )
        if self.layer is not None and self.layer < 0:
            raise SiteError(f"layer {self.layer} is out of range; layers count from 0")
        if self.part not in PARTS:
            raise SiteError(f"{self.part!r} is not a part; the parts are {' '.join(PARTS)}, or path:MODULE")
        part = PARTS[self.part]
        if part.layered and self.layer is None:
            raise SiteError(f"{self.part} belongs to a layer: write {self.part}.0 for the first")
        if not part.layered and self.layer is not None:
            raise SiteError(
                f"{self.part} belongs to no layer: write {self.part}, not {self.part}.{self.layer}"
            )
        if self.heads is not None and not _HEAD_AXES & set(part.axes):
            raise SiteError(f"{self.part} has no heads (its axes: {', '.join(part.axes)}); drop .h")
        if self.units is not None and part.axes[-1] not in _UNIT_AXES:
            raise SiteError(f"{self.part} has no units to choose (its axes: {', '.join(part.axes)}); drop .u")

    def _check_path(self) -> None:
        if self.layer is not None or self.heads is not None or self.stack:
            raise SiteError(
                f"path:{self.path} is a module, which has no layers, heads or stacks; select units and positions"
            )
        if self.side not in ("in", "out"):
            raise SiteError(f"a module has an in and an out, not {self.side!r}")
        if re.search(r"[@:\s]", self.path):
            raise SiteError(
                f"{self.path!r} is not a module's path; write names joined by dots, for example features.3"
            )

    @staticmethod
    def parse(text: str) -> "Site":
        """Read the string form. Raises `SiteError` showing the grammar."""
        return _parse(text)

    @staticmethod
    def module(path: str, side: str = "out") -> "Site":
        """The input or output of any module, by its path in the model handed in."""
        return Site("path", path=path, side=side)

    def __str__(self) -> str:
        prefix = "grad:" if self.gradient else ""
        tail = f".u{_join(self.units)}" if self.units is not None else ""
        tail += f"@{_join(self.positions)}" if self.positions is not None else ""
        if self.part == "path":
            side = f":{self.side}" if self.side == "in" or self.units is not None else ""
            return f"{prefix}path:{self.path}{side}{tail}"
        prefix += f"{self.stack}/" if self.stack else ""
        layer = f".{self.layer}" if self.layer is not None else ""
        heads = f".h{_join(self.heads)}" if self.heads is not None else ""
        return f"{prefix}{self.part}{layer}{heads}{tail}"

    @property
    def axes(self) -> tuple[str, ...]:
        """Named axes of the value; of a path site only the batch is known."""
        return PARTS[self.part].axes if self.part != "path" else ("batch", "…")

    @property
    def whole(self) -> "Site":
        """The same place without a selection and without the gradient mark."""
        return replace(self, heads=None, units=None, positions=None, gradient=False)

    @property
    def is_whole(self) -> bool:
        return self.heads is None and self.units is None and self.positions is None

    @property
    def depth(self) -> tuple[int, int]:
        """Sorts sites in the order in which a forward pass reaches them."""
        if self.layer is not None:
            return (self.layer, _ORDER[self.part])
        return (-1, 0) if self.part in ("embed", "pos_embed", "path") else (1 << 30, _ORDER[self.part])

    def at(self, *positions: int) -> "Site":
        return replace(self, positions=tuple(positions))

    def head(self, *heads: int) -> "Site":
        return replace(self, heads=tuple(heads))

    def unit(self, *units: int) -> "Site":
        return replace(self, units=tuple(units))

    @property
    def grad(self) -> "Site":
        """The gradient of the run's metric at this site: a read like any other."""
        return replace(self, gradient=True)


def _join(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def _numbers(text: str | None) -> tuple[int, ...] | None:
    return None if text is None else tuple(int(part) for part in text.split(","))


@lru_cache(maxsize=4096)
def _parse(text: str) -> Site:
    text = text.strip()
    if match := _PATH_GRAMMAR.fullmatch(text):
        return Site(
            "path",
            path=match["path"],
            side=match["side"] or "out",
            units=_numbers(match["units"]),
            positions=_numbers(match["positions"]),
            gradient=bool(match["grad"]),
        )
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        raise SiteError(
            f"{text!r} is not a site; write PART.LAYER, then optionally .hHEADS .uUNITS @POSITIONS, "
            "for example resid_post.3, z.5.h1,7, mlp_post.0.u12@-1, or path:MODULE:in"
        )
    return Site(
        match["part"],
        None if match["layer"] is None else int(match["layer"]),
        _numbers(match["heads"]),
        _numbers(match["units"]),
        _numbers(match["positions"]),
        bool(match["grad"]),
        match["stack"] or "",
    )


def as_site(site: Site | str) -> Site:
    """A site from a site or its string."""
    return site if isinstance(site, Site) else _parse(site)
