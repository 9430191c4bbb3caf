"""Which module of this very model plays which role? A family's map, resolved on a module in memory.

An `Anatomy` is one stack of blocks (a decoder or an encoder) with its sizes; it holds references, never copies.
"""

from dataclasses import replace
from typing import Any

from torch import nn

from microtome.core.errors import FamilyError, SiteError
from microtome.core.site import Site
from microtome.models.family import Family, sizes
from microtome.models.linear_norm import read_norm


class Anatomy:
    """One stack of blocks: the modules of each role, and the sizes."""

    def __init__(self, module: nn.Module, family: Family, stack: str = "") -> None:
        self.module = module
        self.family = family
        self.stack = stack
        config: Any = getattr(module, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") and not stack else config
        blocks = self._find(family.layers)
        if not isinstance(blocks, nn.ModuleList):
            raise FamilyError(
                f"the map {family.name!r} expects the blocks at {family.layers!r}; this {type(module).__name__} has no "
                "list of modules there. Load the whole model, or address its modules by path: load(module, family=None)"
            )
        self.blocks: list[nn.Module] = list(blocks)
        if absent := self._norms_taken_out():
            self.family = replace(family, **dict.fromkeys(absent, ""))  # type: ignore[arg-type]
        self.sizes = sizes(config) | {"n_layers": len(self.blocks)}
        self.norm_eps = float(
            next((getattr(config, n) for n in _EPSILONS if getattr(config, n, None) is not None), 1e-5)
        )
        self._roles: dict[tuple[str, int | None], nn.Module | None] = {}
        self._centred: dict[tuple[str, int | None], bool] = {}

    def _norms_taken_out(self) -> list[str]:
        """Norms of the family that somebody put nothing in the place of."""
        places = [
            (role, submodule(block, getattr(self.family, role)))
            for role in ("attn_norm", "mlp_norm")
            for block in self.blocks[:1]
        ]
        places.append(("final_norm", self._find(self.family.final_norm)))
        return [role for role, found in places if isinstance(found, nn.Identity)]

    def _find(self, path: str) -> nn.Module | None:
        """A module by path; the first name may be missing (a bare base model) or lie deeper (a composite model)."""
        tail = path.partition(".")[2]
        candidates = [path, tail, f"model.language_model.{tail}", f"language_model.{path}"]
        for candidate in candidates:
            if candidate and (found := submodule(self.module, candidate)) is not None:
                return found
        return None

    def role(self, role: str, layer: int | None = None) -> nn.Module | None:
        """The module that plays `role` (a field of `Family`), in a block or in the model; `None` if there is none."""
        key = (role, layer)
        if key not in self._roles:
            path = getattr(self.family, role)
            found = None
            if path:
                found = self._find(path) if layer is None else submodule(self.blocks[layer], path)
            self._roles[key] = found
        return self._roles[key]

    def need(self, role: str, site: Site) -> nn.Module:
        """The module that plays `role` at this site. Raises `SiteError` if the family has none."""
        found = self.role(role, site.layer)
        if found is None:
            raise SiteError(
                f"{site.whole}: the {self.family.name} family has no such part ({role} is absent)"
            )
        return found

    def is_centred(self, role: str, layer: int | None = None) -> bool:
        """Whether a norm subtracts the mean (LayerNorm) or not (RMSNorm)."""
        key = (role, layer)
        if key not in self._centred:
            device = next((p.device for p in self.module.parameters() if not p.is_meta), None)
            self._centred[key] = read_norm(self.role(role, layer), self.sizes["d_model"], device).centred
        return self._centred[key]


_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    """`root.a.b.0`, or `None` where there is no such module."""
    found: Any = root
    for name in path.split("."):
        found = found._modules.get(name) if isinstance(found, nn.Module) else None
        if found is None:
            return None
    return found if isinstance(found, nn.Module) else None
