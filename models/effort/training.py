"""Training a verifier: what it looks at, its weights, when drawing stops.

Every choice is made within the training data, by questions that the scorer in use was not fitted on
(cross-fitting): whoever measures a verifier on other questions measures these choices too.

Shapes: R training rows (an answer among the first n of a question), F features, P orders of a
question's answers over all questions, M answers per question, T levels that are tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, binary_cross_entropy_with_logits

from models.effort.features import ALONE, NAMES
from models.effort.labelled import LabelsError, Question
from models.effort.measure import drawn_in_order
from models.effort.verifier import Card, Scorer, Stopping, Verifier, inputs, standardised

_FOLDS = 5
_LEVELS = 101
_LEAST_QUESTIONS = 50
_LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class Plan:
    """One way of fitting.

    Attributes:
        content: look at what each answer says, beside who agrees with whom.
        decay: weight of half the squared weights, of standardised inputs, in the mean loss.

    """

    content: bool
    decay: float


PLANS = tuple(Plan(content, decay) for content in (False, True) for decay in (0.003, 0.01, 0.03))


@dataclass(frozen=True)
class Prefixes:
    """The first n answers of a question in one order, for each n.

    Attributes:
        x: per n, inputs [n, F]. correct_M: of the answers in that order. bytes_M: their lengths.

    """

    x: tuple[Tensor, ...]
    correct_M: Tensor
    bytes_M: Tensor


@dataclass(frozen=True)
class Trail:
    """How choosing among ever more answers went, over all orders of all questions.

    Attributes:
        best_PM: probability of the chosen answer after n draws. right_PM: whether it is right.
        bytes_PM: lengths of the n draws together. loss_P: mean cross-entropy of all rows.

    """

    best_PM: Tensor
    right_PM: Tensor
    bytes_PM: Tensor
    loss_P: Tensor


def train_verifier(
    questions: Sequence[Question],
    generator: torch.Generator,
    *,
    data_sha256: str = "",
    by_source: bool = False,
    auto_share: float = 0.6,
    orders: int = 3,
    plans: Sequence[Plan] = PLANS,
) -> Verifier:
    """Train a verifier by the plan of least cross-fitted loss.

    Args:
        questions: labelled answers, the same number to each. generator: of orders and folds.
        data_sha256: digest of their file, for the card.
        by_source: let it ask who wrote an answer.
        auto_share: most of the length of all answers that `--effort auto` may take on these
            questions, in (0, 1].
        orders: of each question's answers; all their beginnings are trained on.
        plans: that are tried, at least one.

    Raises:
        LabelsError: too few questions, one answer to each, only right or only wrong ones, or a
            share that is none.

    """
    _check(questions, auto_share)
    known = _sources(questions) if by_source else ()
    drawn = [prefixes(each, known, orders, generator) for each in questions]
    fold = torch.randperm(len(drawn), generator=generator) % _FOLDS
    trails = {plan: _cross_fitted(drawn, fold, plan) for plan in plans}
    plan = min(trails, key=lambda each: float(trails[each].loss_P.mean()))
    card = Card(
        features=NAMES, sources=known, most=len(questions[0].answers), content=plan.content,
        decay=plan.decay, stopping=fit_stopping(trails[plan], auto_share),
        questions=len(questions), data_sha256=data_sha256,
    )  # fmt: skip
    return Verifier(card, _fit_prefixes(drawn, plan))


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
        bytes_M = torch.tensor([len(a.text.encode()) for a in answers]).double()
        found.append(Prefixes(x, correct_M, bytes_M))
    return found


def fit(x_RF: Tensor, y_R: Tensor, decay: float, first: int = 0) -> Scorer:
    """Return the scorer of least mean cross-entropy plus decay/2 |w|^2; the problem is convex.

    Weights before the `first` stay 0.
    """
    mean_F, scale_F = x_RF.mean(0), x_RF.std(0).clamp(min=_LEAST_SCALE)
    z_RF = standardised(x_RF, mean_F, scale_F)
    z_RF[:, :first] = 0
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
    p_each = [[scorer(x_NF) for x_NF in prefix.x] for prefix in each]
    chosen = [[p_N.max(0) for p_N in row] for row in p_each]
    best_PM = torch.tensor([[float(pick.values) for pick in row] for row in chosen]).double()
    at_PM = torch.tensor([[int(pick.indices) for pick in row] for row in chosen])
    right_PM = torch.stack([prefix.correct_M for prefix in each]).gather(1, at_PM)
    bytes_PM = torch.stack([prefix.bytes_M for prefix in each]).cumsum(1)
    losses = [
        binary_cross_entropy(torch.cat(row), _labels(prefix))
        for row, prefix in zip(p_each, each, strict=True)
    ]
    return Trail(best_PM, right_PM, bytes_PM, torch.stack(losses))


def fit_stopping(trail: Trail, share: float) -> Stopping:
    """Return the rule that spends a share of all bytes: of both powers the one that is right more.

    Where the first answers alone exceed the share, it stops at once.
    """
    found = [_affordable(trail, power, share) for power in (0, 1)]
    return max(found, key=lambda rule: stopped(trail, rule)[0])


def stopped(trail: Trail, rule: Stopping) -> tuple[float, float]:
    """Return how often the choice is right under a rule, and its share of all bytes."""
    ends_PM = rule.worth(trail.best_PM) <= rule.level
    ends_PM[:, -1] = True
    at_P1 = ends_PM.double().argmax(1, keepdim=True)  # the first True
    drawn = trail.bytes_PM.gather(1, at_P1).sum() / trail.bytes_PM[:, -1].sum()
    return float(trail.right_PM.gather(1, at_P1).mean()), float(drawn)


def _affordable(trail: Trail, power: Literal[0, 1], share: float) -> Stopping:
    """Return the rule of least level, of hundredths of what was seen, within the share."""
    worth_PM = Stopping(power=power, level=0).worth(trail.best_PM[:, :-1])
    levels = torch.linspace(0, 1, _LEVELS, dtype=torch.float64)
    seen = torch.quantile(worth_PM.flatten(), levels).tolist()
    rules = [Stopping(power=power, level=level) for level in seen]
    return next((rule for rule in rules if stopped(trail, rule)[1] <= share), rules[-1])


def _labels(prefix: Prefixes) -> Tensor:
    return torch.cat([prefix.correct_M[: len(x)] for x in prefix.x])


def _cross_fitted(drawn: Sequence[Sequence[Prefixes]], fold: Tensor, plan: Plan) -> Trail:
    trails = []
    for k in range(_FOLDS):
        kept = [each for each, f in zip(drawn, fold.tolist(), strict=True) if f != k]
        left = [each for each, f in zip(drawn, fold.tolist(), strict=True) if f == k]
        trails.append(walk(_fit_prefixes(kept, plan), left))
    return Trail(*(torch.cat([getattr(p, n) for p in trails]) for n in Trail.__dataclass_fields__))


def _fit_prefixes(drawn: Sequence[Sequence[Prefixes]], plan: Plan) -> Scorer:
    each = [prefix for question in drawn for prefix in question]
    x_RF = torch.cat([x for prefix in each for x in prefix.x])
    y_R = torch.cat([_labels(prefix) for prefix in each])
    return fit(x_RF, y_R, plan.decay, 0 if plan.content else ALONE)


def _sources(questions: Sequence[Question]) -> tuple[str, ...]:
    """Sources, the most often right first; of equal ones the first by name."""
    right: dict[str, list[bool]] = {}
    for answer in (answer for question in questions for answer in question.answers):
        right.setdefault(answer.source, []).append(answer.correct)
    return tuple(sorted(right, key=lambda name: (-sum(right[name]) / len(right[name]), name)))


def _check(questions: Sequence[Question], auto_share: float) -> None:
    if not 0 < auto_share <= 1:
        raise LabelsError(f"Expected a share in (0, 1] for auto, got {auto_share}. Correct it.")
    if len(questions) < _LEAST_QUESTIONS:
        raise LabelsError(
            f"Expected at least {_LEAST_QUESTIONS} questions, got {len(questions)}. Label more."
        )
    if len(questions[0].answers) < 2:
        raise LabelsError("Expected at least 2 answers to a question, got 1. Label more of them.")
    if len({answer.correct for q in questions for answer in q.answers}) < 2:
        raise LabelsError("Expected right and wrong answers, got one kind. Label more of them.")
