"""The door into the attention kernel: queries, keys, values, scores and patterns of the user's own attention.

1. Transformers looks attention up by name, once a call and layer. For the length of a pass the entry of the model's
   own kernel is replaced by one that asks: is this module watched, in this thread? If not, it calls the kernel.
2. GPT-Neo and GPT-J keep attention in a method `_attn`: that method of the watched modules is covered instead.
3. BLOOM computes attention in its forward: its fused projection and its dropout are the places to look.

Nothing outlives the pass: entries, methods and hooks are restored when the last thread leaves, after errors too.
"""

import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from microtome.models import scores as compute
from microtome.models.anatomy import Anatomy


class Watcher(Protocol):
    """Sees the attention of one layer. Each method returns the value to go on with."""

    @property
    def wants_pattern(self) -> bool: ...

    @property
    def replaces_pattern(self) -> bool: ...

    def see(self, part: str, layer: int, value: Tensor) -> Tensor: ...

    def check(self, layer: int, mixed: Tensor, kernel: Tensor) -> None: ...


Watch = tuple[Watcher, int]
Restore = Callable[[], None]
_local = threading.local()
_lock = threading.Lock()
_covers: dict[Hashable, tuple[int, Restore]] = {}


@contextmanager
def watch(watchers: Sequence[tuple[Anatomy, dict[int, Watcher]]]) -> Iterator[None]:
    """Let the watcher of each layer see its attention, within this context and thread, and no other watcher."""
    watched: dict[int, Watch] = {}
    with ExitStack() as stack:
        for anatomy, layers in watchers:
            for layer, watcher in layers.items():
                module = anatomy.role("attn", layer)
                assert module is not None
                watched[id(module)] = found = (watcher, layer)
                stack.enter_context(_door(anatomy, module, found))
        stack.enter_context(_watching(watched))
        yield


@contextmanager
def watch_interface(modules: Sequence[nn.Module], implementation: str, watcher: Watcher) -> Iterator[None]:
    """Let one watcher see whichever of these modules calls the attention interface; `layer` is its place among them."""
    watched: dict[int, Watch] = {id(module): (watcher, place) for place, module in enumerate(modules)}
    with _covered(implementation, partial(_cover_interface, implementation)), _watching(watched):
        yield


@contextmanager
def _watching(watched: dict[int, Watch]) -> Iterator[None]:
    before: dict[int, Watch] = getattr(_local, "watched", {})
    _local.watched = watched
    try:
        yield
    finally:
        _local.watched = before


def _watch_of(module: nn.Module) -> Watch | None:
    """Who watches this module in this thread."""
    watched: dict[int, Watch] = getattr(_local, "watched", {})
    return watched.get(id(module))


def _door(anatomy: Anatomy, module: nn.Module, found: Watch) -> Any:
    match anatomy.family.door:
        case "interface":
            config = getattr(module, "config", None) or anatomy.module.config
            name = str(getattr(config, "_attn_implementation", None) or "eager")
            return _covered(name, partial(_cover_interface, name))
        case "method":
            return _covered(id(module), partial(_cover_method, module))
        case "bloom":
            return _bloom(anatomy, module, found)


@contextmanager
def _covered(key: Hashable, cover: Callable[[], Restore]) -> Iterator[None]:
    """Cover something that all threads share once, while any of them is inside; the last one out restores it."""
    with _lock:
        count, restore = _covers.get(key) or (0, cover())
        _covers[key] = (count + 1, restore)
    try:
        yield
    finally:
        with _lock:
            count, restore = _covers.pop(key)
            if count > 1:
                _covers[key] = (count - 1, restore)
            else:
                restore()


def _cover_interface(name: str) -> Restore:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registry

    held, entry = name in registry._local_mapping, registry._local_mapping.get(name)
    registry[name] = _dispatcher(registry.get(name))

    def restore() -> None:
        del registry[name]
        if held:
            registry[name] = entry

    return restore


def _dispatcher(kernel: Callable[..., Any] | None) -> Callable[..., Any]:
    def attend(
        module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *args: Any, **kwargs: Any
    ) -> Any:
        original = kernel or _eager(module)
        found = _watch_of(module)
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
            return found
    raise LookupError(f"{type(module).__name__} has no eager_attention_forward in its modeling file")


def _cover_method(module: nn.Module) -> Restore:
    original: Callable[..., Any] = module._attn  # type: ignore[assignment]

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        found = _watch_of(module)
        if found is None:
            return original(q, k, v, mask, *args, **kwargs)
        watcher, layer = found
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
    return lambda: delattr(module, "_attn")


def _method_scores(module: nn.Module, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Scores of GPT-J (divided by the root of the head's width) and GPT-Neo (undivided, its window a buffer)."""
    given = compute.scores(module, q, k, mask, scaling=1.0 / float(getattr(module, "scale_attn", 1.0)))
    window = getattr(module, "bias", None)
    if isinstance(window, Tensor):
        queries, keys = given.shape[-2:]
        given = given.masked_fill(~window[:, :, keys - queries : keys, :keys], float("-inf"))
    return given


class _SeenCache:
    """A key/value cache whose whole keys are noted as it hands them out."""

    def __init__(self, cache: Any, held: dict[str, Any]) -> None:
        self._cache, self._held = cache, held

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = self._cache.update(*args, **kwargs)
        self._held["k"] = keys
        return keys, values


@contextmanager
def _bloom(anatomy: Anatomy, module: nn.Module, found: Watch) -> Iterator[None]:
    watcher, layer = found
    heads, d_head = anatomy.sizes["n_heads"], anatomy.sizes["d_head"]
    held: dict[str, Any] = {}

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _watch_of(module) is not found:
            return None
        held["mask"], held["alibi"] = kwargs["attention_mask"], kwargs["alibi"]
        if kwargs.get("layer_past") is None:
            return None
        return args, kwargs | {"layer_past": _SeenCache(kwargs["layer_past"], held)}

    def projected(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if _watch_of(module) is not found:
            return None
        split = output.view(*output.shape[:2], heads, 3, d_head).unbind(dim=-2)
        new = [watcher.see(part, layer, value) for part, value in zip("qkv", split, strict=True)]
        held["q"], held["k"], held["v"] = (value.transpose(1, 2) for value in new)
        if all(value is old for value, old in zip(new, split, strict=True)):
            return None
        return torch.stack(new, dim=-2).reshape(output.shape)

    def weighed(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        if _watch_of(module) is not found or not watcher.wants_pattern:
            return None
        kernel = args[0]
        alibi = held["alibi"].view(kernel.shape[0], heads, 1, -1)
        given = compute.scores(
            module,
            held["q"],
            held["k"],
            held["mask"],
            scaling=float(module.inv_norm_factor),  # type: ignore[arg-type]
            position_bias=alibi,
        )
        weights = watcher.see("pattern", layer, compute.pattern(watcher.see("scores", layer, given)))
        if watcher.replaces_pattern:
            return (weights.to(kernel.dtype).contiguous(),)
        watcher.check(layer, weights.transpose(1, 2), kernel.transpose(1, 2))
        return None

    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.get_submodule("query_key_value").register_forward_hook(projected),
        module.get_submodule("attention_dropout").register_forward_pre_hook(weighed),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
