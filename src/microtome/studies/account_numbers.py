"""What are the four numbers of an account, and what stands behind them? Accuracy and length, mathematical and semantic.

Mathematical: what the circuit keeps of the behaviour on held-out prompts, beside random circuits of its size; how many
parts it has, and the bits it takes to name them. Semantic: how many predictions that follow from the descriptions came
true, beside the same predictions dealt to other parts; the words of the descriptions, and their bits.
"""

import math
from collections.abc import Sequence
from typing import Any

from microtome.evaluation import circuit_scores
from microtome.studies import sentences
from microtome.studies.measurements import Measured
from microtome.studies.predictions import Foretold, foretell, hits, shuffled_hits


def account_numbers(
    described: Sequence[Measured],
    tested: Sequence[Measured],
    told: Sequence[str],
    scores: circuit_scores.Result,
    count: int,
) -> dict[str, Any]:
    """All numbers of one task's account, as plain values.

    described, tested: each part on the prompts for finding, and on held-out ones. told: a sentence for each. scores: of
    the circuit, on held-out prompts. count: how many heads and MLPs the model has.
    """
    foretold = [one for m in described for one in foretell(m)]
    right, total = hits(foretold, tested)
    control_right, control_total = shuffled_hits(foretold, tested)
    words, bits = sentences.length(told)
    return {
        "nodes": [m.component for m in described],
        "sentences": list(told),
        "predictions": [_outcome(one, tested) for one in foretold],
        "mathematical_accuracy": scores.score("faithfulness"),
        "mathematical_interval": list(scores.interval("faithfulness")),
        "mathematical_length": len(described),
        "components": count,
        "mathematical_bits": math.log2(math.comb(count, len(described))),
        "semantic_accuracy": right / total,
        "semantic_hits": [right, total],
        "semantic_control": control_right / control_total if control_total else None,
        "semantic_length": words,
        "semantic_bits": bits,
        "random_circuits": float(scores.data["random"].sel(kind="resample").mean()),
        "random_best": float(scores.data["random"].sel(kind="resample").max()),
        "mean_ablation": scores.score("faithfulness", "mean"),
        "leftover": scores.score("leftover"),
        "sufficiency": scores.score("sufficiency"),
        "unexplained": max(0.0, 1.0 - scores.score("faithfulness")),
    }


def _outcome(one: Foretold, tested: Sequence[Measured]) -> dict[str, Any]:
    measured = next(m for m in tested if m.component == one.component)
    return {
        "component": one.component,
        "quantity": one.quantity,
        "low": one.low,
        "high": one.high,
        "value": one.value(measured),
        "hit": one.holds(measured),
    }
