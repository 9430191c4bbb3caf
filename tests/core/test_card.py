"""A card says everything, in allowed words, or is refused."""

from copy import copy
from dataclasses import replace
from typing import Any

import pytest
import weight_norms

from microtome.core.card import Card
from microtome.core.errors import PluginError

CARD = weight_norms.card


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"question": ""}, "question empty"),
        ({"steps": ()}, "steps empty"),
        ({"misleads": "", "reference": ""}, "reference, misleads empty"),
        ({"steps": "one string"}, "one string"),
        ({"needs": "money"}, "pairs, tokens, weights"),
        ({"causal": "magic"}, "observation, intervention"),
        ({"phase": "after"}, "post-hoc, during, pre"),
        ({"locality": "near"}, "local, global, both"),
        ({"comprehensiveness": "whole"}, "partial, comprehensive, both"),
        ({"name": "Weight norms"}, "not a file's name"),
    ],
)
def test_a_card_that_says_too_little_is_refused(change: dict[str, Any], told: str) -> None:
    card = copy(CARD)
    for name, value in change.items():
        object.__setattr__(card, name, value)  # past the types that are checked while tests run
    with pytest.raises(PluginError, match=told):
        card.__post_init__()


def test_scope_says_the_whole_taxonomy() -> None:
    both = replace(CARD, causal="intervention", phase="during", locality="both", comprehensiveness="both")
    assert both.scope == "intervention, during, local or global, partial or comprehensive"
    assert CARD.scope == "observation, post-hoc, global, partial"
    assert isinstance(CARD, Card)
