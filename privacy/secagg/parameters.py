"""How sparse a masked sum's graph may be, and how large its committee.

Symbols: n members, c corrupt ones, H = n - c honest ones, d members that may be missing from the
sum, k the mean degree and p = k / (n - 1) the probability of an edge, t the least number of a
survivor's neighbours in the sum, m the committee's size, q its quorum.
"""

from dataclasses import dataclass

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


def failure_of(members: int) -> float:
    """Return the part of delta that is for a graph or a committee that fails, in groups of a size.

    Args:
        members: n of a group; up to 50 its graph is complete, and nothing is left to chance.

    """
    return FAILURE if members > LARGEST_COMPLETE else 0.0


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
    # scipy takes half a second to load, which complete graphs have no use for
    from privacy.secagg.sparse_bounds import choose_sparse  # noqa: PLC0415

    return choose_sparse(members, corrupt, dropout)


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
    from privacy.secagg.sparse_bounds import check_sparse  # noqa: PLC0415

    check_sparse(chosen, members, corrupt, dropout)


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
