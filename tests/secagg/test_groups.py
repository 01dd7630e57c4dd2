"""Random groups, each with a sum of its own: 9 members in three groups of three."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from privacy.round_plan import PlanCode, PlanRefused
from privacy.secagg.aborts import AbortCode, SecAggAbort
from privacy.secagg.coordinator import StreamingSum
from privacy.secagg.header import RefusalCode, SecAggRefused
from privacy.secagg.parameters import complete_parameters
from tests.secagg.conftest import Federation

SHAPE = {
    "groups": 3, "degree": 2, "least_neighbours": 2, "committee": 3, "quorum": 3,
}  # fmt: skip


@pytest.fixture
def nine(make_federation: Callable[..., Federation]) -> Federation:
    return make_federation(9, 3, 1)


def open_group(nine: Federation, plan: Any, place: int) -> Any:
    total = StreamingSum(plan, nine.roster, place)
    for name in total.group.members:
        assert total.add(*nine.upload(name, plan))
    total.certify(nine.sign(plan, total))
    return total.open_sum(
        [nine.nodes[name].unmask(plan, total.unmask_request(name)) for name in total.committee]
    )


def test_each_group_has_a_sum_of_its_own(nine: Federation) -> None:
    plan = nine.plan(**SHAPE)
    survivors = []
    for place in range(3):
        opened = open_group(nine, plan, place)
        assert (opened.words == nine.expected(plan, opened.survivors)).all()
        survivors.extend(opened.survivors)
    assert sorted(survivors) == list(nine.names)


def test_groups_change_with_the_attempt_and_not_with_the_plan(nine: Federation) -> None:
    plan = nine.plan(**SHAPE)
    others = {
        tuple(group.members for group in nine.roster.groups(nine.plan(number, **SHAPE)))
        for number in range(1, 9)
    }
    assert len(others) == 8
    assert nine.roster.groups(nine.plan(**SHAPE, run="another")) == nine.roster.groups(plan)


def test_a_member_of_another_group_is_not_in_the_sum(nine: Federation) -> None:
    plan = nine.plan(**SHAPE)
    first, second, _ = nine.roster.groups(plan)
    total = StreamingSum(plan, nine.roster, 0)
    stranger = nine.upload(second.members[0], plan)
    with pytest.raises(SecAggAbort) as caught:
        total.add(*stranger)
    assert caught.value.code is AbortCode.BAD_UPLOAD
    assert total.uploaded == ()
    own = [nine.upload(name, plan)[0].header for name in first.members]
    mixed = sorted(
        [*own[:2], stranger[0].header], key=lambda signed: signed.payload.split(b'"node":')[1]
    )
    node = nine.nodes[first.members[0]]
    with pytest.raises(SecAggRefused) as refusal:
        node.sign_survivors(plan, mixed)
    assert refusal.value.code is RefusalCode.BAD_HEADER
    assert node.sign_survivors(plan, own)


def test_the_checks_of_a_plan_are_for_a_group(nine: Federation) -> None:
    plan = nine.plan(**SHAPE)
    assert nine.verify(plan) == plan
    for code, changes in (
        (PlanCode.BAD_COHORT, {"groups": 2}),
        (PlanCode.BAD_COHORT, {"groups": 9, "degree": 1}),
        (PlanCode.BAD_GRAPH, {"quorum": 2}),
        (PlanCode.BAD_GRAPH, {"degree": 8, "committee": 9, "quorum": 6}),
        (PlanCode.COHORT_TOO_SMALL, {"n_min": 4}),
    ):
        with pytest.raises(PlanRefused) as caught:
            nine.verify(nine.plan(**{**SHAPE, **changes}))
        assert caught.value.code is code
    whole = nine.plan()
    assert whole.parameters == complete_parameters(9, 1, 6)
    with pytest.raises(PlanRefused) as caught:  # the officer wants larger sums than a group's
        nine.verify(plan, nine.consent(smallest_cohort=4))
    assert caught.value.code is PlanCode.COHORT_TOO_SMALL


def test_a_spoilt_group_leaves_the_others_alone(nine: Federation) -> None:
    plan = nine.plan(**SHAPE)
    groups = nine.roster.groups(plan)
    assert np.any(open_group(nine, plan, 1).words)
    total = StreamingSum(plan, nine.roster, 0)
    for name in groups[0].members[:2]:
        total.add(*nine.upload(name, plan))
    with pytest.raises(SecAggAbort) as caught:
        total.close()
    assert caught.value.code is AbortCode.BELOW_N_MIN
    assert open_group(nine, plan, 2).survivors == groups[2].members
