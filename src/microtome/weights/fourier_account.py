"""Does a network add on a circle, and with which frequencies? The Fourier account of modular addition.

1. From a few prompts that hold two numbers each, all p² prompts are made and their logits read as one table
   `[a, b, c]`; the answers are looked for at the last position, among the numbers.
2. For each frequency k, the share of the logits' variance that is a multiple of cos(2πk(a + b − c)/p). Those that hold
   one hundredth or more are the key frequencies; where they do not hold most of it together, there are none.
3. The embedding of the numbers is written in waves, and each neuron at the last position is given the frequency that
   explains most of it.
4. The loss is taken three times: of the logits, of only the key waves of a + b (restricted), and of all but these
   (excluded), on the prompts given and on all others. An algorithm that is all there is survives the first cut and
   dies of the second.

Nanda et al. (2023), Progress measures for grokking via mechanistic interpretability.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from pydantic import Field

from microtome.bases import modular_fourier as fourier
from microtome.bases.number_pairs import number_pairs, table
from microtome.core import config as base
from microtome.core import result
from microtome.core.answers import Answer, Quantities
from microtome.core.card import Card
from microtome.core.cost import measure
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Curve, Grid, Shape, Table
from microtome.core.site import Site
from microtome.data.observed import Observed, as_prompts
from microtome.models.model import Model
from microtome.models.random_twin import random_twin

card = Card(
    name="fourier_account",
    title="Fourier account of modular addition",
    question="Does the network add numbers on a circle, and with which frequencies?",
    steps=(
        "Make every pair of numbers from the prompts given and read the logits as a table over a, b and the answer c.",
        "Measure the share of their variance in cos w(a + b − c), frequency by frequency; name the key frequencies.",
        "Write the embedding in waves and give each neuron the frequency that explains most of it.",
        "Take the loss with only the key waves of a + b, and with all but these.",
    ),
    reference="Nanda et al. (2023), Progress measures for grokking via mechanistic interpretability",
    misleads=(
        "It asks about addition mod the count of numbers and nothing else: a network that does another task has no key "
        "frequency, which does not say that it has no structure. Excluded loss is of one cut; a network may hold a "
        "second, unused way to the answer."
    ),
    needs="tokens",
    causal="intervention",
    locality="global",
    comprehensiveness="comprehensive",
    claims=("quantity:logit_share",),
)


class Config(base.Config):
    """Settings of the Fourier account."""

    first: int = Field(0, ge=0, description="The column of the first number, from 0.")
    second: int = Field(1, ge=0, description="The column of the second number, from 0.")
    numbers: tuple[int, ...] = Field(
        (), description="The ids of 0, 1, 2 …; by default the ids seen in the two columns, in their order."
    )
    least: float = Field(
        0.01, gt=0, lt=1, description="The share of logit variance that a key frequency holds by itself."
    )
    carry: float = Field(
        0.5, gt=0, lt=1, description="The share that all of them must hold together; else there are none."
    )
    control: bool = Field(True, description="Whether to look at a twin with shuffled weights too.")
    seed: base.Seed = Field(0, description="Of the twin.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`share`, `twin_share` `[frequency]` of logit variance, `key` `[frequency]`, `embedding_norm` `[wave]`;
    `neuron_frequency`, `neuron_share` `[neuron]`; `loss` `[cut, part]` in nats (NaN where there are no other pairs),
    `accuracy` `[part]`."""

    @property
    def keys(self) -> tuple[int, ...]:
        """The key frequencies."""
        return tuple(int(k) for k in self.data["frequency"].values[self.data["key"].values])

    def answers(self) -> tuple[Answer, ...]:
        """The share of logit variance of each frequency."""
        shares = zip(self.data["frequency"].values, self.data["share"].values, strict=True)
        return (Quantities({f"logit_share.{k}": float(share) for k, share in shares}),)

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        carried = float(data["share"].sum())
        named = ", ".join(map(str, self.keys)) or "none"
        twin = float(data["twin_share"].sum())
        beside = f"a shuffled twin: {twin:.2g}" if np.isfinite(twin) else "no twin was looked at"
        shares = Curve(
            "Share of logit variance in cos w(a + b − c)",
            data["frequency"].values.astype(float),
            np.stack([data["share"].values, data["twin_share"].values]),
            ("network", "shuffled twin"),
            "frequency",
            "share of variance",
            caption=f"Key frequencies: {named}. All together carry {carried:.3f}; {beside}.",
        )
        norms = Curve(
            "The embedding of the numbers, by wave",
            np.arange(len(data["wave"]), dtype=float),
            data["embedding_norm"].values[None],
            ("norm",),
            "wave",
            "norm",
            caption="0 is the constant; then cos 1, sin 1, cos 2, sin 2 and so on.",
        )
        losses = Grid(
            "Loss after a cut",
            data["loss"].values,
            "cut",
            fourier.CUTS,
            "pairs",
            fourier.PARTS,
            "nats",
            diverging=False,
            caption=f"Guessing costs ln p = {np.log(data.attrs['p']):.3f}. Restricted keeps only the key waves of "
            "a + b, excluded takes only these away.",
        )
        return (shares, losses, norms, self._neurons())

    def _neurons(self) -> Table:
        found = self.data["neuron_frequency"].values
        explained = self.data["neuron_share"].values
        rows = tuple(
            (
                int(k),
                int((found == k).sum()),
                float(explained[found == k].mean()),
                float(explained[found == k].min()),
            )
            for k in np.unique(found)
        )
        return Table(
            "Neurons by the frequency that explains most of them",
            ("frequency", "neurons", "mean share of variance", "least"),
            rows,
            f"All {len(found)} neurons at the last position.",
            self.notes,
        )


@torch.no_grad()
def run(model: Model, data: Observed, config: Config | None = None) -> Result:
    """Account for a network's sums. data: prompts with two numbers each, alike in everything else.

    Raises `InputError` for prompts of another pattern, and for an even number of numbers.
    """
    config = config or Config()
    prompts = as_prompts(data, model.tokenizer)
    pairs = number_pairs(prompts.tokens.cpu(), (config.first, config.second), config.numbers)
    fourier.frequencies(pairs.p)
    layers = tuple(Site("mlp_post", n) for n in range(model.n_layers) if model.has(Site("mlp_post", n)))
    with measure() as recorder:
        logits, neurons = table(model, pairs, layers)
        recorder.add(passes=1)
        shares = fourier.logit_shares(logits)
        keys = fourier.key_frequencies(shares, config.least, config.carry)
        twin = torch.full_like(shares, torch.nan)
        if config.control:
            twin = fourier.logit_shares(table(random_twin(model, config.seed), pairs)[0])
            recorder.add(passes=1)
        explained = [fourier.neuron_shares(values) for values in neurons.values()]
        by_neuron = torch.cat(explained, -1) if explained else torch.zeros(len(shares), 0)
        numbers = model.run(pairs.tokens[:: pairs.p].to(model.device), [Site("embed")])[Site("embed")]
        norms = fourier.wave_norms(numbers[:, config.first].cpu())
        given = pairs.is_given
        losses = fourier.cut_losses(logits, given, keys)
        answered = logits.argmax(-1) == fourier.sums(pairs.p)
    k = np.array(fourier.frequencies(pairs.p))
    return Result.of(
        card,
        xr.Dataset(
            {
                "share": ("frequency", shares.numpy()),
                "twin_share": ("frequency", twin.numpy()),
                "key": ("frequency", np.isin(k, keys)),
                "embedding_norm": ("wave", norms.numpy()),
                "neuron_frequency": ("neuron", by_neuron.argmax(0).numpy() + 1),
                "neuron_share": ("neuron", by_neuron.amax(0).numpy()),
                "loss": (("cut", "part"), losses.numpy()),
                "accuracy": (
                    "part",
                    [float(answered[part].double().mean()) for part in (given, ~given)],
                ),
            },
            {
                "frequency": k,
                "wave": ["constant", *(f"{name} {i}" for i in k for name in ("cos", "sin"))],
                "neuron": [f"{site}.u{u}" for site in layers for u in range(neurons[site].shape[-1])],
                "cut": list(fourier.CUTS),
                "part": list(fourier.PARTS),
            },
            {"p": pairs.p},
        ),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), prompts.hash),
        recorder.cost(),
        (
            "Logits are centred over the answers, which no softmax sees.",
            "There is no key frequency: no wave of a + b − c carries these logits."
            if not keys
            else f"{len(keys)} of {len(k)} frequencies hold {float(shares[np.isin(k, keys)].sum()):.3f} of the "
            "variance of the logits.",
        ),
    )
