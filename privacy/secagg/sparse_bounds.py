"""Bounds on how often a random graph or its committee fails, and the smallest that keep them.

Symbols as in privacy/secagg/parameters.py: n, c, H, d, k, p, t, m, q; `choose_parameters` there
states the bounds. Shapes: S sizes of a set of honest survivors.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp, rel_entr, xlogy
from scipy.stats import binom

from privacy.secagg.parameters import (
    SMALLEST_COHORT,
    GraphParameters,
    ParameterError,
    quorum_for,
)

_TRIAL_BITS = 94  # 40, 16 for epochs, 16 for rounds and attempts, 22 for shapes
_LIVENESS_BITS = 20
# Float arithmetic on tails: the true bound is within a factor of two of the computed one.
_SLACK_BITS = 1
_SMALLEST_LOG = -700.0  # exp() of less is lost in float64: taken to be no smaller
_LARGEST_GROUP = 60  # beyond, cuts alone are improbable enough


@lru_cache(maxsize=64)
def choose_sparse(members: int, corrupt: int, dropout: int) -> GraphParameters:
    """Choose the smallest degree and committee of more than 50 members.

    Raises:
        ParameterError: no graph or committee keeps the bound.

    """
    degree = _least(range(8, members - 1), lambda k: _graph_holds(members, corrupt, dropout, k))
    committee = _least(
        range(SMALLEST_COHORT, members + 1),
        lambda m: committee_quorum(members, corrupt, dropout, m) is not None,
    )
    quorum = committee and committee_quorum(members, corrupt, dropout, committee)
    if degree is None or not committee or not quorum:
        raise ParameterError(
            f"Expected numbers for which privacy fails with probability below 2^-40, got "
            f"{members} members, {corrupt} corrupt, {dropout} missing. Raise n_min or pin fewer "
            "members that may conspire; up to 50 members the graph is complete."
        )
    return GraphParameters(degree, _least_neighbours(members, dropout, degree), committee, quorum)


def check_sparse(chosen: GraphParameters, members: int, corrupt: int, dropout: int) -> None:
    """Check a proposal for more than 50 members.

    Raises:
        ParameterError: the message says which bound is not kept.

    """
    if not (1 <= chosen.degree < members - 1 and 1 <= chosen.committee <= members):
        raise ParameterError(f"Expected a degree and a committee below {members}, got {chosen}.")
    bits = -graph_log2(chosen, members, corrupt, dropout)
    if bits < _TRIAL_BITS + _SLACK_BITS:
        raise ParameterError(
            f"Expected a graph that fails with at most 2^-{_TRIAL_BITS}, got 2^-{bits:.1f} for "
            f"{chosen}. Raise the degree or the least number of neighbours."
        )
    tolerated = _corrupt_in_committee(members, corrupt, chosen.committee)
    if not 2 * chosen.quorum > chosen.committee + tolerated or chosen.quorum > chosen.committee:
        raise ParameterError(
            f"Expected 2 * quorum > committee + {tolerated}, of whom at most 2^-{_TRIAL_BITS} says "
            f"more are corrupt, got {chosen}. Raise the quorum or the committee."
        )


def graph_log2(chosen: GraphParameters, members: int, corrupt: int, dropout: int) -> float:
    """Return log2 of the bound P(graph) of `choose_parameters`."""
    honest, p = members - corrupt, chosen.degree / (members - 1)
    sizes_S = np.arange(1, honest // 2 + 1)
    logs_S = _log_choose(honest, sizes_S) + _log_cut(honest - sizes_S, sizes_S, dropout, p)
    near = sizes_S < _LARGEST_GROUP
    logs_S[near] += [_log_inward(s, corrupt, chosen.least_neighbours, p) for s in sizes_S[near]]
    return float(logsumexp(logs_S) / np.log(2))


def committee_quorum(members: int, corrupt: int, dropout: int, committee: int) -> int | None:
    """Return the quorum of a committee of this size, or None where there is none that lives."""
    quorum = quorum_for(committee, _corrupt_in_committee(members, corrupt, committee))
    missing = _most_in_committee(members, dropout, committee, _LIVENESS_BITS)
    return quorum if quorum <= committee - missing else None


def _corrupt_in_committee(members: int, corrupt: int, committee: int) -> int:
    return _most_in_committee(members, corrupt, committee, _TRIAL_BITS)


@lru_cache(maxsize=4096)
def _most_in_committee(members: int, marked: int, committee: int, bits: int) -> int:
    """The least x with P[Hypergeometric(n, marked, m) > x] <= 2^-bits, in integers."""
    most = min(marked, committee)
    ways = [comb(marked, x) * comb(members - marked, committee - x) for x in range(most, 0, -1)]
    rarest = sum(tail << bits <= comb(members, committee) for tail in accumulate(ways))
    return most - rarest


def _graph_holds(members: int, corrupt: int, dropout: int, degree: int) -> bool:
    neighbours = _least_neighbours(members, dropout, degree)
    chosen = GraphParameters(degree, neighbours, 0, 0)
    return neighbours >= 1 and -graph_log2(chosen, members, corrupt, dropout) >= (
        _TRIAL_BITS + _SLACK_BITS
    )


def _least_neighbours(members: int, dropout: int, degree: int) -> int:
    """The largest t that all n members reach, d of them gone at random, but for 2^-20."""
    rate = degree / (members - 1)
    return int(binom.ppf(2.0**-_LIVENESS_BITS / members, members - 1 - dropout, rate))


def _log_cut(
    others_S: NDArray[np.int64], sizes_S: NDArray[np.int64], dropout: int, p: float
) -> NDArray[np.float64]:
    """Log of P[Bin(H - s, 1 - (1 - p)^s) <= d]; Chernoff's bound where float64 has no such tail."""
    log_unreached_S = sizes_S * np.log1p(-p)
    reached_S = -np.expm1(log_unreached_S)
    share_S = dropout / others_S
    with np.errstate(divide="ignore", invalid="ignore"):
        exact_S = np.log(binom.cdf(dropout, others_S, reached_S))
    chernoff_S = others_S * (
        -rel_entr(share_S, reached_S)
        - xlogy(1 - share_S, 1 - share_S)
        + (1 - share_S) * log_unreached_S
    )
    logs_S: NDArray[np.float64] = np.where(exact_S > _SMALLEST_LOG, exact_S, chernoff_S)
    return logs_S


def _log_inward(size: int, corrupt: int, least: int, p: float) -> float:
    """Log of P[Bin(s c, p) + 2 Bin(s (s - 1) / 2, p) >= s t]."""
    inner = np.arange(size * (size - 1) // 2 + 1)
    outer = binom.sf(size * least - 2 * inner - 1, size * corrupt, p)
    with np.errstate(divide="ignore"):
        logs = np.maximum(np.log(outer), _SMALLEST_LOG)
    return float(logsumexp(binom.logpmf(inner, inner[-1], p) + logs))


def _log_choose(n: int, k: NDArray[np.int64]) -> NDArray[np.float64]:
    logs: NDArray[np.float64] = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return logs


def _least(candidates: range, holds: Callable[[int], bool]) -> int | None:
    """By bisection, a candidate that holds; the least one if all above it hold."""
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        if holds(candidates[middle]):
            high = middle
        else:
            low = middle + 1
    return candidates[high] if high < len(candidates) else None
