"""Which other ways back are there than the chain rule? Rules that replace gradients, laid over the untouched module.

Gradients of saturated units vanish, and gradients of norms and products count one cause several times. Each rule lets
the pass go forward as it is, and changes only how it is differentiated:

1. `frozen_norms`: a norm's divisor is a constant (the LN rule).
2. `proportional_neurons`: an activation passes on what its input is worth, φ(x)/x instead of φ'(x) (the identity rule).
3. `halved_products`: of a product each factor gets half. A gate and its partner; patterns and values; queries and keys,
   which stand behind the pattern and so get a quarter each.
4. `attention`: `gradient`; `frozen`, patterns are constants; `tempered`, the softmax is differentiated at a higher
   temperature, so that keys compete less to be the one that counts.

Without biases, 1, 2, 3 and frozen patterns make the network a product of constants: input times such a gradient adds
up to the output. Reference: Jafari et al. (2025), RelP; Ali et al. (2022) and Achtibat et al. (2024) for the rules of
transformers; Edin et al. (2025), Gradient Interaction Modifications. They are not derivatives: nothing promises that a
small change does what they say. Experts, norms of queries and
keys and norms behind the attention keep the chain rule.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from microtome.core.edits import Edit, Function
from microtome.core.site import Site
from microtome.models.model import Model
from microtome.models.scores import pattern as softmax

Attention = Literal["gradient", "frozen", "tempered"]


@dataclass(frozen=True)
class GradientRules:
    """Which rules hold. temperature: of the softmax that is differentiated where attention is tempered."""

    frozen_norms: bool = False
    proportional_neurons: bool = False
    halved_products: bool = False
    attention: Attention = "gradient"
    temperature: float = 2.0

    def edits(self, model: Model) -> list[Edit]:
        """The rules as edits of a pass: they change no value, only how it is differentiated."""
        found: list[Edit] = []
        for layer in range(model.n_layers):
            if self.frozen_norms:
                found += [
                    Function(site, function=torch.detach)
                    for part in ("attn_norm_scale", "mlp_norm_scale")
                    if model.has(site := Site(part, layer))
                ]
            found += self._attention(layer)
            if self.proportional_neurons or self.halved_products:
                found += self._neurons(model, layer)
        if self.frozen_norms and model.has("final_norm_scale"):
            found.append(Function(Site("final_norm_scale"), function=torch.detach))
        return found

    def _attention(self, layer: int) -> list[Edit]:
        found: list[Edit] = []
        pattern = Site("pattern", layer)
        if self.attention == "frozen":
            found.append(Function(pattern, function=torch.detach))
        elif self.attention == "tempered":
            tempered = _TemperedSoftmax(self.temperature)
            found.append(Function(Site("scores", layer), function=tempered.seen))
            found.append(Function(pattern, function=tempered.differentiated))
        if self.halved_products and self.attention != "frozen":
            found += [
                Function(Site(part, layer), function=partial(scaled_back, share=0.5))
                for part in ("q", "k", "v", "pattern")
            ]
        return found

    def _neurons(self, model: Model, layer: int) -> list[Edit]:
        if not (model.has(Site("mlp_pre", layer)) and model.has(Site("mlp_post", layer))):
            return []
        product = _Neurons(self.proportional_neurons, self.halved_products)
        found: list[Edit] = [Function(Site("mlp_pre", layer), function=product.gated)]
        if (partner := gate_partner(model, layer)) is not None:
            found.append(Function(partner, function=product.partnered))
        found.append(Function(Site("mlp_post", layer), function=product.differentiated))
        return found


def gate_partner(model: Model, layer: int) -> Site | None:
    """Where what the gate is multiplied by stands, as a module's output; `None` where neurons have no gate."""
    family, anatomy = model.anatomy.family, model.anatomy
    role = "gate_up" if family.gate_up else "mlp_up" if family.mlp_gate else ""
    module = anatomy.role(role, layer) if role else None
    names = (name for name, found in model.module.named_modules() if found is module)
    return None if module is None else Site.module(next(names))


def scaled_back(value: Tensor, share: float) -> Tensor:
    """The value itself, bit for bit, whose gradient counts by a share."""
    return value.detach() + share * (value - value.detach())


class _Neurons:
    """Neurons of one layer, differentiated as what they are of their input, and of their gate's partner."""

    def __init__(self, proportional: bool, halved: bool) -> None:
        self._proportional, self._halved = proportional, halved
        self._gate: Tensor | None = None
        self._partner: Tensor | None = None

    def gated(self, value: Tensor) -> Tensor:
        self._gate = value
        return value

    def partnered(self, value: Tensor) -> Tensor:
        self._partner = value
        return value

    def differentiated(self, value: Tensor) -> Tensor:
        assert self._gate is not None
        gate, partner = self._gate, self._partner
        if partner is None:
            return _linear(value, gate, 1.0) if self._proportional else value
        if partner.shape[-1] != value.shape[-1]:  # a projection that makes both, the gate first
            partner = partner.chunk(2, dim=-1)[1]
        partner = partner.reshape(value.shape)
        share = 0.5 if self._halved else 1.0
        if not self._proportional:
            return scaled_back(value, share)
        return _linear(value, gate, share) + _linear(value, partner, share) - value.detach()


def _linear(value: Tensor, of: Tensor, share: float) -> Tensor:
    """The value, differentiated as proportional to `of`; as constant where that is zero."""
    known = of.detach()
    ratio = torch.where(known != 0, value.detach() / torch.where(known != 0, known, 1.0), 0.0)
    return value.detach() + share * ratio * (of - known)


class _TemperedSoftmax:
    """Attention of one layer, differentiated as a softmax of another temperature."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._scores: Tensor | None = None

    def seen(self, scores: Tensor) -> Tensor:
        self._scores = scores
        return scores

    def differentiated(self, pattern: Tensor) -> Tensor:
        assert self._scores is not None
        masked = torch.isneginf(self._scores)
        moving = self._scores.masked_fill(masked, 0.0)
        cooled = (self._scores.detach() / self._temperature) + (moving - moving.detach())
        other = softmax(cooled.float()).to(pattern.dtype)
        return pattern.detach() + other - other.detach()
