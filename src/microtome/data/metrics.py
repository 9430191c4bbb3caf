"""How strongly does a model prefer the right next token? A scalar of logits per example.

The default is the logit difference. What components write into the residual stream adds up in the logits, so a
logit difference (and, while no token dominates, a log-probability) shows each component's share. Probability does
not: far from one half it saturates, and a component that contributes as much as any other can seem to do nothing.

All metrics compute in float32 at least, whatever the dtype of the logits, and are differentiable except `Rank`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from microtome.core.errors import InputError
from microtome.core.logits import LogitSelection, Metric
from microtome.data.pairs import Pairs

TokenRows = tuple[tuple[int, ...], ...]
"""Token ids for each row; rows may differ in length."""

DEFAULT = "logit-difference"
IGNORED = -1
"""A target that `CrossEntropy` leaves out."""


def _widen(logits: Float[Tensor, "batch position token"], rows: int) -> Float[Tensor, "batch position token"]:
    if len(logits) != rows:
        raise InputError(
            f"expected logits for {rows} rows, got {len(logits)}; take the metric's `for_rows` of the batch at hand"
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _rectangle(rows: TokenRows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids `[row, slot]`, short rows filled with their first id, and which of them are real."""
    width = max(map(len, rows))
    ids = torch.tensor([row + row[:1] * (width - len(row)) for row in rows], device=device)
    real = torch.tensor([[slot < len(row) for slot in range(width)] for row in rows], device=device)
    return ids, real


def _require_answers(answers: TokenRows) -> None:
    if not answers or not all(answers):
        raise InputError("expected at least one answer token for each row, got none")


@dataclass(frozen=True)
class LogitDifference:
    """Mean logit of the answers minus mean logit of the wrong answers, at the last position.

    Unchanged when all logits shift together, additive in what components write. Raises `InputError` where a row
    has no wrong answer.
    """

    answers: TokenRows
    wrong: TokenRows
    name = DEFAULT

    def __post_init__(self) -> None:
        _require_answers(self.answers)
        if len(self.wrong) != len(self.answers) or not all(self.wrong):
            raise InputError(
                "a logit difference needs a wrong answer for each row; give some, or use log-probability"
            )

    @cached_property
    def needs(self) -> LogitSelection:
        both = [right + wrong for right, wrong in zip(self.answers, self.wrong, strict=True)]
        width = max(map(len, both))
        return LogitSelection((-1,), tuple(row + row[:1] * (width - len(row)) for row in both))

    def __call__(self, logits: Float[Tensor, "batch position token"]) -> Float[Tensor, " batch"]:
        values = _widen(logits, len(self.answers))[:, -1]
        weights = [
            [1 / len(right)] * len(right) + [-1 / len(wrong)] * len(wrong)
            for right, wrong in zip(self.answers, self.wrong, strict=True)
        ]
        padded = [row + [0.0] * (values.shape[-1] - len(row)) for row in weights]
        return (values * torch.tensor(padded, dtype=values.dtype, device=values.device)).sum(-1)

    def for_rows(self, rows: list[int]) -> "LogitDifference":
        return LogitDifference(tuple(self.answers[r] for r in rows), tuple(self.wrong[r] for r in rows))


@dataclass(frozen=True)
class LogProbability:
    """Log-probability of the answers together, in nats, at the last position. Needs the whole vocabulary."""

    answers: TokenRows
    name = "log-probability"

    def __post_init__(self) -> None:
        _require_answers(self.answers)

    @property
    def needs(self) -> LogitSelection:
        return LogitSelection((-1,))

    def __call__(self, logits: Float[Tensor, "batch position token"]) -> Float[Tensor, " batch"]:
        log_probabilities = _widen(logits, len(self.answers))[:, -1].log_softmax(-1)
        ids, real = _rectangle(self.answers, logits.device)
        return log_probabilities.gather(-1, ids).masked_fill(~real, -torch.inf).logsumexp(-1)

    def for_rows(self, rows: list[int]) -> "LogProbability":
        return LogProbability(tuple(self.answers[r] for r in rows))


@dataclass(frozen=True)
class Probability:
    """Probability of the answers together, at the last position.

    Misleads: it saturates. Near 0 and near 1, contributions that add up in the logits are invisible, and the
    component that happens to come last seems to do everything. To find components use the logit difference or
    the log-probability; use this to say how often the model would answer right.
    """

    answers: TokenRows
    name = "probability"

    def __post_init__(self) -> None:
        _require_answers(self.answers)

    @property
    def needs(self) -> LogitSelection:
        return LogitSelection((-1,))

    def __call__(self, logits: Float[Tensor, "batch position token"]) -> Float[Tensor, " batch"]:
        return LogProbability(self.answers)(logits).exp()

    def for_rows(self, rows: list[int]) -> "Probability":
        return Probability(tuple(self.answers[r] for r in rows))


@dataclass(frozen=True, eq=False)
class KL:
    """KL(reference ‖ model) in nats over the whole vocabulary, the mean over `positions`. Zero is agreement.

    reference: logits or log-probabilities, at `positions` in that order, of the run to compare with.
    """

    reference: Float[Tensor, "batch position token"]
    positions: tuple[int, ...] | None = (-1,)
    name = "kl"

    @property
    def needs(self) -> LogitSelection:
        return LogitSelection(self.positions)

    @cached_property
    def _known(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the reference: log-probabilities, probabilities, and which of them are zero."""
        widened = self.reference.detach().to(torch.promote_types(self.reference.dtype, torch.float32))
        found = widened.log_softmax(-1)
        return found, found.exp(), found == -torch.inf

    def __call__(self, logits: Float[Tensor, "batch position token"]) -> Float[Tensor, " batch"]:
        model = _widen(logits, len(self.reference)).log_softmax(-1)
        if model.shape != self.reference.shape:
            raise InputError(
                f"expected logits of the reference's shape {tuple(self.reference.shape)}, got "
                f"{tuple(model.shape)}"
            )
        reference, weights, absent = self._known
        terms = weights.to(model) * (reference.to(model) - model)
        return terms.masked_fill(absent.to(model.device), 0.0).sum(-1).mean(-1)

    def for_rows(self, rows: list[int]) -> "KL":
        return KL(self.reference[rows], self.positions)


@dataclass(frozen=True)
class Rank:
    """Rank of the best-placed answer among the whole vocabulary at the last position; 1 is the top.

    Tied tokens share the mean of their ranks. A count has no gradient: the result is cut off from the graph, and
    asking for a gradient through it is an error of torch.
    """

    answers: TokenRows
    name = "rank"

    def __post_init__(self) -> None:
        _require_answers(self.answers)

    @property
    def needs(self) -> LogitSelection:
        return LogitSelection((-1,))

    def __call__(self, logits: Float[Tensor, "batch position token"]) -> Float[Tensor, " batch"]:
        values = _widen(logits, len(self.answers)).detach()[:, -1]
        ids, real = _rectangle(self.answers, logits.device)
        best = values.gather(-1, ids).masked_fill(~real, -torch.inf).amax(-1, keepdim=True)
        above, equal = (values > best).sum(-1), (values == best).sum(-1)
        return 1 + above.to(values.dtype) + (equal.to(values.dtype) - 1) / 2

    def for_rows(self, rows: list[int]) -> "Rank":
        return Rank(tuple(self.answers[r] for r in rows))


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """Mean negative log-probability, in nats, of a target token at each position that has one.

    targets: ids for every column of the batch, padding included; `IGNORED` where nothing is asked.
    Raises `InputError` where a row has no target.
    """

    targets: Int[Tensor, "batch position"]
    name = "cross-entropy"

    def __post_init__(self) -> None:
        if not (self.targets != IGNORED).any(-1).all():
            raise InputError("expected at least one target token in each row, got a row without")

    @property
    def needs(self) -> LogitSelection:
        return LogitSelection(None)

    def __call__(self, logits: Float[Tensor, "batch position token"]) -> Float[Tensor, " batch"]:
        log_probabilities = _widen(logits, len(self.targets)).log_softmax(-1)
        if log_probabilities.shape[:2] != self.targets.shape:
            raise InputError(
                f"expected logits at all {self.targets.shape[1]} columns, got {log_probabilities.shape[1]}"
            )
        targets = self.targets.to(logits.device)
        asked = targets != IGNORED
        found = log_probabilities.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        return -found.masked_fill(~asked, 0.0).sum(-1) / asked.sum(-1)

    def for_rows(self, rows: list[int]) -> "CrossEntropy":
        return CrossEntropy(self.targets[rows])


def next_tokens(
    tokens: Int[Tensor, "batch position"], mask: Int[Tensor, "batch position"] | None = None
) -> Int[Tensor, "batch position"]:
    """The target of each position: the real token behind it, `IGNORED` where there is none."""
    real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
    targets = torch.full_like(tokens, IGNORED)
    targets[:, :-1] = tokens[:, 1:].masked_fill(~(real[:, 1:] & real[:, :-1]), IGNORED)
    return targets


def _cross_entropy(pairs: Pairs) -> CrossEntropy:
    """Over the clean prompts and, where a row has one answer, that answer after its last token."""
    targets = next_tokens(pairs.clean, pairs.mask)
    for row, answers in enumerate(pairs.answers):
        if len(answers) == 1:
            columns = range(pairs.clean.shape[1]) if pairs.mask is None else pairs.mask[row].nonzero()[:, 0]
            targets[row, int(columns[-1])] = answers[0]
    return CrossEntropy(targets)


_BUILDERS: dict[str, Callable[[Pairs], Metric]] = {
    LogitDifference.name: lambda pairs: LogitDifference(pairs.answers, pairs.wrong),
    LogProbability.name: lambda pairs: LogProbability(pairs.answers),
    Probability.name: lambda pairs: Probability(pairs.answers),
    Rank.name: lambda pairs: Rank(pairs.answers),
    CrossEntropy.name: _cross_entropy,
}


def names() -> tuple[str, ...]:
    """The names that `build` knows, the default first."""
    return (*_BUILDERS, KL.name)


def build(
    name: str | None, pairs: Pairs, reference: Float[Tensor, "batch position token"] | None = None
) -> Metric:
    """The metric of that name for these pairs; None is the default, the logit difference.

    reference: for `kl`, the logits `[batch, 1, vocabulary]` at the last position of the run to compare with.
    Raises `InputError` for an unknown name and for `kl` without a reference.
    """
    name = DEFAULT if name is None else name
    if name == KL.name:
        if reference is None:
            raise InputError("kl compares with a reference run; give its logits at the last position")
        return KL(reference)
    if name not in _BUILDERS:
        raise InputError(f"no metric is called {name!r}; there are {', '.join(names())}")
    return _BUILDERS[name](pairs)
