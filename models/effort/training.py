"""Training a verifier: its weights, what a further draw is worth.

The second, which decides when to stop, comes from questions that the scorer in use was not trained
on (cross-fitting within the training data).

Shapes: R training rows (an answer among the first n of a question), F features, P random orders of
a question's answers, M answers per question, D = M - 1, B bins.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from models.effort.features import NAMES
from models.effort.labelled import LabelsError, Question
from models.effort.measure import drawn_in_order
from models.effort.verifier import Card, Curve, Scorer, Verifier, inputs, standardised

_FOLDS = 5
_BINS = 4
_LEAST_QUESTIONS = 50
_LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class Prefixes:
    """The first n answers of a question in one order, for each n.

    Attributes:
        x: per n, inputs [n, F]. correct_M: of the answers in that order.

    """

    x: tuple[Tensor, ...]
    correct_M: Tensor


@dataclass(frozen=True)
class Trail:
    """How choosing among ever more answers went, over all orders of all questions.

    Attributes:
        best_PM: probability of the chosen answer after n draws. right_PM: whether it is right.

    """

    best_PM: Tensor
    right_PM: Tensor


def train_verifier(
    questions: Sequence[Question],
    generator: torch.Generator,
    *,
    data_sha256: str = "",
    by_source: bool = False,
    orders: int = 3,
    decay: float = 0.01,
) -> Verifier:
    """Train a verifier.

    Args:
        questions: labelled answers, the same number to each. generator: of orders and folds.
        data_sha256: digest of their file, for the card.
        by_source: let it ask who wrote an answer.
        orders: of each question's answers; all their beginnings are trained on.
        decay: weight of half the squared weights, of standardised inputs, in the mean loss.

    Raises:
        LabelsError: too few questions, one answer to each, or only right or only wrong ones.

    """
    _check(questions)
    known = _sources(questions) if by_source else ()
    drawn = [prefixes(each, known, orders, generator) for each in questions]
    fold = torch.randperm(len(drawn), generator=generator) % _FOLDS
    trail = _cross_fitted(drawn, fold, decay)
    curve = fit_curve(trail)
    card = Card(
        features=NAMES, sources=known, most=trail.best_PM.shape[1],
        questions=len(questions), data_sha256=data_sha256,
    )  # fmt: skip
    return Verifier(card, _fit_prefixes(drawn, decay), curve)


def prefixes(
    question: Question, known: tuple[str, ...], orders: int, generator: torch.Generator
) -> list[Prefixes]:
    """Return the beginnings of a question's answers: in random orders, or source by source."""
    found = []
    for _ in range(1 if known else orders):
        answers = drawn_in_order(question, known, generator)
        x = tuple(
            inputs([a.read for a in answers[:n]], [a.source for a in answers[:n]], known)
            for n in range(1, len(answers) + 1)
        )
        correct_M = torch.tensor([a.correct for a in answers]).double()
        found.append(Prefixes(x, correct_M))
    return found


def fit(x_RF: Tensor, y_R: Tensor, decay: float) -> Scorer:
    """Return the scorer of least mean cross-entropy plus decay/2 |w|^2; the problem is convex."""
    mean_F, scale_F = x_RF.mean(0), x_RF.std(0).clamp(min=_LEAST_SCALE)
    z_RF = standardised(x_RF, mean_F, scale_F)
    weight_F = torch.zeros(x_RF.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight_F, bias], max_iter=200, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        fitted = binary_cross_entropy_with_logits(z_RF @ weight_F + bias, y_R)
        total = fitted + decay / 2 * weight_F.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call,unused-ignore]
    return Scorer(weight_F.detach(), bias.detach(), mean_F, scale_F)


def walk(scorer: Scorer, drawn: Sequence[Sequence[Prefixes]]) -> Trail:
    """Choose the likeliest answer after each number of draws."""
    each = [prefix for question in drawn for prefix in question]
    chosen = [[scorer(x_NF).max(0) for x_NF in prefix.x] for prefix in each]
    best_PM = torch.tensor([[float(pick.values) for pick in row] for row in chosen])
    at_PM = torch.tensor([[int(pick.indices) for pick in row] for row in chosen])
    right_PM = torch.stack([prefix.correct_M for prefix in each]).gather(1, at_PM)
    return Trail(best_PM.double(), right_PM)


def fit_curve(trail: Trail) -> Curve:
    """Return what further draws brought, by the best probability so far; bins of equal size."""
    levels = torch.linspace(0, 1, _BINS + 1, dtype=torch.float64)[1:-1]
    edge_DB = torch.quantile(trail.best_PM[:, :-1], levels, dim=0).T.contiguous()
    best_MP = trail.best_PM.T.contiguous()
    bins = [torch.bucketize(best_MP[n], edge_B) for n, edge_B in enumerate(edge_DB)]
    rows = [
        [_rate(trail.right_PM[bin_P == b], n) for b in range(_BINS)] for n, bin_P in enumerate(bins)
    ]
    return Curve(edge_DB, torch.tensor(rows, dtype=torch.float64).reshape(len(edge_DB), _BINS))


def _rate(right_PM: Tensor, n: int) -> float:
    """Mean gain per draw from n + 1 draws on, up to the best number of them."""
    if not len(right_PM):
        return 0.0
    gain_D = (right_PM[:, n + 1 :] - right_PM[:, n : n + 1]).mean(0)
    return max(0.0, float((gain_D / torch.arange(1, len(gain_D) + 1)).max()))


def _cross_fitted(drawn: Sequence[Sequence[Prefixes]], fold: Tensor, decay: float) -> Trail:
    trails = []
    for k in range(_FOLDS):
        kept = [each for each, f in zip(drawn, fold.tolist(), strict=True) if f != k]
        left = [each for each, f in zip(drawn, fold.tolist(), strict=True) if f == k]
        trails.append(walk(_fit_prefixes(kept, decay), left))
    return Trail(*(torch.cat([getattr(p, n) for p in trails]) for n in Trail.__dataclass_fields__))


def _fit_prefixes(drawn: Sequence[Sequence[Prefixes]], decay: float) -> Scorer:
    each = [prefix for question in drawn for prefix in question]
    x_RF = torch.cat([x for prefix in each for x in prefix.x])
    y_R = torch.cat([prefix.correct_M[: len(x)] for prefix in each for x in prefix.x])
    return fit(x_RF, y_R, decay)


def _sources(questions: Sequence[Question]) -> tuple[str, ...]:
    """Sources, the most often right first; of equal ones the first by name."""
    right: dict[str, list[bool]] = {}
    for answer in (answer for question in questions for answer in question.answers):
        right.setdefault(answer.source, []).append(answer.correct)
    return tuple(sorted(right, key=lambda name: (-sum(right[name]) / len(right[name]), name)))


def _check(questions: Sequence[Question]) -> None:
    if len(questions) < _LEAST_QUESTIONS:
        raise LabelsError(
            f"Expected at least {_LEAST_QUESTIONS} questions, got {len(questions)}. Label more."
        )
    if len(questions[0].answers) < 2:
        raise LabelsError("Expected at least 2 answers to a question, got 1. Label more of them.")
    if len({answer.correct for q in questions for answer in q.answers}) < 2:
        raise LabelsError("Expected right and wrong answers, got one kind. Label more of them.")
