"""What a pass returned: the values asked for, logits where asked, nothing more. It saves, and loads back equal."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from microtome.core.errors import SiteError, StoreError
from microtome.core.site import Site, as_site


@dataclass(frozen=True)
class Run:
    """The record of one pass.

    values: by site as requested, in canonical layout (`PARTS[...].axes`), selected axes kept.
    logits: `[row, position, token]` at the positions and tokens asked for, or `None`.
    metric: `[row]`, if a metric was given.
    """

    values: Mapping[Site, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None
    metric: Float[Tensor, " row"] | None = None

    def __getitem__(self, site: Site | str) -> Tensor:
        found = self.values.get(as_site(site))
        if found is None:
            have = " ".join(map(str, self.values)) or "nothing"
            raise SiteError(
                f"{site} was not read in this run; it holds {have}. Ask for it: run(..., read=['{site}'])"
            )
        return found

    def __contains__(self, site: Site | str) -> bool:
        return as_site(site) in self.values

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file."""
        tensors = {
            f"value {site}": value.detach().contiguous().clone() for site, value in self.values.items()
        }
        for name in ("logits", "metric"):
            if (value := getattr(self, name)) is not None:
                tensors[name] = value.detach().contiguous().clone()
        save_file(tensors, str(path), metadata={"microtome": json.dumps({"kind": "run"})})

    @staticmethod
    def load(path: str | Path) -> "Run":
        """Read a file written by `save`. Raises `StoreError` for a corrupt or foreign one."""
        try:
            with safe_open(str(path), framework="pt") as file:
                if "microtome" not in (file.metadata() or {}):
                    raise StoreError(f"{path} was not written by Run.save; give a file that was")
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"{path} cannot be read ({error}); the file is missing or damaged: make the run again"
            ) from error
        values = {Site.parse(k[6:]): v for k, v in held.items() if k.startswith("value ")}
        return Run(values, held.get("logits"), held.get("metric"))
