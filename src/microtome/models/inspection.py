"""Where does an unknown decoder keep its parts? Found by watching it run on a few tokens, then put to the full check.

1. The blocks are the list of modules of one class through which a stream of the model's width flows, each taking what
   the one before returned.
2. In the first block, the attention is the module that calls Transformers' attention interface. Which projections make
   its queries, keys and values is found by intervention: silence a projection, and see what changes at the kernel.
3. Norms, MLP and its projections are told apart by what flows: who reads the stream, who reads whom, who adds to it.
4. Embedding, final norm and head are what stands before and after the blocks.
5. The map is held against the untouched model in every block (`microtome.models.check`). What it cannot express (a
   factor on what is added to the stream, for instance) breaks an identity there, and the model is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from microtome.core.errors import FamilyError, MicrotomeError
from microtome.models.anatomy import Anatomy
from microtome.models.attention import watch_interface
from microtome.models.check import activation_of, check_map
from microtome.models.family import Family, sizes
from microtome.models.model import Model


@torch.no_grad()
def inspect_family(module: nn.Module) -> Family:
    """The map of a decoder without one. The module is left as it was.

    Raises `FamilyError` naming what could not be found or is not true, and the fields of a `Family` to write.
    """
    try:
        family = _Inspection(module).family()
    except _NotFoundError as missing:
        raise FamilyError(f"{_opening(module)}: {missing}. {_ADVICE}") from None
    except Exception as error:  # an architecture may be strange in ways that nobody can list
        said = f"{type(error).__name__}: {error}"
        raise FamilyError(f"{_opening(module)}: the search ended with {said}. {_ADVICE}") from error
    try:
        check_map(Model(module, {"": Anatomy(module, family)}), thorough=True)
    except (MicrotomeError, RuntimeError) as error:
        said = str(error).partition(". Give a map")[0]
        raise FamilyError(f"{_opening(module)}: {said}. Found: {_fields(family)}. {_ADVICE}") from error
    return family


_ADVICE = (
    "Write its map, microtome.models.family.Family(layers, embed, attn, o, q, k, v or qkv, the norms, mlp_up, "
    "mlp_down, residual, …), and give it: load(module, family=...); or address modules by path: "
    "load(module, family=None)"
)


def _opening(module: nn.Module) -> str:
    return f"{type(module).__name__} has no map here, and none was found by inspection"


def _fields(family: Family) -> str:
    blank = Family("", (), "", "", "", "")
    held = {name: value for name, value in vars(family).items() if value != getattr(blank, name)}
    return ", ".join(f"{name}={value!r}" for name, value in held.items())


class _NotFoundError(Exception):
    """A part that the trace does not show."""


class _Enough(Exception):
    """Stops a pass when what was looked for has been seen."""


@dataclass(frozen=True)
class Call:
    """One call of a module: its path in the model, first input and first output, as they were then."""

    path: str
    module: nn.Module
    given: Tensor
    made: Tensor


class _Kernel:
    """A watcher that notes what arrives at the attention kernel, and who called it."""

    wants_pattern = False
    replaces_pattern = False

    def __init__(self, *, stop: bool = False) -> None:
        self.caller: int | None = None
        self.seen: dict[str, Tensor] = {}
        self._stop = stop

    def see(self, part: str, layer: int, value: Tensor) -> Tensor:
        self.caller, self.seen[part] = layer, value.clone()
        if self._stop and len(self.seen) == 3:
            raise _Enough
        return value

    def check(self, layer: int, mixed: Tensor, kernel: Tensor) -> None:
        raise NotImplementedError


class _Inspection:
    """The search, from the outside in."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        config: Any = module.config
        self.config: Any = config.get_text_config()
        self.sizes = sizes(self.config)
        self.names = {id(m): path for path, m in module.named_modules()}
        generator = torch.Generator().manual_seed(0)
        device = next(module.parameters()).device
        self.ids = torch.randint(max(1, self.sizes["d_vocab"]), (2, 5), generator=generator).to(device)

    def family(self) -> Family:
        layers, blocks = self._blocks()
        inside = [m for m in blocks[0].modules() if m is not blocks[0]]
        outside = [m for m in self.module.modules() if not self._under(layers, m)]
        kernel = _Kernel()
        with watch_interface(inside, self._implementation(), kernel):
            calls = self._trace([*outside, *blocks, *inside])
        if kernel.caller is None:
            raise _NotFoundError("its attention does not go through Transformers' attention interface")
        attention = inside[kernel.caller]
        self._expect_heads(kernel)
        first = f"{layers}.0."
        within = [call for call in calls if call.path.startswith(first)]
        pre, post = next((c.given, c.made) for c in calls if c.path == f"{layers}.0")
        block = _BlockMap(first, within, pre, post, self.names[id(attention)], activation_of(self.config))
        found = replace(block.family(), layers=layers, **self._ends(calls, f"{layers}.{len(blocks) - 1}"))
        return replace(found, **self._projections(attention, kernel, within, first))

    def _under(self, layers: str, module: nn.Module) -> bool:
        path = self.names[id(module)]
        return path == layers or path.startswith(f"{layers}.")

    def _implementation(self) -> str:
        return str(getattr(self.config, "_attn_implementation", None) or "eager")

    def _blocks(self) -> tuple[str, list[nn.Module]]:
        """The list of blocks and its path: the longest through which a stream flows."""
        lists = [
            m
            for m in self.module.modules()
            if isinstance(m, nn.ModuleList) and len({type(b) for b in m}) == 1
        ]
        for found in sorted(lists, key=len, reverse=True):
            blocks = list(found)
            calls = self._trace(blocks)
            flows = [c.path for c in calls] == [self.names[id(b)] for b in blocks] and all(
                torch.equal(one.made, two.given) for one, two in pairwise(calls)
            )
            if flows and all(c.made.shape == (*self.ids.shape, self.sizes["d_model"]) for c in calls):
                return self.names[id(found)], blocks
        raise _NotFoundError(
            "no list of equal modules passes a stream of the model's width from one to the next"
        )

    def _trace(self, modules: Sequence[nn.Module]) -> list[Call]:
        """Run, and note the calls of these modules in the order in which they end."""
        calls: list[Call] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = next((a for a in (*args, kwargs.get("hidden_states")) if isinstance(a, Tensor)), None)
            made = output[0] if isinstance(output, tuple) and output else output
            if isinstance(given, Tensor) and isinstance(made, Tensor):
                calls.append(Call(self.names[id(module)], module, given.clone(), made.clone()))

        with _hooked(modules, note):
            self._run()
        return calls

    def _run(self) -> None:
        accepts = {"use_cache": False} if "use_cache" in self.module.forward.__code__.co_varnames else {}
        self.module(input_ids=self.ids, **accepts)

    def _expect_heads(self, kernel: _Kernel) -> None:
        """Refuse heads that the configuration's sizes do not describe."""
        expected = {"q": self.sizes["n_heads"], "k": self.sizes["n_kv_heads"], "v": self.sizes["n_kv_heads"]}
        for part, heads in expected.items():
            shape = list(kernel.seen[part].shape[2:])
            if shape != [heads, self.sizes["d_head"]]:
                raise _NotFoundError(
                    f"its attention has {part} of [heads, width] {shape}, its configuration says "
                    f"{[heads, self.sizes['d_head']]}"
                )

    def _projections(
        self, attention: nn.Module, kernel: _Kernel, calls: Sequence[Call], first: str
    ) -> dict[str, Any]:
        """Which linear layers make queries, keys and values: silence each and see what changes at the kernel."""
        linear = [c for c in calls if _is_linear(c.module) and c.path.startswith(self.names[id(attention)])]
        moved: dict[str, list[str]] = {}
        for call in linear:
            again = _Kernel(stop=True)
            with (
                _hooked([call.module], _silence),
                watch_interface([attention], self._implementation(), again),
                suppress(_Enough),
            ):
                self._run()
            changed = [p for p in "qkv" if not torch.equal(again.seen[p], kernel.seen[p])]
            if changed:
                moved[call.path.removeprefix(first)] = changed
        separate = {part: path for path, parts in moved.items() for part in parts if len(parts) == 1}
        if len(moved) == 3 and set(separate) == set("qkv"):
            return separate
        if len(moved) == 1 and len(next(iter(moved.values()))) == 3:
            path = next(iter(moved))
            fused = next(c.made for c in linear if c.path == first + path)
            return {"qkv": path, "interleaved": self._is_interleaved(fused, kernel.seen["v"])}
        raise _NotFoundError(
            f"queries, keys and values come from {moved or 'no linear layer'}, not from three or one"
        )

    def _is_interleaved(self, fused: Tensor, values: Tensor) -> bool:
        heads, kv_heads, width = (self.sizes[n] for n in ("n_heads", "n_kv_heads", "d_head"))
        if heads == kv_heads and torch.equal(fused.unflatten(-1, (heads, 3, width))[..., 2, :], values):
            return True
        if torch.equal(fused[..., -kv_heads * width :].unflatten(-1, (kv_heads, width)), values):
            return False
        raise _NotFoundError(
            "its fused projection keeps queries, keys and values in an order that is not known here"
        )

    def _ends(self, calls: Sequence[Call], last: str) -> dict[str, Any]:
        """What stands before and after the blocks."""
        embed, head = self.module.get_input_embeddings(), self.module.get_output_embeddings()  # type: ignore[operator]
        if id(embed) not in self.names:
            raise _NotFoundError("it has no input embedding")
        ends: dict[str, Any] = {"embed": self.names[id(embed)]}
        stream = next(call.made for call in calls if call.path == last)
        after = next(
            (c for c in calls if torch.equal(c.given, stream) and c.path != last and _is_norm(c)), None
        )
        if after is not None:
            ends["final_norm"] = after.path
        if head is not None:
            ends["head"] = self.names[id(head)]
        tables = [c for c in calls if isinstance(c.module, nn.Embedding) and c.module is not embed]
        if len(tables) == 1 and tables[0].made.shape[-1] == self.sizes["d_model"]:
            ends["pos_embed"] = tables[0].path
        return ends


class _BlockMap:
    """Attention, norms and MLP of one block, from what flowed through it."""

    def __init__(
        self,
        first: str,
        calls: Sequence[Call],
        pre: Tensor,
        post: Tensor,
        attention: str,
        activation: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self.first, self.calls, self.pre, self.post = first, calls, pre, post
        self.attention = next(c for c in calls if c.path == attention)
        self.activations = (
            (functional.silu, functional.gelu, functional.relu) if activation is None else (activation,)
        )
        own = [c for c in calls if not self._inside(c, self.attention)]
        self.norms = [c for c in own if _is_norm(c)]
        self.rest = [c for c in own if c not in self.norms]

    @staticmethod
    def _inside(call: Call, outer: Call) -> bool:
        return call.path == outer.path or call.path.startswith(f"{outer.path}.")

    def _name(self, call: Call | None) -> str:
        return "" if call is None else call.path.removeprefix(self.first)

    def family(self) -> Family:
        """All fields but those outside the block and the projections into the heads."""
        attn_in, attn_made = self.attention.given, self.attention.made
        linear = [c for c in self.calls if self._inside(c, self.attention) and _is_linear(c.module)]
        o = next((c for c in reversed(linear) if torch.equal(c.made, attn_made)), None)
        if o is None:
            raise _NotFoundError("the attention does not end with a linear output projection")
        attn_norm = self._norm_making(attn_in)
        attn_adds = self._norm_reading(attn_made)
        added = attn_made if attn_adds is None else attn_adds.made
        mlp, down = self._mlp()
        mlp_adds = self._norm_reading(mlp.made if mlp is not None else self.rest[-1].made)
        reads = mlp.given if mlp is not None else next(c.given for c in self.rest if _is_linear(c.module))
        mlp_norm = self._norm_making(reads)
        mid = mlp_norm.given if mlp_norm is not None else reads
        mid = mid.reshape(self.pre.shape)
        family = Family(
            name="inspected",
            model_types=(),
            layers="",
            embed="",
            attn=self._name(self.attention),
            o=self._name(o),
            attn_norm=self._name(attn_norm),
            attn_adds=self._name(attn_adds),
            mlp=self._name(mlp),
            mlp_adds=self._name(mlp_adds),
            **self._neurons(reads, down),
        )
        if torch.equal(mid, self.pre) or (mlp_norm is attn_norm and mlp_norm is not None):
            shared = mlp_norm is attn_norm
            return replace(family, residual="parallel", mlp_norm="" if shared else self._name(mlp_norm))
        if torch.allclose(mid.float(), (self.pre + added).float(), rtol=1e-3, atol=1e-5):
            return replace(family, mlp_norm=self._name(mlp_norm))
        raise _NotFoundError(
            "what the MLP reads is neither the block's input nor that plus what the attention adds: a norm after the "
            "addition, or a factor on what is added"
        )

    def _norm_making(self, value: Tensor) -> Call | None:
        return next((c for c in self.norms if torch.equal(c.made, value)), None)

    def _norm_reading(self, value: Tensor) -> Call | None:
        return next((c for c in self.norms if torch.equal(c.given, value)), None)

    def _mlp(self) -> tuple[Call | None, Call | None]:
        """The MLP (absent where its layers lie in the block itself) and its last linear layer (absent with experts)."""
        outer = [c for c in self.rest if not any(self._inside(c, d) for d in self.rest if d is not c)]
        modules = [c for c in outer if any(self._inside(d, c) for d in self.rest if d is not c)]
        linear = [c for c in self.rest if _is_linear(c.module)]
        if len(modules) == 1:
            mlp = modules[0]
            down = next(
                (c for c in reversed(linear) if torch.equal(c.made.flatten(), mlp.made.flatten())), None
            )
            return mlp, down
        if not modules and len(linear) >= 2:
            return None, linear[-1]
        raise _NotFoundError(
            f"its MLP could not be told from {', '.join(map(self._name, outer)) or 'nothing'}"
        )

    def _neurons(self, reads: Tensor, down: Call | None) -> dict[str, Any]:
        """The projections into and out of the neurons."""
        if down is None:
            return {}
        into = [
            c for c in self.rest if _is_linear(c.module) and c is not down and torch.equal(c.given, reads)
        ]
        found = {"mlp_down": self._name(down)}
        width = down.given.shape[-1]
        if len(into) == 1 and into[0].made.shape[-1] == width:
            return found | {"mlp_up": self._name(into[0])}
        if len(into) == 1 and into[0].made.shape[-1] == 2 * width:
            return found | {"gate_up": self._name(into[0])}
        if len(into) == 2:
            for gate, up in (into, into[::-1]):
                if any(
                    torch.allclose(active(gate.made) * up.made, down.given, rtol=1e-2, atol=1e-5)
                    for active in self.activations
                ):
                    return found | {"mlp_gate": self._name(gate), "mlp_up": self._name(up)}
        raise _NotFoundError(f"its neurons come from {len(into)} projections in a way that is not known here")


@contextmanager
def _hooked(modules: Sequence[nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _silence(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
    return torch.zeros_like(output)


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(module, nn.Embedding)


def _is_norm(call: Call) -> bool:
    """A module with at most one number for each unit, that keeps the shape and is not linear."""
    return (
        call.given.shape == call.made.shape
        and not list(call.module.children())
        and all(p.dim() == 1 for p in call.module.parameters())
        and "norm" in type(call.module).__name__.lower()
    )
