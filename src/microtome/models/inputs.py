"""What is fed to the module: ids, padding and positions, from whatever the user has: text, ids, or keyword inputs.

Rows padded on the left get position ids counted from their first real token, as generation gives them; without
that a learned position embedding would read a shifted text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from microtome.core.errors import InputError
from microtome.models.anatomy import Anatomy
from microtome.models.batch import Batch

# Any tensor: one that does not fit is refused with a sentence, whoever checks types.
Tokens = str | Sequence[str] | Tensor | Mapping[str, Any]
"""What can be run: a text, texts, ids, or the keyword inputs of the module's own forward."""


class Reader(Protocol):
    """What `prepare` needs to know of a model."""

    name: str
    tokenizer: Any
    anatomies: dict[str, Anatomy]

    @property
    def device(self) -> torch.device: ...

    @property
    def accepts(self) -> frozenset[str]: ...

    @property
    def anatomy(self) -> Anatomy: ...

    @property
    def sizes(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class Inputs:
    """Keyword arguments of the module's forward, and the geometry of the batch (an encoder's apart)."""

    kwargs: dict[str, Any]
    batch: Batch
    encoder_batch: Batch | None = None
    ids: Tensor | None = None
    mask: Tensor | None = None


def prepare(model: Reader, tokens: Tokens, mask: Tensor | None = None) -> Inputs:
    """Ids, padding mask, position ids and geometry. Raises `InputError` for what the model cannot take."""
    if isinstance(tokens, Mapping):
        if mask is not None:
            raise InputError(
                "keyword inputs bring their own mask: put it in as attention_mask, and leave mask out"
            )
        return _given(model, dict(tokens))
    if "encoder" in model.anatomies:
        raise InputError(
            f"{model.name} is an encoder–decoder and reads two texts: give "
            "{'input_ids': …, 'decoder_input_ids': …}, each [row, column]"
        )
    if isinstance(tokens, Tensor) and not model.anatomies:
        return _bare(model, tokens, mask)
    if isinstance(tokens, Tensor):
        ids = tokens
    else:
        ids, mask = _encode(model, [tokens] if isinstance(tokens, str) else list(tokens), mask)
    ids = _checked(model, ids)
    kwargs: dict[str, Any] = {"input_ids": ids}
    if mask is not None:
        kwargs["attention_mask"] = _checked_mask(ids, mask).to(model.device)
    return _decoder(model, kwargs)


def _bare(model: Reader, tokens: Tensor, mask: Tensor | None) -> Inputs:
    """The one input of a module that has no map."""
    if mask is not None:
        raise InputError(
            f"{model.name} has no map, so nothing is known of padding; give the forward's own arguments"
        )
    columns = tokens.shape[1] if tokens.dim() > 1 else 1
    return Inputs({"": tokens.to(model.device)}, Batch(tokens.shape[0], columns))


def _decoder(model: Reader, kwargs: dict[str, Any]) -> Inputs:
    """One stack that reads checked ids."""
    ids, mask = kwargs["input_ids"], kwargs.get("attention_mask")
    if "use_cache" in model.accepts:
        kwargs.setdefault("use_cache", False)
    batch = Batch.of(ids.shape[0], ids.shape[1], mask)
    if mask is not None and batch.first is not None and any(batch.first) and "position_ids" in model.accepts:
        kwargs.setdefault("position_ids", _positions(model, mask))
    return Inputs(kwargs, batch, None, ids, mask)


def _positions(model: Reader, mask: Tensor) -> Tensor:
    """Position ids counted from each row's first real token, where the model counts from."""
    counted = mask.long().cumsum(-1)
    table = model.anatomy.role("pos_embed")
    padding = getattr(table, "padding_idx", None)
    # RoBERTa's table begins with the padding's row; its first token stands at the row after it.
    return (counted - 1).clamp_min(0) if padding is None else counted + padding


def _given(model: Reader, kwargs: dict[str, Any]) -> Inputs:
    kwargs = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in kwargs.items()}
    for ids, padding in (("input_ids", "attention_mask"), ("decoder_input_ids", "decoder_attention_mask")):
        if kwargs.get(ids) is not None and model.anatomies:
            kwargs[ids] = _checked(model, kwargs[ids])
            if kwargs.get(padding) is not None:
                kwargs[padding] = _checked_mask(kwargs[ids], kwargs[padding])
    if "encoder" in model.anatomies:
        return _encoder_decoder(model, kwargs)
    if model.anatomies and kwargs.get("input_ids") is not None:
        return _decoder(model, kwargs)
    main = next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
    if main is None:
        raise InputError(
            f"no tensor among the inputs {', '.join(kwargs) or '(none)'}; give the forward's own arguments"
        )
    if "use_cache" in model.accepts:
        kwargs.setdefault("use_cache", False)
    columns = main.shape[1] if main.dim() > 1 else 1
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != main.shape[:2]:
        mask = None
    return Inputs(kwargs, Batch.of(main.shape[0], columns, mask), None, kwargs.get("input_ids"), mask)


def _encoder_decoder(model: Reader, kwargs: dict[str, Any]) -> Inputs:
    ids, target = kwargs.get("input_ids"), kwargs.get("decoder_input_ids")
    if ids is None or target is None:
        raise InputError(
            f"{model.name} reads two texts: give input_ids and decoder_input_ids; got {', '.join(kwargs)}"
        )
    if ids.shape[0] != target.shape[0]:
        raise InputError(
            f"input_ids have {ids.shape[0]} rows, decoder_input_ids {target.shape[0]}; give as many"
        )
    if "use_cache" in model.accepts:
        kwargs.setdefault("use_cache", False)
    batch = Batch.of(target.shape[0], target.shape[1], kwargs.get("decoder_attention_mask"))
    mask = kwargs.get("attention_mask")
    return Inputs(kwargs, batch, Batch.of(ids.shape[0], ids.shape[1], mask), ids, mask)


def _encode(model: Reader, texts: list[str], mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if mask is not None:
        raise InputError(
            "texts are padded here, so they take no mask; give ids [row, column] with a mask of yours"
        )
    if model.tokenizer is None:
        raise InputError(
            f"{model.name} has no tokenizer, so it cannot read text; give ids [row, column], or load(..., tokenizer=…)"
        )
    if not texts:
        raise InputError("no text was given; give at least one")
    rows = [model.tokenizer(text)["input_ids"] for text in texts]
    empty = next((i for i, row in enumerate(rows) if not row), None)
    if empty is not None:
        raise InputError(f"text {empty} ({texts[empty]!r}) has no tokens; give at least one token")
    longest = max(map(len, rows))
    if all(len(row) == longest for row in rows):
        return torch.tensor(rows), None
    pad = model.tokenizer.pad_token_id
    pad = (model.tokenizer.eos_token_id or 0) if pad is None else pad
    left = getattr(model.tokenizer, "padding_side", "right") == "left"
    ids = torch.full((len(rows), longest), int(pad))
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        columns = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, columns] = torch.tensor(row)
        mask[i, columns] = 1
    return ids, mask


def _checked(model: Reader, ids: Tensor) -> Tensor:
    if ids.dim() != 2 or ids.is_floating_point() or ids.numel() == 0:
        raise InputError(
            f"ids must be integers of shape [row, column] with at least one token; got {ids.dtype} {list(ids.shape)}"
        )
    vocabulary = model.sizes["d_vocab"] if model.anatomies else 0
    low, high = int(ids.min()), int(ids.max())
    if vocabulary and not 0 <= low <= high < vocabulary:
        raise InputError(
            f"ids go from {low} to {high}, but {model.name} knows 0 … {vocabulary - 1}; is it the right tokenizer?"
        )
    limit = model.sizes["n_positions"] if model.anatomies else 0
    if limit and ids.shape[1] > limit:
        raise InputError(
            f"{ids.shape[1]} tokens are more than the {limit} positions of {model.name}; shorten the text"
        )
    return ids.to(model.device)


def _checked_mask(ids: Tensor, mask: Tensor) -> Tensor:
    if mask.shape != ids.shape:
        raise InputError(
            f"the mask has shape {list(mask.shape)}, the ids {list(ids.shape)}; they must be the same"
        )
    real = mask.bool().int()
    if not bool(real.any(dim=1).all()):
        raise InputError(f"row {int(real.any(dim=1).int().argmin())} of the mask has no real token")
    if ids.shape[1] > 1 and int((real.diff(dim=1) != 0).sum(dim=1).max()) > 1:
        raise InputError("padding must stand on one side of each row, left or right; the mask has holes")
    return real.long()
