"""Degree, committee and quorum against exact arithmetic, scipy, and graphs that were drawn.

Symbols as in privacy/secagg/parameters.py: n, c, H, d, k, p, t, m, q.
"""

from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from math import comb, log2
from typing import Any

import numpy as np
import pytest
from scipy.stats import hypergeom

from privacy.secagg.graph import Shape, draw_groups
from privacy.secagg.parameters import (
    FAILURE,
    LARGEST_COMPLETE,
    LARGEST_EPOCH_TRIALS,
    LARGEST_EPOCHS,
    LARGEST_SHAPES,
    GraphParameters,
    ParameterError,
    check_parameters,
    choose_parameters,
    quorum_for,
)
from privacy.secagg.sparse_bounds import committee_quorum, graph_log2

SIZES = [(60, 6, 6), (100, 5, 20), (200, 20, 20), (500, 25, 50), (1000, 100, 100), (1000, 50, 10)]


def exactly(count: int, rate: Fraction, at_most: int) -> Fraction:
    """P[Bin(count, rate) <= at_most] in rational arithmetic."""
    return sum(
        (comb(count, x) * rate**x * (1 - rate) ** (count - x) for x in range(at_most + 1)),
        Fraction(0),
    )


def exact_bound(chosen: GraphParameters, n: int, c: int, d: int) -> Fraction:
    """The sum of `choose_parameters`, term by term, in rational arithmetic."""
    p, total = Fraction(chosen.degree, n - 1), Fraction(0)
    for s in range(1, (n - c) // 2 + 1):
        cut = exactly(n - c - s, 1 - (1 - p) ** s, d)
        inner = comb(s, 2)
        inward = sum(
            comb(inner, b)
            * p**b
            * (1 - p) ** (inner - b)
            * (1 - exactly(s * c, p, s * chosen.least_neighbours - 2 * b - 1))
            for b in range(inner + 1)
        )
        total += comb(n - c, s) * cut * inward
    return total


@pytest.mark.parametrize("degree", [6, 8, 10])
def test_the_bound_equals_rational_arithmetic(degree: int) -> None:
    chosen = GraphParameters(degree, 4, 0, 0)
    exact = exact_bound(chosen, 16, 2, 2)
    assert graph_log2(chosen, 16, 2, 2) == pytest.approx(log2(exact), abs=1e-9)


def falls_apart(graph: Any, honest: set[str], corrupt: set[str], missing: int, least: int) -> bool:
    """Whether some set of honest members can be cut off, by brute force over all of them."""
    for size in range(1, len(honest) // 2 + 1):
        for chosen in combinations(sorted(honest), size):
            inside = set(chosen)
            around = set().union(*(graph.neighbours[name] for name in inside)) & honest - inside
            if len(around) <= missing and all(
                len(graph.neighbours[name] & (inside | corrupt)) >= least for name in inside
            ):
                return True
    return False


def test_graphs_fall_apart_no_more_often_than_the_bound() -> None:
    names, draws = tuple(f"n{place}" for place in range(9)), 2_000
    honest, corrupt = set(names[2:]), set(names[:2])
    chosen = GraphParameters(5, 2, 9, 6)
    apart = sum(
        falls_apart(drawn, honest, corrupt, 1, 2)
        for draw in range(draws)
        for drawn in draw_groups(bytes([*divmod(draw, 256)]), names, Shape(1, 5, 9))
    )
    bound = 2 ** graph_log2(chosen, 9, 2, 1)
    assert bound / 5 < apart / draws < bound + 4 * np.sqrt(bound / draws)


@pytest.mark.parametrize(("n", "c", "d"), SIZES)
def test_what_is_chosen_keeps_the_bounds_and_less_does_not(n: int, c: int, d: int) -> None:
    chosen = choose_parameters(n, c, d)
    check_parameters(chosen, n, c, d)
    assert -graph_log2(chosen, n, c, d) >= 95
    for change in (
        {"degree": chosen.degree // 2, "least_neighbours": chosen.least_neighbours // 2},
        {"least_neighbours": chosen.least_neighbours // 2},
        {"quorum": chosen.quorum - 1},
        {"quorum": chosen.committee + 1},
        {"committee": chosen.committee + 2},
        {"degree": n - 1},
    ):
        with pytest.raises(ParameterError, match="Expected"):
            check_parameters(replace(chosen, **change), n, c, d)


@pytest.mark.parametrize(("n", "c", "d"), SIZES)
def test_a_committee_is_safe_and_lives(n: int, c: int, d: int) -> None:
    chosen = choose_parameters(n, c, d)
    m, q = chosen.committee, chosen.quorum
    assert hypergeom.sf(2 * q - m - 1, n, c, m) <= 2.0**-94  # 2q <= m + corrupt
    assert hypergeom.sf(m - q, n, d, m) <= 2.0**-20  # fewer than q are there
    assert committee_quorum(n, c, d, m - 1) is None


@pytest.mark.parametrize(("n", "c", "d"), SIZES)
def test_every_member_keeps_its_neighbours_if_members_drop_out_at_random(
    n: int, c: int, d: int
) -> None:
    """n P[Bin(n - 1 - d, p) < t] <= 2^-20, in rational arithmetic."""
    chosen = choose_parameters(n, c, d)
    rate = Fraction(chosen.degree, n - 1)
    assert n * exactly(n - 1 - d, rate, chosen.least_neighbours - 1) <= Fraction(1, 2**20)


@pytest.mark.parametrize("members", [60, 104, 720, 1000])
def test_every_trial_is_in_the_union(members: int) -> None:
    """Rosters, (round, attempt), and what a plan may ask for once its seed is known."""
    shapes = 0
    for groups in range(1, members // LARGEST_COMPLETE + 1):
        n = members // groups
        if n * groups == members and n > LARGEST_COMPLETE:
            shapes += groups * (n * n + n)  # (k, d) of each group's graph, m of its committee
    assert shapes < LARGEST_SHAPES
    assert LARGEST_EPOCHS * LARGEST_EPOCH_TRIALS * LARGEST_SHAPES * 2.0**-94 <= FAILURE


@pytest.mark.parametrize("degree", [60, 67, 80])
def test_more_neighbours_or_signers_than_the_least_fail_less_often(degree: int) -> None:
    """Under one graph the least t and q stand for all: shapes need not count those."""
    chosen = GraphParameters(degree, 25, 36, 31)
    logs = [graph_log2(replace(chosen, least_neighbours=t), 1000, 50, 10) for t in range(20, 30)]
    assert logs == sorted(logs, reverse=True)


@pytest.mark.parametrize("n", [3, 4, 12, LARGEST_COMPLETE])
def test_small_federations_have_a_complete_graph(n: int) -> None:
    chosen = choose_parameters(n, 1, 1)
    assert chosen == GraphParameters(n - 1, n - 2, n, quorum_for(n, 1))
    check_parameters(chosen, n, 1, 1)
    for change in ({"degree": n - 2}, {"committee": n - 1}, {"quorum": chosen.quorum - 1}):
        with pytest.raises(ParameterError, match="complete graph"):
            check_parameters(replace(chosen, **change), n, 1, 1)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 1, 0), "3 to 1000 members"),
        ((1001, 1, 0), "3 to 1000 members"),
        ((10, 0, 0), "at least one corrupt"),
        ((10, 4, 6), "Raise n_min"),
        ((10, 1, -1), "at least one corrupt"),
        ((1000, 400, 500), "below 2\\^-40"),
        ((100, 1, 60), "below 2\\^-40"),
    ],
)
def test_sizes_that_are_refused(sizes: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        choose_parameters(*sizes)


def test_a_complete_graph_is_not_to_be_had_for_many() -> None:
    """Its committee would be everyone; nobody is asked to seal a thousand packets by mistake."""
    with pytest.raises(ParameterError, match="below 60"):
        check_parameters(GraphParameters(59, 53, 60, 34), 60, 6, 6)
