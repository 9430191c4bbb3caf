"""Two networks whose true hypothesis is known, and for each five wrong ones, each wrong in one way.

The answers that a wrong hypothesis asks for stay those that are right: what it gets wrong is how they come about.
"""

from dataclasses import replace

from tests.causal.cases import compiled, trained

from microtome.data.causal_model import TOKENS, CausalModel, Values, Variable
from microtome.data.hypothesis import Hypothesis, Location


def about_the_trained_one() -> tuple[Hypothesis, dict[str, Hypothesis]]:
    """The sum of two digits modulo 7, each moved by a head of its own, added by an MLP."""
    true = trained("modular_sum").hypothesis

    def total(left: Values, right: Values, tokens: Values) -> Values:
        return (tokens[:, 1:2] + tokens[:, 3:4] + 0 * tokens) % 7

    honest = Variable("sum", ("left", "right", TOKENS), total)
    direct = Variable("sum", ("left", TOKENS), lambda left, tokens: (left + tokens[:, 3:4]) % 7)
    before = Variable("left", (TOKENS,), lambda tokens: tokens[:, :1].expand_as(tokens).clone())
    large = Variable("left", (TOKENS,), lambda tokens: (tokens[:, 1:2] > 3).long().expand_as(tokens).clone())
    return true, {
        "missing edge": otherwise(true.keeping(["left", "sum"]), direct),
        "wrong feature": otherwise(true, before, honest),
        "wrong node": true.at(left=Location("z.0.h0")),
        "swapped variables": true.at(left=Location("z.0.h2"), right=Location("z.0.h1")),
        "too coarse a feature": otherwise(true, large, honest),
    }


def about_the_compiled_one() -> tuple[Hypothesis, dict[str, Hypothesis]]:
    """Brackets of two kinds: the state of each, then the state of both."""
    whole = compiled("shuffle_dyck_2").hypothesis.rows(range(48))
    one, two, both = "state of ()", "state of []", "state with []"
    true = whole.keeping([one, two, both])
    values = whole.model.run
    honest = Variable(both, (one, two, TOKENS), lambda first, second, tokens: values(tokens)[both])
    direct = Variable(both, (one, TOKENS), lambda first, tokens: values(tokens)[both])
    depth = Variable(one, (TOKENS,), lambda tokens: values(tokens)["depth"])
    balanced = int(values(whole.tokens)[one][0, 2])
    coarse = Variable(one, (TOKENS,), lambda tokens: (values(tokens)[one] == balanced).long())
    places = true.locations
    return true, {
        "missing edge": otherwise(true.keeping([one, both]), direct),
        "wrong feature": otherwise(true, depth, honest),
        "wrong node": true.at(**{one: whole.locations["() below zero"]}),
        "swapped variables": true.at(**{one: places[two], two: places[one]}),
        "too coarse a feature": otherwise(true, coarse, honest),
    }


def otherwise(hypothesis: Hypothesis, *variables: Variable) -> Hypothesis:
    """The same hypothesis with some variables computed in another way."""
    named = {variable.name: variable for variable in variables}
    model = CausalModel(tuple(named.get(one.name, one) for one in hypothesis.model.variables))
    return replace(hypothesis, model=model)
