"""Heads and MLPs as the components of a network: which there are, by name, in the order of a pass."""

from collections.abc import Sequence

from microtome.core.errors import InputError, SiteError
from microtome.core.site import Site
from microtome.models.model import Model


def components(model: Model) -> tuple[Site, ...]:
    """All heads and MLPs, in the order of a pass. Raises `InputError` for a model without a map."""
    if not model.anatomies:
        raise InputError(
            f"{model.name} is addressed by module paths; its heads and MLPs are known only with a map of it"
        )
    found: list[Site] = []
    for layer in range(model.n_layers):
        found += [Site("z", layer, heads=(head,)) for head in range(model.n_heads)]
        if model.has(mlp := Site("mlp_out", layer)):
            found.append(mlp)
    return tuple(found)


def parse(model: Model, names: Sequence[str]) -> tuple[Site, ...]:
    """Components by name. Raises `SiteError` for one that this model does not have."""
    known = components(model)
    found = tuple(Site.parse(name) for name in names)
    for site in found:
        if site not in known:
            raise SiteError(
                f"{site} is not a component of {model.name}: write z.LAYER.hHEAD (layers 0 … {model.n_layers - 1}, "
                f"heads 0 … {model.n_heads - 1}) or mlp_out.LAYER"
            )
    return found


def spoken(site: Site) -> str:
    """A component as a person says it: head 3.1, MLP 2."""
    return f"head {site.layer}.{site.heads[0]}" if site.heads else f"MLP {site.layer}"
