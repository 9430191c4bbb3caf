"""Which site does TransformerLens call by which name? Names that mean the same value in every model, and no others.

`ln2.hook_normalized` is left out: for models with a LayerNorm it is what the MLP reads, for those with an RMSNorm it
lacks the gain. So is `hook_mlp_in`, which comes before the norm, and in parallel blocks elsewhere.
"""

import re
from typing import Final

from microtome.core.site import PARTS, Site

_NAMES: Final = {
    "embed": "hook_embed",
    "pos_embed": "hook_pos_embed",
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "v": "attn.hook_v",
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
}
_PARTS: Final = {name: part for part, name in _NAMES.items()}


def site_of(hook: str | None) -> Site | None:
    """The site of a hook such as `blocks.3.hook_resid_post`; None where it is not certain."""
    match = re.fullmatch(r"(?:blocks\.(\d+)\.)?([a-z0-9_.]+)", hook or "")
    part = _PARTS.get(match[2]) if match else None
    if match is None or part is None or PARTS[part].layered != (match[1] is not None):
        return None
    return Site(part, None if match[1] is None else int(match[1]))


def hook_of(site: Site) -> str | None:
    """The name of the hook that sees this site; None where there is none."""
    name = _NAMES.get(site.part)
    if name is None or not site.is_whole or site.stack or site.gradient:
        return None
    return name if site.layer is None else f"blocks.{site.layer}.{name}"
