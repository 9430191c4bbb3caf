"""Is there a behaviour to explain? How often a model, and a twin with shuffled weights, prefers the right answer."""

from collections.abc import Mapping
from typing import Any

from microtome.data import metrics
from microtome.data.pairs import Pairs
from microtome.models.model import Model
from microtome.models.random_twin import random_twin


def behaviour(model: Model, splits: Mapping[str, Pairs], seed: int) -> dict[str, Any]:
    """For each set of pairs: their number, and the answers of the model and of its twin."""
    twin = random_twin(model, seed)
    return {
        split: {"n": len(pairs)} | _answers(model, pairs) | {"twin": _answers(twin, pairs)}
        for split, pairs in splits.items()
    }


def not_done(found: dict[str, Any]) -> str:
    """Why there is no behaviour to explain, or nothing."""
    train = found["train"]
    if train["right"] <= 0.5:
        return f"the model does not do it: it prefers the right answer on {train['right']:.0%} of {train['n']} prompts"
    if train["clean"] <= train["corrupt"]:
        return "the corrupt prompts do not lower its preference for the answer, so there is no contrast to explain"
    return ""


def _answers(model: Model, pairs: Pairs) -> dict[str, float]:
    """How often the right answer is preferred to the wrong ones, and by how much, on clean and corrupt prompts."""
    metric = metrics.build(metrics.DEFAULT, pairs)
    clean = model.run(pairs.clean, metric=metric, mask=pairs.mask).metric
    corrupt = model.run(pairs.corrupt, metric=metric, mask=pairs.mask).metric
    assert clean is not None
    assert corrupt is not None
    return {
        "right": float((clean > 0).double().mean()),
        "clean": float(clean.double().mean()),
        "corrupt": float(corrupt.double().mean()),
    }
