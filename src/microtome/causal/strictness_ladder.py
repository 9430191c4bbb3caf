"""How strict a test does a hypothesis survive? One hypothesis, tried in four ways, with the worst case of each.

    rung                 what must hold
    behaviour            the causal model's answers are the network's on these inputs
    causal scrubbing     all that the hypothesis calls irrelevant is drawn anew, and the behaviour is left
    local consistency    every variable that is exchanged moves the next ones as it should
    causal abstraction   every variable and every set of them that is exchanged moves the answer as it should

The literature calls them stricter from top to bottom (Bereska and Gavves 2024). As done here they are not nested:
scrubbing alone tries the edges that a hypothesis leaves out, so a hypothesis may pass the last rung and fail the
second. Each rung is therefore told by itself. Reference: Chan et al. (2022); Beckers, Eberhardt and Halpern (2019);
Geiger et al. (2021). Misleads: a coarser hypothesis climbs higher and says less; a variable that changes no answer
cannot be exchanged to any effect, and is not tried (the notes say so).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import xarray as xr
from pydantic import Field

from microtome.causal import causal_scrubbing, interchange_interventions, locally_consistent_abstraction
from microtome.core import config as base
from microtome.core import result
from microtome.core.card import Card
from microtome.core.provenance import Provenance, model_hash
from microtome.core.shapes import Shape, Table
from microtome.data.hypothesis import Hypothesis
from microtome.models.model import Model
from microtome.models.random_twin import How

card = Card(
    name="strictness_ladder",
    title="Strictness ladder",
    question="Which of the tests of causal hypotheses does this one pass, and which not?",
    steps=(
        "Compare the causal model's answers with the network's.",
        "Scrub the hypothesis; exchange every variable and look one step on; exchange sets and look at the answer.",
        "Tell the worst case of each test, beside the same in random weights.",
    ),
    reference="Bereska and Gavves 2024, for the ladder; Chan et al. 2022; Beckers et al. 2019; Geiger et al. 2021",
    misleads="A coarser hypothesis climbs higher and says less; and the rungs are not nested in general.",
    needs="hypothesis",
    causal="intervention",
    locality="global",
    comprehensiveness="comprehensive",
)
RUNGS: Final = ("behaviour", "causal scrubbing", "local consistency", "causal abstraction")


class Config(base.Config):
    """How much is tried, and what passes."""

    least: float = Field(0.95, gt=0, le=1, description="Share that must agree in the worst case.")
    pairs: int = Field(64, ge=2, description="Base rows of each exchange.")
    largest: int = Field(2, ge=1, description="Most variables exchanged at once.")
    draws: int = Field(4, ge=1, description="How often every row is scrubbed.")
    twin: How = Field("drawn", description="How the control's weights are made: drawn or shuffled.")
    seed: base.Seed = Field(0, description="Seed of all that is drawn.")


@dataclass(frozen=True, eq=False)
class Result(result.Result):
    """`worst [rung]`: the least share, of what `where [rung]` says; `control [rung]`: the same share there in random
    weights, of scrubbing with the values dealt out anew, NaN for behaviour. `n [rung]`: of how many rows.
    """

    @property
    def passed(self) -> tuple[str, ...]:
        """The rungs that the hypothesis passes."""
        kept = self.data["worst"].values >= self.config["least"]
        return tuple(self.data["rung"].values[kept].tolist())

    def shapes(self) -> tuple[Shape, ...]:
        data = self.data
        rows = tuple(
            (
                name,
                name in self.passed,
                float(data["worst"].values[i]),
                data["where"].values[i].item(),
                float(data["control"].values[i]),
                int(data["n"].values[i]),
            )
            for i, name in enumerate(data["rung"].values.tolist())
        )
        caption = f"passes with {self.config['least']:g} in the worst case: {data.attrs['hypothesis']}"
        columns = ("test", "passes", "worst share", "of", "control", "rows")
        return (Table("how strict a test it passes", columns, rows, caption=caption),)


def run(model: Model, data: Hypothesis, config: Config | None = None) -> Result:
    """Try every rung. Raises what the tests raise: `InputError` or `SiteError` for what does not fit the network."""
    config = config or Config()
    scrubbed = causal_scrubbing.run(
        model, data, causal_scrubbing.Config(draws=config.draws, least=config.least, seed=config.seed)
    )
    shared = {"pairs": config.pairs, "twin": config.twin, "seed": config.seed}
    local = locally_consistent_abstraction.run(
        model, data, locally_consistent_abstraction.Config.read(shared)
    )
    whole = interchange_interventions.run(
        model, data, interchange_interventions.Config.read({**shared, "largest": config.largest, "listed": 0})
    )
    step, exchange = (
        _least(local.data["agreement_changed"].values),
        _least(whole.data["accuracy_changed"].values),
    )
    parent, child = (local.data[name].values[step].item() for name in ("parent", "child"))
    recovered = scrubbed.data["recovered_accuracy"].values
    rows = [
        (whole.data.attrs["by_itself"], "all rows", np.nan, whole.data.attrs["rows"]),
        (recovered[1], "accuracy recovered", recovered[2], scrubbed.data.attrs["n"]),
        (
            local.data["agreement_changed"].values[step],
            f"{parent} to {child}",
            local.data["twin_changed"].values[step],
            local.data["n_changed"].values[step],
        ),
        (
            whole.data["accuracy_changed"].values[exchange],
            whole.data["exchange"].values[exchange].item(),
            whole.data["twin_changed"].values[exchange],
            whole.data["n_changed"].values[exchange],
        ),
    ]
    arrays = {
        "worst": ("rung", np.array([row[0] for row in rows], dtype=np.float64)),
        "where": ("rung", np.array([row[1] for row in rows], dtype=str)),
        "control": ("rung", np.array([row[2] for row in rows], dtype=np.float64)),
        "n": ("rung", np.array([row[3] for row in rows], dtype=np.int64)),
    }
    return Result.of(
        card,
        xr.Dataset(arrays, {"rung": list(RUNGS)}, {"hypothesis": data.told()}),
        config,
        Provenance(model.name, model_hash(model.module.state_dict()), data.hash),
        scrubbed.cost + local.cost + whole.cost,
        dict.fromkeys([*local.notes[:-1], *whole.notes[:-1]]),
    )


def _least(values: np.ndarray) -> int:
    """Where the smallest share is; shares of nothing are not looked at."""
    return int(np.nanargmin(values)) if np.isfinite(values).any() else 0
