"""Read and edit values while the user's own modules run, through two doors: module hooks, and the attention kernel.

1. Each requested site and each edit is resolved to its place (or refused) before anything runs.
2. On entering, hooks are laid on exactly those modules; on leaving, after errors too, they are gone. They act in this
   thread only, and not while another interception is open inside this one.
3. At a place, edits are applied in their order, then the value is kept as the reads select it.
4. When the last read is in hand and nothing else is wanted, the pass stops.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from microtome.core.edits import Edit
from microtome.core.errors import EditError, FamilyError, SiteError
from microtome.core.site import Site
from microtome.models import select
from microtome.models.anatomy import Anatomy
from microtome.models.attention import Watcher, watch
from microtome.models.batch import Batch
from microtome.models.places import Call, Place, path_place, place

INSIDE_ATTENTION = {"q", "k", "v", "scores", "pattern"}
_thread = threading.local()


class Stop(Exception):
    """Raised inside a pass when everything asked for is in hand."""


class Interception:
    """What to read and edit, laid over the modules while the context is open.

    `batch` must describe each pass before it runs. `values` holds what was read, under the sites as requested.
    """

    def __init__(
        self,
        anatomies: dict[str, Anatomy],
        root: nn.Module,
        reads: Iterable[Site] = (),
        edits: Sequence[Edit] = (),
        *,
        stop: bool = False,
    ) -> None:
        self.batch = Batch(1, 1)
        self.encoder_batch: Batch | None = None
        self.values: dict[Site, Tensor] = {}
        self._targets: dict[Site, tuple[Tensor, Callable[[Tensor], Tensor]]] = {}
        self._reads: dict[Site, list[Site]] = {}
        self._edits: dict[Site, list[Edit]] = {}
        for site in reads:
            self._reads.setdefault(site.whole, []).append(site)
        self._sources: dict[Site, list[Edit]] = {}
        self._handed: dict[tuple[int, Site], Tensor] = {}
        for edit in edits:
            self._edits.setdefault(edit.site.whole, []).append(edit)
            for source in edit.sources:
                self._sources.setdefault(source, []).append(edit)
        self._pending = set(self._reads)
        self._reached: set[Site] = set()
        self._stop = stop
        self._anatomies = anatomies
        self._places: dict[tuple[nn.Module, str], list[tuple[Site, Place]]] = {}
        self._watchers: dict[str, dict[int, Watcher]] = {}
        self._stack = ExitStack()
        self._copies = (
            any(getattr(module, "inplace", False) for module in root.modules()) if self._has_paths else False
        )
        for whole in sorted({*self._reads, *self._edits, *self._sources}, key=lambda site: site.depth):
            self._resolve(whole, root)

    @property
    def _has_paths(self) -> bool:
        return any(site.part == "path" for site in (*self._reads, *self._edits, *self._sources))

    def _resolve(self, whole: Site, root: nn.Module) -> None:
        if whole.part == "path":
            found = path_place(root, whole)
            self._places.setdefault((found.module, found.side), []).append((whole, found))
            return
        anatomy = anatomy_of(self._anatomies, whole)
        self._check_range(anatomy, whole)
        if whole.part in INSIDE_ATTENTION:
            assert whole.layer is not None
            anatomy.need("attn", whole)
            layers = self._watchers.setdefault(whole.stack, {})
            layers.setdefault(whole.layer, _Watcher(self, whole.stack, whole.layer))
            return
        found = place(anatomy, whole)
        self._places.setdefault((found.module, found.side), []).append((whole, found))

    def _check_range(self, anatomy: Anatomy, whole: Site) -> None:
        """Layers, heads and units out of range are refused before anything runs."""
        if whole.layer is not None and whole.layer >= len(anatomy.blocks):
            last = len(anatomy.blocks) - 1
            raise SiteError(f"{whole}: layer {whole.layer} is out of range; this model has layers 0 … {last}")
        sizes = anatomy.sizes
        limits = {"head": sizes["n_heads"], "kv_head": sizes["n_kv_heads"]}
        units = {"d_model": sizes["d_model"], "d_head": sizes["d_head"]}
        for site in (*self._reads.get(whole, ()), *(edit.site for edit in self._edits.get(whole, ()))):
            count = next((limits[axis] for axis in site.axes if axis in limits), 0)
            for head in site.heads or ():
                if not -count <= head < count:
                    raise SiteError(
                        f"{site}: head {head} is out of range; there are {count} (0 … {count - 1})"
                    )
            width = units.get(site.axes[-1], 0)
            for unit in site.units or ():
                if width and not -width <= unit < width:
                    raise SiteError(
                        f"{site}: unit {unit} is out of range; there are {width} (0 … {width - 1})"
                    )

    def __enter__(self) -> Self:
        self._stack.__enter__()
        try:
            for (module, side), entries in self._places.items():
                hook = self._before(entries) if side == "in" else self._after(entries)
                register = module.register_forward_pre_hook if side == "in" else module.register_forward_hook
                self._stack.callback(register(hook, with_kwargs=True).remove)
            watchers = [(self._anatomies[stack], layers) for stack, layers in self._watchers.items()]
            self._stack.enter_context(watch(watchers))
        except BaseException:
            self._stack.close()
            raise
        self._stack.callback(setattr, _thread, "open", getattr(_thread, "open", None))
        _thread.open = self
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _before(self, entries: list[tuple[Site, Place]]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if _thread.__dict__.get("open") is not self:
                return None
            call = Call(module, args, kwargs)
            for whole, found in entries:
                self._visit(whole, found, call)
            changed = call.args is not args or call.kwargs is not kwargs
            return (call.args, call.kwargs) if changed else None

        return hook

    def _after(self, entries: list[tuple[Site, Place]]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if _thread.__dict__.get("open") is not self:
                return None
            call = Call(module, args, kwargs, output)
            for whole, found in entries:
                self._visit(whole, found, call)
            return call.output if call.output is not output else None

        return hook

    def _visit(self, whole: Site, found: Place, call: Call) -> None:
        raw = found.raw(call)
        batch = self.batch_of(whole)
        value = found.canonical(raw, call, batch)
        new = self.edited(whole, value)
        gradients = [site for site in self._reads.get(whole, ()) if site.gradient]
        # One raw value for several rows has one gradient for all of them: give each row its own.
        rebuilds = bool(gradients) and (found.recomputes or raw.shape[:1] != value.shape[:1])
        if rebuilds:
            new = _differentiable(new.clone())
        if new is not value:
            found.store(new, call, batch)
            raw = found.raw(call)
            value = new
        if gradients:
            if not rebuilds and found.side == "in" and not found.in_place:
                raw = call.input = _apart(raw)
            target = value if rebuilds else _differentiable(raw)
            if not rebuilds:  # what is kept is computed from what the gradient is by
                value = found.canonical(raw, call, batch)
            convert = _whole if rebuilds else partial(found.gradient, raw=raw, call=call, batch=batch)
            self._targets |= dict.fromkeys(gradients, (target, convert))
        self.keep(whole, value)

    def batch_of(self, whole: Site) -> Batch:
        """The geometry of the stack that a site belongs to."""
        return (
            self.encoder_batch if whole.stack == "encoder" and self.encoder_batch is not None else self.batch
        )

    def edited(self, whole: Site, value: Tensor) -> Tensor:
        """The value after the edits at this site; the very same tensor if there are none."""
        self._reached.add(whole)
        edits = self._edits.get(whole, ())
        if edits:
            with _closed():  # an edit may call modules of the model itself, such as a norm
                for edit in edits:
                    value = select.write(edit, value, self.batch_of(whole), self._sources_of(edit))
        return value

    def _sources_of(self, edit: Edit) -> list[Tensor]:
        """What the edit needs from elsewhere in this pass; handed out once, so that it is never of an earlier pass."""
        missing = [str(source) for source in edit.sources if (id(edit), source) not in self._handed]
        if missing:
            raise EditError(
                f"{edit!r} needs {', '.join(missing)}, where this pass had not been when it reached {edit.site}; "
                "an edit can only follow what comes before it"
            )
        return [self._handed.pop((id(edit), source)) for source in edit.sources]

    def keep(self, whole: Site, value: Tensor) -> None:
        """Keep what the reads select; stop the pass when the last read is in hand."""
        for site in self._reads.get(whole, ()):
            if not site.gradient:
                self.values[site] = _own(select.read(site, value, self.batch_of(whole)), copy=self._copies)
        for edit in self._sources.get(whole, ()):
            self._handed[id(edit), whole] = _own(value, copy=self._copies)
        self._pending.discard(whole)
        if self._stop and not self._pending:
            raise Stop

    def gradients(self, metric: Tensor, *, keep_graph: bool = False) -> None:
        """Fill in the gradients asked for, of the sum of `metric`. `keep_graph`: for a backward pass to come."""
        if not self._targets:
            return
        sites = list(self._targets)
        targets = [self._targets[site][0] for site in sites]
        found = torch.autograd.grad(metric.sum(), targets, allow_unused=True, retain_graph=keep_graph)
        for site, gradient in zip(sites, found, strict=True):
            target, convert = self._targets[site]
            whole = convert(torch.zeros_like(target) if gradient is None else gradient)
            self.values[site] = select.read(site, whole, self.batch_of(site)).detach()

    def check_reached(self) -> None:
        """Raise if a pass went by without reaching a site it was asked to read or edit."""
        for whole in self._reads:
            if whole not in self._reached:
                raise SiteError(
                    f"{whole} was never reached in this pass; does the model use this module for these inputs?"
                )
        if not self._stop:
            self.check_edits_reached()

    def check_edits_reached(self) -> None:
        """Raise if an edit was never applied."""
        for whole in self._edits:
            if whole not in self._reached:
                raise EditError(
                    f"the edit at {whole} was never reached in this pass; its effect would be silently nothing"
                )


class _Watcher:
    """The attention of one layer, as one interception sees it."""

    def __init__(self, owner: Interception, stack: str, layer: int) -> None:
        self._owner, self._stack, self._layer = owner, stack, layer

    def _site(self, part: str) -> Site:
        return Site(part, self._layer, stack=self._stack)

    @property
    def wants_pattern(self) -> bool:
        owner = self._owner
        sites = (self._site("scores"), self._site("pattern"))
        return any(site in owner._reads or site in owner._edits for site in sites)

    @property
    def replaces_pattern(self) -> bool:
        owner = self._owner
        sites = (self._site("scores"), self._site("pattern"))
        return any(
            site in owner._edits or any(read.gradient for read in owner._reads.get(site, ()))
            for site in sites
        )

    def see(self, part: str, layer: int, value: Tensor) -> Tensor:
        owner, whole = self._owner, self._site(part)
        if all(whole not in asked for asked in (owner._reads, owner._edits, owner._sources)):
            return value
        value = owner.edited(whole, value)
        gradients = [site for site in owner._reads.get(whole, ()) if site.gradient]
        if gradients:
            value = _apart(value)
            owner._targets |= dict.fromkeys(gradients, (value, _whole))
        owner.keep(whole, value)
        return value

    def check(self, layer: int, mixed: Tensor, kernel: Tensor) -> None:
        """The pattern must explain what the kernel returned, on real tokens."""
        batch = self._owner.batch_of(self._site("z"))
        real = batch.real(mixed.device)[:, -mixed.shape[1] :]
        mixed, kernel = mixed.detach(), kernel.detach()
        gap = (mixed.float() - kernel.float()).abs().amax(dim=tuple(range(2, mixed.dim())))
        scale = float(kernel.float().abs().max().clamp_min(1.0))
        allowed = scale * max(1e-4, 16 * torch.finfo(kernel.dtype).eps)
        worst = float(torch.where(real, gap, 0.0).max())
        if worst > allowed:
            raise FamilyError(
                f"the pattern of layer {layer} does not explain what the attention kernel returned (largest difference "
                f"{worst:.2e}, allowed {allowed:.2e}); this attention computes something we do not know"
            )


@contextmanager
def _closed() -> Iterator[None]:
    """Inside, no interception of this thread sees module calls."""
    opened = getattr(_thread, "open", None)
    _thread.open = None
    try:
        yield
    finally:
        _thread.open = opened


def anatomy_of(anatomies: dict[str, Anatomy], site: Site) -> Anatomy:
    """The stack a site belongs to. Raises `SiteError` if the model has none, or no map at all."""
    found = anatomies.get(site.stack)
    if found is None:
        if not anatomies:
            raise SiteError(
                f"{site}: this model has no map, so its sites are module paths; write path:NAME or path:NAME:in"
            )
        raise SiteError(
            f"{site}: this model has no {site.stack}; it has {' and '.join(s or 'one stack' for s in anatomies)}"
        )
    return found


def _whole(gradient: Tensor) -> Tensor:
    return gradient


def _apart(value: Tensor) -> Tensor:
    """The same values as a tensor of its own: its gradient is by what is computed from it, and not from its origin."""
    return value.view_as(value) if value.requires_grad else value.detach().requires_grad_()


def _differentiable(value: Tensor) -> Tensor:
    return value if value.requires_grad else value.requires_grad_()


def _own(value: Tensor, *, copy: bool) -> Tensor:
    """Keep a small selection without keeping alive the large tensor it is a view of."""
    if copy or (
        value._is_view() and value.numel() * 4 <= value.untyped_storage().nbytes() // value.element_size()
    ):
        return value.clone()
    return value
