"""What would a method find in a model that has learned nothing? A twin with the same numbers in random places.

The entries of each weight matrix are shuffled by a seed; vectors (biases, gains of norms) stay. Sizes, scales and the
spread of the weights are those of the model, its structure is gone. Weights that are mostly zeros, as hand-set and
compiled ones are, fall apart when shuffled, and which of them are not gives the answer away: then all parameters are
drawn instead, from normal distributions of the mean and variance that they have over all layers. The model itself is
not touched; the twin needs as much memory again.
"""

import copy
import re
from typing import Literal

import torch
from torch import nn

from microtome.models.anatomy import Anatomy
from microtome.models.model import Model

How = Literal["shuffled", "drawn"]


@torch.no_grad()
def random_twin(model: Model, seed: int = 0, how: How = "shuffled") -> Model:
    """A copy of the model, the entries of its matrices shuffled or drawn anew. The same seed gives the same twin."""
    module = copy.deepcopy(model.module)
    generator = torch.Generator().manual_seed(seed)
    if how == "drawn":
        _draw(module, generator)
    else:
        _shuffle(module, generator)
    anatomies = {
        stack: Anatomy(module, anatomy.family, anatomy.stack) for stack, anatomy in model.anatomies.items()
    }
    return Model(module, anatomies, model.tokenizer, f"{model.name}, weights {how}")


def _shuffle(module: nn.Module, generator: torch.Generator) -> None:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _draw(module: nn.Module, generator: torch.Generator) -> None:
    """Parameters that differ only in their layer share mean and variance: none gives itself away by its size."""
    alike: dict[str, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        alike.setdefault(re.sub(r"\d+", "#", name), []).append(parameter)
    for group in alike.values():
        entries = torch.cat([parameter.flatten().float() for parameter in group])
        mean, spread = entries.mean(), entries.std(unbiased=False)
        for parameter in group:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(mean + noise.to(parameter) * spread)
