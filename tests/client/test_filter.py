"""A node whose consent chose the filter: releases are charged one by one, whatever the runs are."""

import tomllib
from typing import Any

import pytest

from arion.toml_file import write_toml
from client.budget import NodeBooks
from client.config import CONSENT_FILE
from privacy.budget_clauses import run_delta
from privacy.dp.rdp_filter import Charge, charge_of, open_filter
from privacy.identity import IdentityKey
from privacy.rounds import PlanCode, PlanRefused, RoundPlan
from privacy.secagg.parameters import quorum_for
from tests.dying import dying
from tests.small_federation import NAMES, STEP, SmallFederation, digest_of
from tests.small_hands import Hands

WIDE = {"epsilon": 60.0, "epsilon_per_run": 60.0, "epsilon_if_all_others_collude": 100.0}


def choose(hands: Hands, name: str = "north", **clauses: Any) -> None:
    """Let a node take up a consent with other clauses, and start again."""
    path = hands.federation.homes.nodes[name] / CONSENT_FILE
    write_toml(path, tomllib.loads(path.read_text()) | clauses)
    hands.reopen(name)


def with_filter(hands: Hands, **clauses: Any) -> None:
    choose(hands, **{"accountant": "filter", **WIDE, **clauses})


def refused(hands: Hands, plan: RoundPlan) -> tuple[PlanCode, str]:
    with pytest.raises(PlanRefused) as caught:
        hands.release("north", plan)
    return caught.value.code, caught.value.clause


def held(hands: Hands, epsilon: float, delta: float, *, alone: bool = False) -> int:
    """Releases that a filter admits, from its arithmetic alone."""
    plan = hands.plan()
    event = plan.step.event_if_all_others_collude() if alone else plan.step.event()
    each = charge_of(event, vector_length=plan.vector_length, contributors=1 if alone else 4)
    return open_filter(epsilon, delta).releases_left(Charge(), each)


def budget_for(hands: Hands, releases: int, *, alone: bool = False) -> float:
    """The least epsilon, in steps of a tenth, whose filter admits so many releases."""
    delta = hands.nodes["north"].consent.delta
    tenths = (tenth / 10 for tenth in range(10, 1000))
    return next(e for e in tenths if held(hands, e, delta, alone=alone) == releases)


def in_turn(hands: Hands, count: int, run: str = "small") -> None:
    for number in range(1, count + 1):
        hands.release("north", hands.plan(number, run=run))


def test_releases_are_charged_until_the_filter_is_full(hands: Hands) -> None:
    with_filter(hands, epsilon=(epsilon := budget_for(hands, 2)), epsilon_per_run=epsilon)
    in_turn(hands, 2)
    assert refused(hands, hands.plan(3)) == (PlanCode.OVER_BUDGET, "epsilon")
    assert hands.federation.bodies("north", "refusal")[-1]["clause"] == "epsilon"
    (opened,) = hands.federation.bodies("north", "filter-opened")
    assert opened["epsilon_micro"] == round(epsilon * 1e6)
    assert not hands.federation.bodies("north", "run-reserved")
    plan = hands.plan()
    each = charge_of(plan.step.event(), vector_length=plan.vector_length, contributors=len(NAMES))
    charges = [body["charge"] for body in hands.federation.bodies("north", "release-debited")]
    expected = {"rdp": [*map(str, each.rdp)], "slack": str(each.slack), "tail": str(each.tail)}
    assert [{k: c[k] for k in expected} for c in charges] == [expected] * 2
    report = hands.federation.verified()["north"]
    assert (report.epsilon_micro, report.delta_1e15) == (round(epsilon * 1e6), 10**10)


def test_a_release_is_charged_for_members_that_are_away_too(hands: Hands) -> None:
    """Whatever cohort an epoch has, the same release costs the same."""
    members = dict(hands.nodes["north"].consent.members)
    strangers = {f"away-{n}": IdentityKey.generate().public_key.hex() for n in range(2)}
    with_filter(hands, members={**members, **strangers})
    plan = hands.plan(quorum=quorum_for(len(NAMES) + 2, 1))
    hands.release("north", plan)
    (debit,) = hands.federation.bodies("north", "release-debited")
    charges = [
        charge_of(plan.step.event(), vector_length=plan.vector_length, contributors=count)
        for count in (len(NAMES), len(NAMES) + 2)
    ]
    assert charges[0].slack < charges[1].slack
    assert debit["charge"]["slack"] == str(charges[1].slack)
    assert hands.federation.verified()["north"].is_ok


def test_a_later_run_has_what_earlier_ones_left(hands: Hands) -> None:
    """The first run stops early and costs one release; the second was chosen after it."""
    with_filter(hands, epsilon=(epsilon := budget_for(hands, 3)), epsilon_per_run=epsilon)
    in_turn(hands, 1)
    in_turn(hands, 2, "chosen-later")
    later = hands.plan(3, run="chosen-later")
    assert refused(hands, later) == (PlanCode.OVER_BUDGET, "epsilon")
    assert hands.federation.verified()["north"].run_count == 2


def test_attempts_and_restarts_stay_charged(hands: Hands) -> None:
    with_filter(hands, epsilon=(epsilon := budget_for(hands, 2)), epsilon_per_run=epsilon)
    hands.release("north", hands.plan(1, 1))
    hands.reopen("north")
    hands.release("north", hands.plan(1, 2))
    hands.reopen("north")
    assert refused(hands, hands.plan(2)) == (PlanCode.OVER_BUDGET, "epsilon")
    again = hands.release("north", hands.plan(1, 2))  # the identical bytes, charged already
    assert again.digest == hands.federation.bodies("north", "release-debited")[-1]["sealed_digest"]
    assert len(hands.federation.bodies("north", "release-debited")) == 2


def test_a_run_stays_within_its_own_budget(hands: Hands) -> None:
    with_filter(hands, epsilon_per_run=6.0)
    limit = held(hands, 6.0, run_delta(hands.nodes["north"].consent))
    assert 1 <= limit < STEP.releases
    in_turn(hands, limit)
    assert refused(hands, hands.plan(limit + 1)) == (PlanCode.OVER_BUDGET, "epsilon_per_run")
    in_turn(hands, 1, "another")


def test_collusion_is_charged_with_less_noise(hands: Hands) -> None:
    alone = budget_for(hands, 1, alone=True)
    per_run = min(alone, 60.0)
    with_filter(
        hands, epsilon=per_run, epsilon_per_run=per_run, epsilon_if_all_others_collude=alone
    )
    in_turn(hands, 1)
    code, clause = refused(hands, hands.plan(2))
    assert (code, clause) == (PlanCode.OVER_BUDGET, "epsilon_if_all_others_collude")


def test_the_budget_of_an_open_filter_is_fixed(hands: Hands) -> None:
    with_filter(hands)
    in_turn(hands, 1)
    choose(hands, epsilon=61.0)
    assert refused(hands, hands.plan(2)) == (PlanCode.OVER_BUDGET, "epsilon")
    choose(hands, epsilon=60.0)
    hands.release("north", hands.plan(2))


@pytest.mark.parametrize("first", ["schedule", "filter"])
def test_a_ledger_keeps_one_accountant(hands: Hands, first: str) -> None:
    choose(hands, accountant=first, **WIDE)
    in_turn(hands, 1)
    choose(hands, accountant="filter" if first == "schedule" else "schedule")
    assert refused(hands, hands.plan(2)) == (PlanCode.OVER_BUDGET, "accountant")
    assert refused(hands, hands.plan(1, run="new")) == (PlanCode.OVER_BUDGET, "accountant")
    assert hands.federation.verified()["north"].is_ok


def test_a_budget_that_no_filter_keeps_opens_none(hands: Hands) -> None:
    with_filter(hands, epsilon=0.01, epsilon_per_run=0.01)
    assert refused(hands, hands.plan()) == (PlanCode.OVER_BUDGET, "epsilon")
    assert not hands.federation.bodies("north", "filter-opened")


def test_a_closed_run_releases_nothing_more(hands: Hands) -> None:
    with_filter(hands)
    in_turn(hands, 1)
    hands.nodes["north"]._books.close("small")
    hands.reopen("north")
    assert refused(hands, hands.plan(2)) == (PlanCode.OVER_BUDGET, "epsilon_per_run")
    in_turn(hands, 1, "another")
    assert hands.federation.verified()["north"].is_ok


def test_a_crash_before_the_debit_charges_nothing_and_sends_nothing(hands: Hands) -> None:
    with_filter(hands, epsilon=(epsilon := budget_for(hands, 1)), epsilon_per_run=epsilon)
    with dying(NodeBooks, "debit"):
        hands.release("north", hands.plan())
    hands.reopen("north")
    hands.release("north", hands.plan())
    assert refused(hands, hands.plan(2)) == (PlanCode.OVER_BUDGET, "epsilon")


def test_a_federation_of_filters_comes_to_the_same_model(
    federation: SmallFederation, undisturbed: str
) -> None:
    """How releases are charged changes nothing of what is released."""
    for home in federation.homes.nodes.values():
        path = home / CONSENT_FILE
        write_toml(path, tomllib.loads(path.read_text()) | {"accountant": "filter", **WIDE})
    assert digest_of(federation.run()) == undisturbed
    assert all(federation.bodies(name, "filter-opened") for name in NAMES)
    federation.verified()
