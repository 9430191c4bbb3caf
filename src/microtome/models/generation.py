"""What would the model write, with these edits in place? Generation over the key/value cache, edits and all.

1. The prompt is run once; its keys and values are kept. Each new token is run alone on top of them.
2. An edit without positions applies to the prompt and to each new token; an edit of position p applies when the token
   at p is run. (The kernel is handed all keys and values, so edits there apply to the kept ones too, at every step.)
3. The next token is the most likely one, or drawn at a temperature.

The answer is that of running the whole growing text again for each token without a cache, edits and all.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from microtome.core.edits import Edit, Noise
from microtome.core.edits import check as check_edits
from microtome.core.errors import EditError, InputError
from microtome.models.batch import Batch
from microtome.models.finite import check_finite
from microtome.models.inputs import Inputs, Reader, Tokens, prepare
from microtome.models.interception import Interception


class Writer(Reader, Protocol):
    """What `generate` needs to know of a model."""

    module: nn.Module


@torch.no_grad()
def generate(
    model: Writer,
    tokens: Tokens,
    new_tokens: int,
    edit: Sequence[Edit] = (),
    *,
    temperature: float = 0.0,
    seed: int = 0,
    mask: Int[Tensor, "row column"] | None = None,
) -> Int[Tensor, "row grown"]:
    """The ids of the prompts, each followed by `new_tokens` more; no token ends a text early.

    edit: positions count from the start of the text; those that count from its end would move, and are refused.
    temperature: 0 takes the most likely token; above, `seed` fixes what is drawn.
    mask: 1 for real tokens. Prompts padded on the right come back padded on the left, where nothing parts them from
        what follows.

    Raises `InputError` for a model or text that cannot be continued, and what `Model.run` raises.
    """
    check_edits(edit)
    inputs = _left(model, prepare(model, tokens, mask))
    assert inputs.ids is not None
    _check(model, inputs, new_tokens, edit, temperature)
    generator = torch.Generator().manual_seed(seed)
    ids, state = inputs.ids, _State(model, inputs)
    with Interception(model.anatomies, model.module, (), edit) as seen:
        fresh = ids
        for _ in range(new_tokens):
            seen.batch = state.batch
            logits = state.run(fresh)
            check_finite({}, logits)
            fresh = _choose(logits, temperature, generator)
            ids = torch.cat([ids, fresh], dim=1)
            state.grow()
        seen.check_reached()
    return ids


class _State:
    """The cache, and what the module is told of the text so far."""

    def __init__(self, model: Writer, inputs: Inputs) -> None:
        from transformers.cache_utils import DynamicCache

        self._module = model.module
        self._kwargs: dict[str, Any] = {"past_key_values": DynamicCache(), "use_cache": True}
        for name in ("attention_mask", "position_ids"):
            if name in inputs.kwargs:
                self._kwargs[name] = inputs.kwargs[name]
        self.batch: Batch = replace(inputs.batch, growing=True)

    def run(self, fresh: Int[Tensor, "row column"]) -> Float[Tensor, "row token"]:
        """Logits after the last of the fresh tokens."""
        output = self._module(input_ids=fresh, **self._kwargs)
        logits: Tensor = output.logits[:, -1]
        return logits

    def grow(self) -> None:
        """One real token more in each row."""
        self.batch = self.batch.grown(self.batch.end + 1)
        if "attention_mask" in self._kwargs:
            mask = self._kwargs["attention_mask"]
            self._kwargs["attention_mask"] = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        if "position_ids" in self._kwargs:
            self._kwargs["position_ids"] = self._kwargs["position_ids"][:, -1:] + 1


def _choose(
    logits: Float[Tensor, "row token"], temperature: float, generator: torch.Generator
) -> Int[Tensor, "row 1"]:
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    chances = torch.softmax(logits.float().cpu() / temperature, dim=-1)
    return torch.multinomial(chances, 1, generator=generator).to(logits.device)


def _left(model: Writer, inputs: Inputs) -> Inputs:
    """The same prompts, padded on the left."""
    batch, ids = inputs.batch, inputs.ids
    if ids is None or inputs.mask is None or batch.first is None or batch.length is None or any(batch.first):
        return inputs
    moved, mask = ids.clone(), inputs.mask.clone()
    for row, length in enumerate(batch.length):
        moved[row] = ids[row].roll(batch.end - length)
        mask[row] = inputs.mask[row].roll(batch.end - length)
    return prepare(model, moved, mask)


def _check(model: Writer, inputs: Inputs, new_tokens: int, edits: Sequence[Edit], temperature: float) -> None:
    """Refuse what cannot be continued, and edits that would not mean the same with a cache and without."""
    if "encoder" in model.anatomies or not model.anatomy.family.causal or model.anatomy.role("head") is None:
        raise InputError(
            f"{model.name} does not continue texts; generation needs a causal decoder with its head"
        )
    if new_tokens < 0 or temperature < 0:
        raise InputError(f"new_tokens and temperature are at least 0; got {new_tokens} and {temperature}")
    batch, limit = inputs.batch, model.sizes["n_positions"]
    if limit and batch.end + new_tokens > limit:
        raise InputError(
            f"{batch.end} tokens and {new_tokens} new ones are more than the {limit} positions of {model.name}"
        )
    for edit in edits:
        if edit.site.positions is None:
            if isinstance(edit, Noise):
                raise EditError(
                    f"{edit!r}: noise is drawn for a selection of tokens; give positions, one edit for each"
                )
            continue
        if min(edit.site.positions) < 0:
            raise EditError(
                f"{edit!r}: positions from the end move while generating; give positions from the start"
            )
        rows = range(batch.rows) if edit.rows is None else edit.rows
        lengths = [
            batch.end if batch.length is None else batch.length[row] for row in rows if row < batch.rows
        ]
        last = min(lengths, default=0) + new_tokens - 2
        if max(edit.site.positions) > last:
            raise EditError(
                f"{edit!r}: the last position that is run is {last}; the edit would never be made"
            )
