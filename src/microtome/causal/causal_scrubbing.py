"""Does the network still do its task when all that a hypothesis calls irrelevant is drawn anew? Performance recovered.

1. The hypothesis (G, I, c): the network, the causal model with its edges, and the locations of its variables.
2. Every node is given other inputs that the hypothesis calls equivalent, recursively, and random inputs along every
   path that is not in the hypothesis (`scrub`).
3. recovered = (random − scrubbed) / (random − network), of the loss of the network's own task and of its accuracy:
   one if nothing that mattered was drawn anew; zero if the scrubbed network is as good as one that reads other rows.
4. The same with every variable's values dealt out among the rows anew: what is recovered then, no feature explains.

Reference: Chan et al. (2022), Causal Scrubbing. Misleads: a finer hypothesis recovers more (one that says nothing is
irrelevant recovers all), and a variable that tells all rows apart is never really drawn anew: see `alone`.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from microtome.causal.interchange import places, right
from microtome.causal.learned_subspace import entropy
from microtome.causal.scrub import Scrub
from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.cost import Recorder, measure
from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Shape, Table
from microtome.data.hypothesis import Hypothesis
from microtome.models.model import Model

card = Card(
    name="causal_scrubbing",
    title="Causal scrubbing",
    question="How much of a behaviour is left when everything a hypothesis calls irrelevant is resampled?",
    steps=(
        "Take the network as the tree of its paths, cut as the hypothesis says.",
        "Give each node inputs that the hypothesis calls equivalent, and random inputs along all other paths.",
        "Tell how much of the loss and of the accuracy is recovered, between random rows and the network itself.",
        "Do the same with the variables' values dealt out anew.",
    ),
    reference="Chan et al. 2022, Causal Scrubbing: a method for rigorously testing interpretability hypotheses",
    misleads="A hypothesis that calls little irrelevant recovers much; see how many rows are alone in their class.",
    needs="hypothesis",
    causal="intervention",
    locality="global",
    comprehensiveness="comprehensive",
)


class Config(base.Config):
    """How often it is scrubbed, and what counts as surviving."""

    draws: int = Field(4, ge=1, description="How often every row is scrubbed.")
    least: float = Field(0.95, gt=0, le=1, description="Share of the accuracy that must be recovered.")
    seed: base.Seed = Field(0, description="Seed of all that is drawn.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`loss`, `accuracy [version]` of the network, scrubbed, control (values dealt out anew) and random (other rows);
    `recovered_loss`, `recovered_accuracy [version]` between random (0) and the network (1). `alone [variable]`: share
    of rows whose value no other row has. Attribute `survives`: whether enough accuracy is recovered.
    """

    @property
    def survives(self) -> bool:
        """Whether the hypothesis recovers the share of accuracy that the settings ask for."""
        return bool(self.data.attrs["survives"])

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        columns = ("loss", "accuracy", "recovered_loss", "recovered_accuracy")
        rows = tuple(
            (name, *(float(data[column].values[i]) for column in columns))
            for i, name in enumerate(data["version"].values.tolist())
        )
        verdict = "survives" if self.survives else "does not survive"
        table = Table(
            "performance recovered",
            ("version", "loss (nats)", "accuracy", "loss recovered", "accuracy recovered"),
            rows,
            caption=f"{data.attrs['n']} scrubbed rows; the hypothesis {verdict}: {data.attrs['hypothesis']}",
        )
        alone = tuple(
            (name, float(data["alone"].values[i])) for i, name in enumerate(data["variable"].values.tolist())
        )
        return (table, Table("rows that no other row stands in for", ("variable", "share"), alone))


def run(model: Model, data: Hypothesis, config: Config | None = None) -> Result:
    """Scrub a hypothesis. Raises `InputError` where the network is no better on its own rows than on others: then
    nothing can be recovered."""
    config = config or Config()
    source = torch.Generator().manual_seed(config.seed)
    rows = torch.arange(len(data.tokens)).repeat(config.draws)
    with measure() as recorder:
        scrub = Scrub(model, data, data.values, source, recorder)
        dealt = {
            name: data.values[name][torch.randperm(len(data.tokens), generator=source)]
            for name in data.model.inner
        }
        control = Scrub(model, data, dealt, source, recorder)
        plain = model.run(data.tokens, logits=LogitSelection(places(data))).logits
        recorder.add(passes=1)
        assert plain is not None
        other = rows[torch.randperm(len(rows), generator=source)]
        logits = {
            "network": plain[rows],
            "scrubbed": scrub.logits(rows),
            "control": control.logits(rows),
            "random": plain[other],
        }
        alone = [scrub.alone(name) for name in data.model.inner]
    scores = np.array([_scores(data, one, rows) for one in logits.values()])
    whole, none = scores[0], scores[3]
    if whole[1] <= none[1]:
        raise InputError(
            f"the network answers {whole[1]:.3f} of its rows right, and {none[1]:.3f} by what it says of other rows; "
            "there is no behaviour to recover"
        )
    recovered = (scores - none) / (whole - none)
    arrays = {
        "loss": ("version", scores[:, 0]),
        "accuracy": ("version", scores[:, 1]),
        "recovered_loss": ("version", recovered[:, 0]),
        "recovered_accuracy": ("version", recovered[:, 1]),
        "alone": ("variable", np.array(alone)),
    }
    attributes = {
        "n": len(rows),
        "survives": bool(recovered[1, 1] >= config.least),
        "hypothesis": data.told(),
    }
    return Result.of(
        card,
        xr.Dataset(arrays, {"version": list(logits), "variable": list(data.model.inner)}, attributes),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        recorder.cost(),
    )


def recovered_accuracy(
    model: Model, hypothesis: Hypothesis, draws: int, seed: int, recorder: Recorder
) -> float:
    """The share of the accuracy that survives scrubbing, without controls; NaN where there is none to lose."""
    source = torch.Generator().manual_seed(seed)
    rows = torch.arange(len(hypothesis.tokens)).repeat(draws)
    plain = model.run(hypothesis.tokens, logits=LogitSelection(places(hypothesis))).logits
    recorder.add(passes=1)
    assert plain is not None
    other = rows[torch.randperm(len(rows), generator=source)]
    scrubbed = Scrub(model, hypothesis, hypothesis.values, source, recorder).logits(rows)
    whole, left, none = (_scores(hypothesis, one, rows)[1] for one in (plain[rows], scrubbed, plain[other]))
    return (left - none) / (whole - none) if whole > none else float("nan")


def _scores(
    hypothesis: Hypothesis, logits: Float[Tensor, "row place token"], rows: Tensor
) -> tuple[float, float]:
    """Loss in nats and share right, against what is due in these rows."""
    columns = places(hypothesis)
    due = hypothesis.answers[rows]
    hits = right(hypothesis.said(logits), due, columns)
    return float(entropy(hypothesis, logits, due[:, list(columns)])), float(hits.double().mean())
