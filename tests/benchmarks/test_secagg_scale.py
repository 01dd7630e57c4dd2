"""Fitted growth against powers that are known, and what a small round's parties exchange."""

import math

import pytest

from benchmarks.secagg_scale import Growth, growth_rows, measure

SIZES = (10, 100, 1000)


def test_powers_are_found() -> None:
    assert Growth.of({n: 3.0 * n**2 for n in SIZES}).power == pytest.approx(2)
    assert Growth.of(dict.fromkeys(SIZES, 5.0)).power == pytest.approx(0)
    growth = Growth.of({n: 7.0 * n * math.log(n) for n in SIZES})
    assert growth.power == pytest.approx(growth.power_of_limit)
    assert 1.2 < growth.power_of_limit < 1.3


def test_rows_of_growth_leave_out_what_two_sizes_do_not_have() -> None:
    small, large = {("a", "B"): 1.0}, {("a", "B"): 10.0, ("b", "B"): 1.0}
    (row,) = growth_rows({10: small, 100: large})
    assert row.metric == "growth of B, a"
    assert row.value == pytest.approx(1)


@pytest.mark.parametrize(("nodes", "kinds"), [(12, 1), (60, 2)])
def test_what_a_round_exchanges(nodes: int, kinds: int) -> None:
    figures, details = measure(nodes, 2000)
    missing, holders = details["dropped"], details["committee"]
    assert missing == nodes // 10
    assert figures["node on the committee", "control messages"] == 6
    assert (("node", "control messages") in figures) == (kinds == 2)
    # A plan and an upload of everyone that stayed; four more of those on the committee.
    staying = nodes - missing
    total = figures["coordinator", "control messages"]
    assert 2 * staying + 4 * (holders - missing) <= total <= 2 * staying + 4 * holders
    assert all(value > 0 for value in figures.values())
