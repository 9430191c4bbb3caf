"""Enter a pass half-way: run a block of the user's own module on the end of some rows, on top of a recorded base.

1. A base pass records, for each block, its input and the other arguments it was called with, and the keys and values
   of its attention.
2. A block is called again on any rows of the base (repeats allowed) and only on the columns from `start` on: masks,
   positions and rotations are cut to these, and a stand-in for the key/value cache returns the base's keys and values
   of the columns before, followed by the new ones.

Nothing is known here about any architecture: arguments are found by the names that Transformers gives them, and
`microtome.models.sweep` compares a re-entered pass with the base before it trusts one.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microtome.models.anatomy import Anatomy

_CACHES = {"past_key_values", "layer_past", "past_key_value"}
_MASKS = {"attention_mask", "mask", "causal_mask"}
_BY_COLUMN = {"position_ids", "cache_position", "position_embeddings"}


class CannotReenterError(Exception):
    """This model's blocks take something we do not know how to cut to rows and columns. Never reaches the user."""


class KeptKeys:
    """Stands where a key/value cache stands: gives the base's keys and values before `start`, then the new ones."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([self._keys, keys], dim=2), torch.cat([self._values, values], dim=2)

    def get_seq_length(self, *_: Any) -> int:
        return self._keys.shape[2]


class BasePass:
    """What a base pass left: each block's arguments, and keys and values `[row, kv_head, column, d_head]` by layer."""

    def __init__(self, anatomy: Anatomy, rows: int, columns: int) -> None:
        self.anatomy = anatomy
        self.rows, self.columns = rows, columns
        self.streams: dict[int, Float[Tensor, "row column d_model"]] = {}
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._arguments: dict[int, dict[str, Any]] = {}
        self._cut: dict[tuple[int, int], dict[str, Any]] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the arguments of every block, as they are before any edit at the block's input."""
        handles = [
            block.register_forward_pre_hook(self._recorder(layer), with_kwargs=True)
            for layer, block in enumerate(self.anatomy.blocks)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _recorder(self, layer: int) -> Any:
        def record(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            signature = inspect.signature(block.forward)
            bound = dict(signature.bind(*args, **kwargs).arguments)
            for name, parameter in signature.parameters.items():
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    bound |= bound.pop(name, {})
            stream = bound.pop(next(iter(signature.parameters)))
            self.streams[layer] = stream
            self._arguments[layer] = bound

        return record

    def block(
        self, layer: int, stream: Float[Tensor, "lane column d_model"], rows: Sequence[int], start: int
    ) -> Float[Tensor, "lane column d_model"]:
        """Run a block on a stream that stands for these rows of the base, from column `start` on."""
        output = self.anatomy.blocks[layer](stream, **self._for(layer, rows, start, stream))
        return output[0] if isinstance(output, tuple) else output

    @property
    def can_narrow(self) -> bool:
        """Whether `last_column` may be used: attention and MLP are modules whose output is added to the stream."""
        family = self.anatomy.family
        return (
            family.causal and family.residual != "post_norm" and bool(family.mlp) and family.door != "bloom"
        )

    def last_column(
        self, layer: int, stream: Float[Tensor, "lane column d_model"], rows: Sequence[int], start: int
    ) -> Float[Tensor, "lane one d_model"]:
        """As `block`, but only the last column of the answer.

        Keys and values are needed of all columns, the projection of the attention and the MLP of the last only. Both
        are shown no other: what they return is one column wide, is added to every column of the stream, and is right
        in the last.
        """
        modules = (self.anatomy.role("o", layer), self.anatomy.role("mlp", layer))
        handles = [m.register_forward_pre_hook(_last_column_of_input) for m in modules if m is not None]
        try:
            return self.block(layer, stream, rows, start)[:, -1:]
        finally:
            for handle in handles:
                handle.remove()

    def _for(self, layer: int, rows: Sequence[int], start: int, stream: Tensor) -> dict[str, Any]:
        index = torch.tensor(rows, device=stream.device)
        cut: dict[str, Any] = {}
        for name, given in self._arguments[layer].items():
            if name in _CACHES:
                cut[name] = self._kept(layer, index, start) if start else None
            elif name in _MASKS:
                cut[name] = self._mask(given, index, start, stream)
            elif name == "alibi":
                by_row = given.view(self.rows, -1, *given.shape[1:])
                cut[name] = by_row.index_select(0, index).flatten(0, 1)
            else:
                cut[name] = self._by_row(name, given, index, start)
        if start and not _CACHES & set(cut):
            raise CannotReenterError("its blocks take no key/value cache")
        return cut

    def _kept(self, layer: int, index: Tensor, start: int) -> KeptKeys:
        keys, values = self.keys[layer], self.values[layer]
        return KeptKeys(
            keys[:, :, :start].index_select(0, index), values[:, :, :start].index_select(0, index)
        )

    def _mask(self, given: Any, index: Tensor, start: int, stream: Tensor) -> Any:
        if given is None:
            if not start or not self.anatomy.family.causal:
                return None
            allowed = torch.ones(self.columns, self.columns, dtype=torch.bool, device=stream.device).tril()
            lowest = torch.finfo(stream.dtype).min
            empty = torch.zeros(self.columns, self.columns, dtype=stream.dtype, device=stream.device)
            return empty.masked_fill(~allowed, lowest)[None, None, start:]
        if not isinstance(given, Tensor) or given.dim() != 4:
            raise CannotReenterError(f"its attention mask is {_kind(given)}")
        chosen = given.index_select(0, index) if given.shape[0] == self.rows > 1 else given
        return chosen[:, :, start:] if chosen.shape[2] == self.columns else chosen

    def _by_row(self, name: str, given: Any, index: Tensor, start: int) -> Any:
        if isinstance(given, tuple):
            return tuple(self._by_row(name, item, index, start) for item in given)
        if not isinstance(given, Tensor):
            return given
        has_columns = given.dim() > 0 and self.columns in given.shape[min(1, given.dim() - 1) :]
        if start and has_columns and name not in _BY_COLUMN:
            raise CannotReenterError(f"its blocks take a tensor {name!r} that we cannot cut to columns")
        if given.dim() > 1 and given.shape[0] == self.rows > 1:
            given = given.index_select(0, index)
        if start and name in _BY_COLUMN:
            return given[start:] if given.dim() == 1 else given[:, start:]
        return given


def _last_column_of_input(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0][:, -1:], *args[1:])


def _kind(given: Any) -> str:
    return f"of shape {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
