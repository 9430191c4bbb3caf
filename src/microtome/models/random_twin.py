"""What would a method find in a model that has learned nothing? A twin with the same numbers in random places.

The entries of each weight matrix are shuffled by a seed; vectors (biases, gains of norms) stay. Sizes, scales and the
spread of the weights are those of the model, its structure is gone. The model itself is not touched; the twin needs as
much memory again.
"""

import copy

import torch

from microtome.models.anatomy import Anatomy
from microtome.models.model import Model


@torch.no_grad()
def random_twin(model: Model, seed: int = 0) -> Model:
    """A copy of the model, the entries of its matrices shuffled. The same seed gives the same twin."""
    module = copy.deepcopy(model.module)
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    anatomies = {
        stack: Anatomy(module, anatomy.family, anatomy.stack) for stack, anatomy in model.anatomies.items()
    }
    return Model(module, anatomies, model.tokenizer, f"{model.name}, weights shuffled")
