"""One-run audit: how much privacy a mechanism cannot have, from guesses about its canaries.

Each canary is put in with probability 1/2, independently. An attacker sees the output once and
guesses of some canaries whether they are in. A mechanism that is (epsilon, delta)-DP per canary
allows only so many right guesses; more of them refute the claim.

Source: Steinke, Nasr, Jagielski 2023, "Privacy Auditing with One (1) Training Run"
(arXiv 2305.08846), theorem 5.2.

Shapes: M canaries.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

SHARES = (0.02, 0.05, 0.1, 0.3, 1.0)
"""Shares of the canaries that are guessed, those of the most extreme scores; all are tried."""

_LARGEST = 60.0


class AuditError(ValueError):
    """Guesses from which nothing can be concluded."""


@dataclass(frozen=True)
class Guesses:
    """What an attacker made of its scores.

    Attributes:
        canaries: m. guessed: r of them. correct: v of those.

    """

    canaries: int
    guessed: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.guessed <= self.canaries or self.canaries < 1:
            raise AuditError(
                f"Expected 0 <= correct <= guessed <= canaries, got {self.correct}, "
                f"{self.guessed}, {self.canaries}. Count each canary once."
            )


def p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Upper bound on the chance of so many right guesses under (epsilon, delta)-DP.

    beta + 2 m delta alpha, where beta = P[X >= v] and alpha = max_i P[v - i <= X < v] / i over
    i = 1..m, X ~ Binomial(r, e^epsilon / (e^epsilon + 1)).

    Source: theorem 5.2, as written out in appendix D of arXiv 2305.08846.

    """
    _check(delta)
    right = 1 / (1 + math.exp(-epsilon))
    r, v = guesses.guessed, guesses.correct
    beta = float(binom.sf(v - 1, r, right))
    back = np.arange(1, v + 1)
    at_most_back = np.cumsum(binom.pmf(v - back, r, right))
    alpha = float(np.max(at_most_back / back, initial=0.0))
    return min(1.0, beta + 2 * guesses.canaries * delta * alpha)


def epsilon_lower_bound(guesses: Guesses, delta: float, confidence: float) -> float:
    """The largest epsilon that the guesses refute at a confidence; 0 if they refute none.

    Args:
        guesses: fixed before looking at which canaries are in.
        delta: in [0, 1). confidence: in (0, 1), of this one statement.

    """
    _check(delta)
    if not 0 < confidence < 1:
        raise AuditError(f"Expected a confidence in (0, 1), got {confidence}. Give 0.95.")
    if p_value(guesses, 0.0, delta) >= 1 - confidence:
        return 0.0
    low, high = 0.0, _LARGEST
    while high - low > 1e-4:
        middle = (low + high) / 2
        if p_value(guesses, middle, delta) < 1 - confidence:
            low = middle
        else:
            high = middle
    return low


def audit_scores(
    score_M: NDArray[np.float64], included_M: NDArray[np.bool_], delta: float, confidence: float
) -> tuple[float, Guesses]:
    """Guess "in" for the highest scores and "out" for the lowest; return the best lower bound.

    Several numbers of guesses are tried; each gets its share of the error, so that the confidence
    holds for the best of them.

    Args:
        score_M: higher means rather in. included_M: the truth.

    Raises:
        AuditError: shapes that differ, fewer than 10 canaries, or scores that are NaN.

    """
    if score_M.shape != included_M.shape or score_M.ndim != 1 or len(score_M) < 10:
        raise AuditError(
            f"Expected scores and truth of at least 10 canaries, got shapes {score_M.shape} and "
            f"{included_M.shape}. Use more canaries."
        )
    if np.isnan(score_M).any():
        raise AuditError("Expected a score for every canary, got NaN. The audit is void.")
    order_M = np.argsort(score_M, kind="stable")
    each = 1 - (1 - confidence) / len(SHARES)
    found = []
    for share in SHARES:
        half = max(1, int(share * len(score_M)) // 2)
        right = included_M[order_M[-half:]].sum() + (~included_M[order_M[:half]]).sum()
        guesses = Guesses(len(score_M), 2 * half, int(right))
        found.append((epsilon_lower_bound(guesses, delta, each), guesses))
    return max(found, key=lambda pair: pair[0])


def most_that_can_show(canaries: int, delta: float, confidence: float) -> float:
    """The lower bound if every guess were right: no audit of so many canaries can show more."""
    included_M = np.arange(canaries) % 2 == 0
    return audit_scores(included_M.astype(np.float64), included_M, delta, confidence)[0]


def _check(delta: float) -> None:
    if not 0 <= delta < 1:
        raise AuditError(f"Expected delta in [0, 1), got {delta}. Give the claim's delta.")
