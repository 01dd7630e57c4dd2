"""Any members may leave at any phase: the sum is exact or the round aborts, never wrong.

Complete graphs of 3 to 12 members, groups, and a sparse graph of 60. Every member has a vector of
its own in every round, so that one counted twice, left out or left masked shows. Whether a schedule
opens is computed here, apart from the protocol: who is there, and how many are needed.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.secagg.aborts import AbortCode, SecAggAbort
from privacy.secagg.coordinator import OpenedSum, StreamingSum
from privacy.secagg.parameters import complete_parameters
from tests.secagg.conftest import Federation, build

Leaving = tuple[Collection[str], Collection[str], Collection[str]]
"""Members gone before they upload, before they sign, before they unmask."""


def attempt(federation: Federation, plan: Any, group: int, leaving: Leaving) -> OpenedSum:
    """One group's attempt; those who left do not come back."""
    total = StreamingSum(plan, federation.roster, group)
    for name in total.group.members:
        if name not in leaving[0]:
            total.add(*federation.upload(name, plan))
    gone = set(leaving[0]) | set(leaving[1])
    headers = total.close().headers
    signers = [name for name in total.committee if name not in gone]
    total.certify([federation.nodes[name].sign_survivors(plan, headers) for name in signers])
    replies = [
        federation.nodes[name].unmask(plan, total.unmask_request(name))
        for name in signers
        if name not in leaving[2]
    ]
    return total.open_sum(replies)


def expected_code(federation: Federation, plan: Any, group: int, leaving: Leaving) -> str:
    """What this schedule has to come to; "" where the sum opens."""
    drawn = federation.roster.groups(plan)[group]
    there = set(drawn.members) - set(leaving[0])
    if len(there) < plan.n_min:
        return AbortCode.BELOW_N_MIN
    if any(len(there & drawn.neighbours[name]) < plan.least_neighbours for name in there):
        return AbortCode.FEW_NEIGHBOURS
    answering = there.intersection(drawn.committee) - set(leaving[1]) - set(leaving[2])
    return "" if len(answering) >= plan.quorum else AbortCode.NO_QUORUM


def check(federation: Federation, plan: Any, group: int, leaving: Leaving) -> str:
    """Run a schedule and hold it against what it has to come to."""
    code = expected_code(federation, plan, group, leaving)
    if code:
        with pytest.raises(SecAggAbort) as caught:
            attempt(federation, plan, group, leaving)
        assert caught.value.code == code
        return code
    opened = attempt(federation, plan, group, leaving)
    members = federation.roster.groups(plan)[group].members
    assert opened.survivors == tuple(name for name in members if name not in leaving[0])
    np.testing.assert_array_equal(opened.words, federation.expected(plan, opened.survivors))
    return code


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_any_schedule_gives_the_exact_sum_or_aborts(
    make_federation: Callable[..., Federation], data: st.DataObject
) -> None:
    n = data.draw(st.integers(3, 12))
    colluders = data.draw(st.integers(1, (n - 1) // 2))
    n_min = data.draw(st.integers(colluders + 1, n))
    federation = make_federation(n, n_min, colluders)
    ring_bits = data.draw(st.sampled_from([12, 16]))
    plan = federation.plan(step=federation.step(ring_bits=ring_bits))
    leave = st.sets(st.sampled_from(federation.names), max_size=n)
    check(federation, plan, 0, (data.draw(leave), data.draw(leave), data.draw(leave)))


def leaving(generator: np.random.Generator, names: Iterable[str]) -> Leaving:
    """Each member leaves at each phase with a probability; places are drawn, whoever is there."""
    rates = (0.2, 0.15, 0.15)
    first, second, third = (
        [name for name in names if generator.random() < rate] for rate in rates
    )  # fmt: skip
    return first, second, third


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_groups_are_exact_or_abort_each_for_itself(groups: int) -> None:
    federation, generator = build(12, 3, 1), np.random.default_rng(groups)
    n = 12 // groups
    shape = vars(complete_parameters(n, 1, n - 3))
    codes = []
    for number in range(1, 11):
        plan = federation.plan(number, groups=groups, **shape)
        for group, drawn in enumerate(federation.roster.groups(plan)):
            gone = leaving(generator, drawn.members)
            codes.append(check(federation, plan, group, gone))
    assert "" in codes
    assert len(set(codes)) > 1


@pytest.fixture(scope="module")
def sixty() -> Federation:
    return build(60, 52, 6)


@pytest.mark.parametrize(
    ("number", "missing", "silent", "lost", "code"),
    [
        (1, 0, 0, 0, ""),
        (2, 8, 0, 0, ""),
        (3, 9, 0, 0, AbortCode.BELOW_N_MIN),
        (4, 0, 8, 0, ""),
        (5, 0, 9, 0, AbortCode.NO_QUORUM),
        (6, 0, 0, 9, AbortCode.NO_QUORUM),
        (7, 4, 2, 2, ""),
        (8, 0, 4, 5, AbortCode.NO_QUORUM),
    ],
)
def test_a_sparse_sum_is_exact_or_aborts(
    sixty: Federation, number: int, missing: int, silent: int, lost: int, code: str
) -> None:
    """At the edges: n_min of 52, and a quorum of 15 of the committee's 23."""
    plan = sixty.plan(number)
    assert (plan.committee, plan.quorum) == (23, 15)
    order = list(np.random.default_rng(number).permutation(sixty.names))
    committee = [name for name in order if name in sixty.roster.groups(plan)[0].committee]
    gone = order[:missing]
    late = [name for name in committee if name not in gone]
    assert check(sixty, plan, 0, (gone, late[:silent], late[silent : silent + lost])) == code


def test_a_sparse_sum_with_too_few_neighbours_aborts(sixty: Federation) -> None:
    plan = sixty.plan(9, least_neighbours=29)
    assert check(sixty, plan, 0, ([], [], [])) == AbortCode.FEW_NEIGHBOURS
