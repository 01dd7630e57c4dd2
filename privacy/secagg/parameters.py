"""How sparse a masked sum's graph may be, and how large its committee: failure bounds and a choice.

Symbols: n members, c corrupt ones, H = n - c honest ones, d members that may be missing from the
sum, k the mean degree and p = k / (n - 1) the probability of an edge, t the least number of a
survivor's neighbours in the sum, m the committee's size, q its quorum.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp, rel_entr, xlogy
from scipy.stats import binom

LARGEST_COMPLETE = 50
LARGEST_SPARSE = 1_000
SMALLEST_COHORT = 3
LARGEST_EPOCHS = 1 << 16
"""Rosters that a node reveals a nonce for in its life; it counts them on disk."""
LARGEST_EPOCH_TRIALS = 1 << 16
"""Seeds of one epoch: one for each permitted (round, attempt)."""
LARGEST_SHAPES = 1 << 22
"""Failures that a plan can ask for under one seed: see `choose_parameters`."""

FAILURE = 2.0**-40
"""Bound on the probability that privacy of any sum fails over all permitted trials."""
_TRIAL_BITS = 94  # 40, 16 for epochs, 16 for rounds and attempts, 22 for shapes
_LIVENESS_BITS = 20
# Float arithmetic on tails: the true bound is within a factor of two of the computed one.
_SLACK_BITS = 1
_SMALLEST_LOG = -700.0  # exp() of less is lost in float64: taken to be no smaller
_LARGEST_GROUP = 60  # beyond, cuts alone are improbable enough


class ParameterError(ValueError):
    """A federation for which no graph and committee keep the bound."""


@dataclass(frozen=True)
class GraphParameters:
    """What a plan fixes about who masks with whom.

    Attributes:
        degree: k, mean number of neighbours; n - 1 for the complete graph.
        least_neighbours: t, neighbours in the sum that every survivor must have.
        committee: m, members that hold shares.
        quorum: q, signatures on one survivor set, and Shamir's threshold.

    """

    degree: int
    least_neighbours: int
    committee: int
    quorum: int


def quorum_for(committee: int, colluders: int) -> int:
    """Return q = floor((m + c) / 2) + 1, the least quorum with 2q > m + c.

    Formal guarantee: two sets of q signers share more than c members, so at least one honest
    member, who signs one survivor set only; hence at most one set per plan is ever certified.
    """
    return (committee + colluders) // 2 + 1


def complete_parameters(
    members: int, corrupt: int, dropout: int, pinned: int = 0
) -> GraphParameters:
    """Return those of the complete graph with everyone on the committee.

    The quorum is that of all `pinned` members, whatever the roster: of any two sums of a federation
    an honest member signed both. It uploaded before, and so was shown the coordinator's ledger.
    """
    quorum = quorum_for(max(members, pinned), corrupt)
    return GraphParameters(members - 1, members - dropout - 1, members, quorum)


def smallest_roster(members: int, corrupt: int) -> int:
    """Return how many of the pinned members an epoch must have: a quorum of all, at least 3.

    Args:
        members: pinned ones, n.
        corrupt: c, members that may conspire with the coordinator.

    """
    return max(SMALLEST_COHORT, quorum_for(members, corrupt))


def choose_parameters(members: int, corrupt: int, dropout: int, pinned: int = 0) -> GraphParameters:
    """Choose the smallest degree and committee that keep the bound.

    Up to 50 members: the complete graph, all on the committee. Above: a random graph in which each
    pair is joined with probability p = k / (n - 1), and m members at random as the committee.

    Privacy of a sum fails if the honest survivors fall apart into sets S and R that share no edge,
    for then the sum over S comes apart from the sum over R. The coordinator chooses who is missing
    after it saw the graph; who is corrupt was fixed before. It needs at most d honest neighbours of
    S outside of S (all of them missing), and t neighbours of each member of S among S and the
    corrupt. These are different edges, hence independent; with s = |S| <= H / 2:

        P(graph) <= sum_s C(H, s) P[Bin(H - s, 1 - (1 - p)^s) <= d]
                    P[Bin(s c, p) + 2 Bin(s (s - 1) / 2, p) >= s t]

    (the last factor counted for s < 60 only). It fails too if more than c' of the committee are
    corrupt, where 2q > m + c': a hypergeometric tail, computed in integers. Each is at most 2^-94,
    for a union over 2^16 rosters, 2^16 rounds and attempts of each, and 2^22 shapes: 2^-40 in all.

    Shapes are counted because a coordinator knows the seed when it writes a plan. It may divide N
    members into g groups of n = N / g > 50 each, and chooses k < n and d < n; a larger t or q than
    the least that the bound allows makes failure rarer under the same graph. Over the g <= 19 there
    are at most sum_g g (N / g)^2 < 3.6 N^2 failures of a graph and 19 N of a committee: < 2^22.

    t, and q <= m - d', are such that d members missing at random stop an attempt with probability
    at most 2^-20 each; whether an attempt succeeds is not a matter of privacy.

    Args:
        members: n, 3 to 1,000.
        corrupt: c >= 1, members that may conspire with the coordinator; static.
        dropout: d >= 0, members that may be missing: n - n_min.
        pinned: members of the federation where they are one group; see `complete_parameters`.

    Returns:
        The parameters.

    Raises:
        ParameterError: sizes out of range, or no graph or committee that keeps the bound.

    """
    _check_sizes(members, corrupt, dropout)
    if members <= LARGEST_COMPLETE:
        return complete_parameters(members, corrupt, dropout, pinned)
    return _choose_sparse(members, corrupt, dropout)


@lru_cache(maxsize=64)
def _choose_sparse(members: int, corrupt: int, dropout: int) -> GraphParameters:
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


def check_parameters(
    chosen: GraphParameters, members: int, corrupt: int, dropout: int, pinned: int = 0
) -> None:
    """Check what a plan proposes against the bounds that `choose_parameters` states.

    Raises:
        ParameterError: the message says which bound is not kept.

    """
    _check_sizes(members, corrupt, dropout)
    if members <= LARGEST_COMPLETE:
        wanted = complete_parameters(members, corrupt, dropout, pinned)
        if chosen != wanted:
            raise ParameterError(
                f"Expected {wanted}, the complete graph and the quorum of "
                f"{max(members, pinned)} pinned members, got {chosen}."
            )
        return
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


def _check_sizes(members: int, corrupt: int, dropout: int) -> None:
    if not SMALLEST_COHORT <= members <= LARGEST_SPARSE:
        raise ParameterError(
            f"Expected {SMALLEST_COHORT} to {LARGEST_SPARSE} members, got {members}. Below, a sum "
            "tells the others too much; above, no bound was computed."
        )
    if corrupt < 1 or dropout < 0 or members - dropout <= corrupt:
        raise ParameterError(
            f"Expected at least one corrupt member, and fewer than the {members - dropout} that a "
            f"sum is over, got {corrupt}. Raise n_min."
        )
