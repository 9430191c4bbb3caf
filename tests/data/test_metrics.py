"""Metrics equal their definitions, ask for no more than they need, and show what adds up in the logits (R057)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection, Metric
from microtome.data import metrics
from microtome.data.metrics import KL, CrossEntropy, LogitDifference, LogProbability, Probability, Rank
from microtome.data.pairs import Pair, Pairs
from microtome.data.templates import AlignedPrompts

VOCABULARY = 12
ANSWERS = ((3,), (1, 4), (7,))
WRONG = ((5,), (2,), (0, 8, 9))


def _pairs(words: PreTrainedTokenizerBase, lengths: tuple[int, ...] = (4, 4, 4)) -> Pairs:
    made = [
        Pair(
            AlignedPrompts(tuple(range(length)), (9, *range(1, length)), {}, (), "a", "b"),
            ANSWERS[row],
            WRONG[row],
        )
        for row, length in enumerate(lengths)
    ]
    return Pairs.of(made, words)


def _select(logits: torch.Tensor, needs: LogitSelection) -> torch.Tensor:
    """What a model would return of `[batch, position, vocabulary]` for a selection, without padding."""
    if needs.positions is not None:
        logits = logits[:, list(needs.positions)]
    if needs.tokens is None:
        return logits
    rows = needs.tokens if needs.per_row else [needs.tokens] * len(logits)
    return torch.stack([logits[row][:, list(tokens)] for row, tokens in enumerate(rows)])  # type: ignore[arg-type]


def _all(pairs: Pairs) -> dict[str, Metric]:
    reference = torch.randn(len(pairs), 1, VOCABULARY)
    return {name: metrics.build(name, pairs, reference) for name in metrics.names()}


def test_the_default_is_the_logit_difference(words: PreTrainedTokenizerBase) -> None:
    pairs = _pairs(words)
    assert metrics.DEFAULT == "logit-difference"
    assert metrics.names()[0] == metrics.DEFAULT
    assert metrics.build(None, pairs) == LogitDifference(pairs.answers, pairs.wrong)


def _effects(metric: Metric, components: torch.Tensor, floor: torch.Tensor) -> torch.Tensor:
    """How the metric moves as one component after the other adds its logits `[component, token]`."""
    totals = torch.cat([torch.zeros(1, VOCABULARY), components.cumsum(0)]) + floor
    return torch.stack([metric(_select(total[None, None], metric.needs))[0] for total in totals]).diff()


def test_additive_contributions_show_in_the_default_and_not_in_probability(
    words: PreTrainedTokenizerBase,
) -> None:
    """R057. Three components each add five to the answer's logit, from a model that is sure of another token."""
    pairs = _pairs(words).rows([0])
    answer = pairs.answers[0][0]
    components = torch.zeros(3, VOCABULARY)
    components[:, answer] = 5.0
    floor = torch.zeros(VOCABULARY)
    floor[11] = 16.0

    torch.testing.assert_close(_effects(metrics.build(None, pairs), components, floor), torch.full((3,), 5.0))
    seen = _effects(metrics.build("log-probability", pairs), components, floor)
    assert (seen > 4.5).all()
    unseen = _effects(metrics.build("probability", pairs), components, floor)
    assert unseen[0] < 1e-4, "the first of three equal components seems to do nothing"
    assert unseen[2] > 1000 * unseen[0], "the last seems to do everything"

    ceiling = torch.zeros(VOCABULARY)
    ceiling[answer] = 12.0
    torch.testing.assert_close(
        _effects(metrics.build(None, pairs), components, ceiling), torch.full((3,), 5.0)
    )
    assert _effects(metrics.build("probability", pairs), components, ceiling).abs().max() < 1e-4


def test_each_metric_is_its_definition(words: PreTrainedTokenizerBase) -> None:
    pairs = _pairs(words)
    logits = torch.randn(3, 4, VOCABULARY, generator=torch.Generator().manual_seed(1))
    reference = torch.randn(3, 1, VOCABULARY)
    last = logits[:, -1].tolist()
    for row, (right, wrong) in enumerate(zip(ANSWERS, WRONG, strict=True)):
        value = last[row]
        total = math.fsum(map(math.exp, value))
        p = math.fsum(math.exp(value[t]) for t in right) / total
        q = torch.softmax(reference[row, 0], -1).tolist()
        targets = [1, 2, 3, *right] if len(right) == 1 else [1, 2, 3]
        surprise = [
            math.log(math.fsum(map(math.exp, logits[row, at].tolist()))) - logits[row, at, target].item()
            for at, target in enumerate(targets)
        ]
        expected = {
            "logit-difference": sum(value[t] for t in right) / len(right)
            - sum(value[t] for t in wrong) / len(wrong),
            "log-probability": math.log(p),
            "probability": p,
            "rank": 1 + sum(v > max(value[t] for t in right) for v in value),
            "kl": sum(b * (math.log(b) - v + math.log(total)) for b, v in zip(q, value, strict=True)),
            "cross-entropy": math.fsum(surprise) / len(surprise),
        }
        for name in metrics.names():
            metric = metrics.build(name, pairs, reference)
            assert metric.name == name
            found = metric(_select(logits, metric.needs))
            assert found.shape == (3,)
            assert found[row].item() == pytest.approx(expected[name], abs=1e-5), name


def test_only_what_is_needed_is_asked_for(words: PreTrainedTokenizerBase) -> None:
    for name, metric in _all(_pairs(words)).items():
        needs = metric.needs
        assert needs.positions == (None if name == "cross-entropy" else (-1,)), name
        if name == "logit-difference":
            assert needs.per_row
            assert [set(row) for row in needs.tokens] == [  # type: ignore[union-attr,arg-type]
                {*right, *wrong} for right, wrong in zip(ANSWERS, WRONG, strict=True)
            ]
            assert len({len(row) for row in needs.tokens}) == 1, "rows fit one tensor"  # type: ignore[union-attr,arg-type]
        else:
            assert needs.tokens is None, name


@given(rows=st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_for_rows_is_the_metric_of_those_rows(rows: list[int]) -> None:
    logits = torch.randn(3, 4, VOCABULARY, generator=torch.Generator().manual_seed(2))
    reference = torch.randn(3, 1, VOCABULARY, generator=torch.Generator().manual_seed(3))
    targets = torch.tensor([[1, 2, 3, 3], [1, 2, 3, -1], [-1, 2, -1, 7]])
    for metric in (
        LogitDifference(ANSWERS, WRONG), LogProbability(ANSWERS), Probability(ANSWERS), Rank(ANSWERS),
        KL(reference), CrossEntropy(targets),
    ):  # fmt: skip
        part = metric.for_rows(rows)
        whole = metric(_select(logits, metric.needs))
        torch.testing.assert_close(part(_select(logits[rows], part.needs)), whole[rows])
        with pytest.raises(InputError, match="expected logits for 3 rows, got 2"):
            metric(_select(logits, metric.needs)[:2])


def test_half_precision_is_widened_and_double_kept(words: PreTrainedTokenizerBase) -> None:
    logits = torch.randn(3, 4, VOCABULARY)
    for name, metric in _all(_pairs(words)).items():
        for given_dtype, expected in (
            (torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64, torch.float64),
        ):  # fmt: skip
            narrow = _select(logits.to(given_dtype), metric.needs)
            assert metric(narrow).dtype == expected, name
            torch.testing.assert_close(metric(narrow), metric(narrow.to(expected)), msg=name)


def test_all_but_the_rank_are_differentiable(words: PreTrainedTokenizerBase) -> None:
    for name, metric in _all(_pairs(words)).items():
        logits = torch.randn(3, 4, VOCABULARY, dtype=torch.float64, requires_grad=True)
        if name == "rank":
            assert not metric(_select(logits, metric.needs)).requires_grad
            continue
        assert torch.autograd.gradcheck(lambda x, m=metric: m(_select(x, m.needs)), (logits,)), name  # type: ignore[misc]


def test_a_common_shift_of_all_logits_changes_nothing(words: PreTrainedTokenizerBase) -> None:
    logits = torch.randn(3, 4, VOCABULARY, dtype=torch.float64)
    for name, metric in _all(_pairs(words)).items():
        torch.testing.assert_close(
            metric(_select(logits + 7.5, metric.needs)), metric(_select(logits, metric.needs)), msg=name
        )


def test_ties_share_the_mean_rank() -> None:
    logits = torch.tensor([[[2.0, 1.0, 1.0, 1.0, 0.0]], [[0.0] * 5], [[0.0, 1.0, 2.0, 3.0, 4.0]]])
    assert Rank(((1,), (4,), (0, 4)))(logits).tolist() == [3.0, 3.0, 1.0]


def test_kl_is_zero_on_agreement_and_takes_impossible_tokens() -> None:
    logits = torch.randn(2, 1, 6)
    torch.testing.assert_close(KL(logits)(logits + 3.0), torch.zeros(2), atol=1e-6, rtol=0)
    assert (KL(logits)(torch.randn(2, 1, 6)) > 0).all()
    torch.testing.assert_close(
        KL(logits.log_softmax(-1))(-logits), KL(logits)(-logits), msg="logits or log-probabilities"
    )
    certain = torch.tensor([[[0.0, -torch.inf, -torch.inf]]])
    uniform = torch.zeros(1, 1, 3, requires_grad=True)
    divergence = KL(certain)(uniform)
    torch.testing.assert_close(divergence.detach(), torch.tensor([math.log(3)]))
    (gradient,) = torch.autograd.grad(divergence.sum(), uniform)
    torch.testing.assert_close(gradient[0, 0], torch.tensor([1 / 3 - 1, 1 / 3, 1 / 3]))
    with pytest.raises(InputError, match=r"reference's shape \(2, 1, 6\), got \(2, 1, 5\)"):
        KL(logits)(torch.randn(2, 1, 5))


def test_cross_entropy_leaves_padding_out(words: PreTrainedTokenizerBase) -> None:
    short = _pairs(words, (3, 4, 4))
    metric = metrics.build("cross-entropy", short)
    logits = torch.randn(3, 4, VOCABULARY)
    other = logits.clone()
    other[0, 3] += torch.randn(VOCABULARY)
    torch.testing.assert_close(metric(other), metric(logits))
    other[0, 2] += torch.randn(VOCABULARY)
    assert metric(other)[0] != metric(logits)[0], "the answer follows the last real token"
    assert isinstance(metric, CrossEntropy)
    assert metric.targets.tolist() == [[1, 2, 3, -1], [1, 2, 3, -1], [1, 2, 3, 7]]


def test_targets_are_real_tokens_between_real_tokens() -> None:
    tokens = torch.tensor([[5, 6, 7, 0], [0, 5, 6, 7]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    assert metrics.next_tokens(tokens, mask).tolist() == [[6, 7, -1, -1], [-1, 6, 7, -1]]
    assert metrics.next_tokens(tokens).tolist() == [[6, 7, 0, -1], [5, 6, 7, -1]]


def test_what_a_metric_lacks_is_said(words: PreTrainedTokenizerBase) -> None:
    pairs = _pairs(words)
    with pytest.raises(InputError, match="no metric is called 'accuracy'; there are logit-difference, log"):
        metrics.build("accuracy", pairs)
    with pytest.raises(InputError, match="kl compares with a reference run"):
        metrics.build("kl", pairs)
    with pytest.raises(InputError, match="needs a wrong answer for each row"):
        LogitDifference(ANSWERS, (*WRONG[:2], ()))
    with pytest.raises(InputError, match="at least one answer token for each row"):
        LogProbability(())
    with pytest.raises(InputError, match="at least one target token in each row"):
        CrossEntropy(torch.full((1, 3), metrics.IGNORED))
    with pytest.raises(InputError, match="logits at all 4 columns, got 1"):
        metrics.build("cross-entropy", pairs)(torch.zeros(3, 1, VOCABULARY))
