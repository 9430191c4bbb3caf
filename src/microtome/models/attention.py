"""The door into the attention kernel: queries, keys, values, scores and patterns of the user's own attention.

1. Transformers looks attention up by name, once a call and layer. For the length of a pass the entry of the model's
   own kernel is replaced by one that asks: is this module watched, in this thread? If not, it calls the kernel.
2. GPT-Neo and GPT-J keep attention in a method `_attn`: that method of the watched modules is covered instead.
3. BLOOM computes attention in its forward: its fused projection and its dropout are the places to look.

Nothing outlives the pass: entries, methods and hooks are restored on exit, after errors too.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from microtome.models import scores as compute
from microtome.models.anatomy import Anatomy


class Watcher(Protocol):
    """Sees the attention of one layer. Each method returns the value to go on with."""

    wants_pattern: bool
    replaces_pattern: bool

    def see(self, part: str, layer: int, value: Tensor) -> Tensor: ...

    def check(self, layer: int, mixed: Tensor, kernel: Tensor) -> None: ...


Watch = tuple[Watcher, int]
_local = threading.local()
_lock = threading.Lock()
_entered: dict[str, int] = {}
_covered: dict[str, Any] = {}


@contextmanager
def watch(anatomy: Anatomy, watchers: dict[int, Watcher]) -> Iterator[None]:
    """Let the watcher of each layer see its attention, within this context and thread."""
    if not watchers:
        yield
        return
    modules = {layer: anatomy.role("attn", layer) for layer in watchers}
    with ExitStack() as stack:
        match anatomy.family.door:
            case "interface":
                watched = {id(module): (watchers[layer], layer) for layer, module in modules.items()}
                stack.enter_context(_interface(anatomy, watched))
            case "method":
                for layer, module in modules.items():
                    assert module is not None
                    stack.enter_context(_method(module, (watchers[layer], layer)))
            case "bloom":
                for layer, module in modules.items():
                    assert module is not None
                    stack.enter_context(_bloom(anatomy, module, (watchers[layer], layer)))
        yield


@contextmanager
def _interface(anatomy: Anatomy, watched: dict[int, Watch]) -> Iterator[None]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

    first = anatomy.role("attn", min(layer for _, layer in watched.values()))
    config = getattr(first, "config", None) or anatomy.module.config
    name = getattr(config, "_attn_implementation", None) or "eager"
    before = getattr(_local, "watched", {})
    _local.watched = before | watched
    with _lock:
        _entered[name] = _entered.get(name, 0) + 1
        if _entered[name] == 1:
            _covered[name] = (name in registry._local_mapping, registry._local_mapping.get(name))
            kernel = None if name == "eager" else registry.get(name)
            registry[name] = _dispatcher(kernel)
    try:
        yield
    finally:
        _local.watched = before
        with _lock:
            _entered[name] -= 1
            if _entered[name] == 0:
                held, entry = _covered.pop(name)
                del registry[name]
                if held:
                    registry[name] = entry


def _dispatcher(kernel: Callable[..., Any] | None) -> Callable[..., Any]:
    def attend(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *args: Any, **kwargs: Any
    ) -> Any:
        original = kernel or _eager(module)
        found: Watch | None = getattr(_local, "watched", {}).get(id(module))
        if found is None:
            return original(module, q, k, v, mask, *args, **kwargs)
        watcher, layer = found
        q, k, v = _see_qkv(watcher, layer, q, k, v)
        if not watcher.wants_pattern:
            return original(module, q, k, v, mask, *args, **kwargs)
        sinks = kwargs.get("s_aux")
        given = compute.scores(module, q, k, mask, **kwargs)
        weights = watcher.see("pattern", layer, compute.pattern(watcher.see("scores", layer, given), sinks))
        mixed = compute.mix(weights, v)
        if watcher.replaces_pattern:
            return mixed, weights.to(v.dtype)
        answer = original(module, q, k, v, mask, *args, **kwargs)
        watcher.check(layer, mixed, answer[0])
        return answer

    return attend


def _see_qkv(watcher: Watcher, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    seen = []
    for part, value in (("q", q), ("k", k), ("v", v)):
        turned = value.transpose(1, 2)
        new = watcher.see(part, layer, turned)
        seen.append(value if new is turned else new.transpose(1, 2))
    return seen[0], seen[1], seen[2]


def _eager(module: nn.Module) -> Callable[..., Any]:
    """The module's own plain attention: the function its architecture would have used."""
    for cls in type(module).__mro__:
        found = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if found is not None:
            return found  # type: ignore[no-any-return]
    raise LookupError(f"{type(module).__name__} has no eager_attention_forward in its modeling file")


@contextmanager
def _method(module: nn.Module, found: Watch) -> Iterator[None]:
    watcher, layer = found
    original = module._attn

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        q, k, v = _see_qkv(watcher, layer, q, k, v)
        if not watcher.wants_pattern:
            return original(q, k, v, mask, *args, **kwargs)
        given = _method_scores(module, q, k, mask)
        weights = watcher.see("pattern", layer, compute.pattern(watcher.see("scores", layer, given)))
        mixed = compute.mix(weights, v)
        if watcher.replaces_pattern:
            return mixed.transpose(1, 2), weights.to(v.dtype)
        answer = original(q, k, v, mask, *args, **kwargs)
        watcher.check(layer, mixed, answer[0].transpose(1, 2))
        return answer

    module._attn = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        del module._attn


def _method_scores(module: nn.Module, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Scores of GPT-J (divided by the root of the head's width) and GPT-Neo (undivided, its window a buffer)."""
    given = compute.scores(module, q, k, mask, scaling=1.0 / float(getattr(module, "scale_attn", 1.0)))
    window = getattr(module, "bias", None)
    if isinstance(window, Tensor):
        queries, keys = given.shape[-2:]
        given = given.masked_fill(~window[:, :, keys - queries : keys, :keys], float("-inf"))
    return given


@contextmanager
def _bloom(anatomy: Anatomy, module: nn.Module, found: Watch) -> Iterator[None]:
    watcher, layer = found
    heads, d_head = anatomy.sizes["n_heads"], anatomy.sizes["d_head"]
    held: dict[str, Any] = {}

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        held["mask"], held["alibi"] = kwargs["attention_mask"], kwargs["alibi"]

    def projected(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        split = output.view(*output.shape[:2], heads, 3, d_head).unbind(dim=-2)
        new = [watcher.see(part, layer, value) for part, value in zip("qkv", split, strict=True)]
        held["q"], held["k"], held["v"] = (value.transpose(1, 2) for value in new)
        if all(value is old for value, old in zip(new, split, strict=True)):
            return output
        return torch.stack(new, dim=-2).reshape(output.shape)

    def weighed(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        if not watcher.wants_pattern:
            return None
        kernel = args[0]
        alibi = held["alibi"].view(kernel.shape[0], heads, 1, -1)
        given = compute.scores(
            module,
            held["q"],
            held["k"],
            held["mask"],
            scaling=float(module.inv_norm_factor),
            position_bias=alibi,
        )
        weights = watcher.see("pattern", layer, compute.pattern(watcher.see("scores", layer, given)))
        if watcher.replaces_pattern:
            return (weights.to(kernel.dtype),)
        watcher.check(layer, weights.transpose(1, 2), kernel.transpose(1, 2))
        return None

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.query_key_value.register_forward_hook(projected),  # type: ignore[operator,union-attr]
        module.attention_dropout.register_forward_pre_hook(weighed),  # type: ignore[operator,union-attr]
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
