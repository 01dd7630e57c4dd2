"""Membership inference: attack scores and how often they are right, with their uncertainty.

Scores are higher for "was trained on". Nothing here is a bound on epsilon: members and non-members
were not drawn by coins for the purpose, so these figures describe one model on one split.

Shapes: M members, N non-members, Z population, R reference models, X queries.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

from privacy.audit.one_run import AuditError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Proportion:
    """A count over a total, with its exact confidence interval.

    Attributes:
        low, high: Clopper and Pearson's limits (1934).

    """

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The observed proportion."""
        return self.count / self.total


@dataclass(frozen=True)
class TprAtFpr:
    """How many members an attack finds when it may accuse few others.

    Attributes:
        rate: the false-positive rate asked for.
        tpr: share of members that score above the threshold.
        fpr: share of non-members that do; at most `rate` as observed.
        is_measurable: False where there are fewer than `needed` non-members: the attack then had
            to make no false accusation at all, and its true rate may be far above `rate`.

    """

    rate: float
    tpr: Proportion
    fpr: Proportion
    is_measurable: bool
    needed: int


@dataclass(frozen=True)
class Auc:
    """Chance that a member scores above a non-member, ties counted half, with an interval."""

    value: float
    low: float
    high: float


def clopper_pearson(count: int, total: int, confidence: float) -> Proportion:
    """Exact two-sided confidence interval of a binomial proportion.

    Args:
        count: 0..total. total: >= 1. confidence: in (0, 1).

    """
    if not (0 <= count <= total and total >= 1 and 0 < confidence < 1):
        raise AuditError(
            f"Expected 0 <= count <= total, total >= 1 and a confidence in (0, 1), got {count}, "
            f"{total} and {confidence}."
        )
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, count, total - count + 1)) if count else 0.0
    high = float(beta.isf(tail, count + 1, total - count)) if count < total else 1.0
    return Proportion(count, total, low, high)


def tpr_at_fpr(member_M: Floats, other_N: Floats, rate: float, confidence: float) -> TprAtFpr:
    """Members above the lowest threshold that at most a share `rate` of non-members exceeds.

    Args:
        member_M, other_N: scores, none NaN. rate: in (0, 1). confidence: of each interval.

    Raises:
        AuditError: no scores, or NaN.

    """
    _check(member_M, other_N)
    if not 0 < rate < 1:
        raise AuditError(f"Expected a false-positive rate in (0, 1), got {rate}. Give 0.01.")
    allowed = math.floor(rate * len(other_N) + 1e-9)
    threshold = np.sort(other_N)[::-1][allowed]
    return TprAtFpr(
        rate=rate,
        tpr=clopper_pearson(int((member_M > threshold).sum()), len(member_M), confidence),
        fpr=clopper_pearson(int((other_N > threshold).sum()), len(other_N), confidence),
        is_measurable=allowed >= 1,
        needed=math.ceil(1 / rate - 1e-9),
    )


def auc(member_M: Floats, other_N: Floats, confidence: float) -> Auc:
    """Area under the attack's ROC curve, with the interval of DeLong et al. (1988).

    The interval rests on a normal approximation and is cut to [0, 1]; where every member scores
    above every other it has no width, which says nothing about other records.

    Raises:
        AuditError: fewer than 2 scores of a kind, or NaN.

    """
    _check(member_M, other_N)
    if min(len(member_M), len(other_N)) < 2:
        raise AuditError("Expected at least 2 members and 2 non-members, got fewer. Give more.")
    above_M = _share_below(member_M, other_N)
    above_N = 1 - _share_below(other_N, member_M)
    value = float(above_M.mean())
    variance = above_M.var(ddof=1) / len(above_M) + above_N.var(ddof=1) / len(above_N)
    width = float(norm.isf((1 - confidence) / 2) * math.sqrt(variance))
    return Auc(value, max(0.0, value - width), min(1.0, value + width))


def roc(member_M: Floats, other_N: Floats) -> tuple[Floats, Floats]:
    """The ROC curve's points (false-positive rates, true-positive rates), from (0, 0) to (1, 1)."""
    _check(member_M, other_N)
    thresholds = np.unique(np.concatenate([member_M, other_N]))[::-1]
    fpr = _share_at_least(other_N, thresholds)
    tpr = _share_at_least(member_M, thresholds)
    return np.concatenate([[0.0], fpr]), np.concatenate([[0.0], tpr])


def rmia_ratios(nats_X: Floats, reference_RX: Floats, offline_scale: float = 1.0) -> Floats:
    """Log of p(x | model) / p(x), with p(x) from reference models that never saw x.

    p(x) = ((1 + a) mean_R p_r(x) + (1 - a)) / 2; probabilities are per token, exp(-nats).

    Args:
        nats_X: mean nats per token under the audited model.
        reference_RX: under each reference.
        offline_scale: a in [0, 1], what training on x would do to p(x). For a language model,
            whose probabilities are far below 1, a < 1 would drown p_r(x): 1 leaves it as it is.

    Source: Zarifzadeh, Liu, Shokri 2024 (arXiv 2312.03262), equation 2 and appendix B.2.

    """
    if reference_RX.ndim != 2 or not len(reference_RX) or not 0 <= offline_scale <= 1:
        raise AuditError("Expected reference models and a scale in [0, 1]. Name a reference.")
    mean_X = np.exp(-reference_RX).mean(0)
    marginal_X = ((1 + offline_scale) * mean_X + (1 - offline_scale)) / 2
    ratio_X: Floats = -nats_X - np.log(np.maximum(marginal_X, 1e-300))
    return ratio_X


def rmia_scores(ratio_X: Floats, ratio_Z: Floats, gamma: float = 1.0) -> Floats:
    """Share of a population that each query dominates: P_z[ratio(x) / ratio(z) >= gamma].

    With one population for all queries the share only grows with ratio(x), so it ranks as ratio(x)
    does, but for ties; ratio(x) breaks them, which makes the attack a little stronger.

    Args:
        ratio_X, ratio_Z: logs, see `rmia_ratios`. gamma: >= 1.

    Source: Zarifzadeh et al. 2024, equations 1 and 4.

    """
    if not len(ratio_Z) or not gamma >= 1:
        raise AuditError("Expected a population and gamma >= 1. Give non-members.")
    limit_Z = np.sort(ratio_Z + math.log(gamma))
    share_X = np.searchsorted(limit_Z, ratio_X, side="right") / len(limit_Z)
    # A tie is broken by less than one member of the population weighs.
    rank_X = 0.5 + np.arctan(ratio_X) / math.pi
    score_X: Floats = share_X + rank_X / (2 * len(limit_Z))
    return score_X


def _share_below(score_M: Floats, other_N: Floats) -> Floats:
    """For each score, the share of the others below it, ties counted half."""
    ordered_N = np.sort(other_N)
    below = np.searchsorted(ordered_N, score_M, side="left")
    up_to = np.searchsorted(ordered_N, score_M, side="right")
    share_M: Floats = (below + up_to) / (2 * len(ordered_N))
    return share_M


def _share_at_least(score_N: Floats, thresholds: Floats) -> Floats:
    below = np.searchsorted(np.sort(score_N), thresholds, side="left")
    share: Floats = 1 - below / len(score_N)
    return share


def _check(member_M: Floats, other_N: Floats) -> None:
    if not len(member_M) or not len(other_N):
        raise AuditError("Expected members and non-members, got none of one kind. Give both.")
    if np.isnan(member_M).any() or np.isnan(other_N).any():
        raise AuditError("Expected a score for every record, got NaN. The audit is void.")
