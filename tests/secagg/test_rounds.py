"""Every check of `verify_plan`, by a plan that breaks that check only."""

import json
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from privacy.dp.accountant import epsilon
from privacy.dp.plan import PrivateStep
from privacy.identity import IdentityKey, Signed
from privacy.ledger.entries import delta_units
from privacy.rounds import (
    PlanCode,
    PlanRefused,
    RoundPlan,
    run_cost,
    run_delta,
    sign_plan,
)
from privacy.secagg.parameters import quorum_for


def refused(code: PlanCode, action: Callable[[], object]) -> PlanRefused:
    with pytest.raises(PlanRefused) as caught:
        action()
    assert caught.value.code is code, caught.value
    return caught.value


def test_a_sound_plan_is_accepted(federation: Any) -> None:
    plan = federation.plan()
    assert federation.verify(plan) == plan
    assert RoundPlan.from_payload(plan.payload()).digest() == plan.digest()


def test_the_contribution_of_each_field_to_the_digest(federation: Any) -> None:
    digests = {federation.plan(1).digest(), federation.plan(2).digest()}
    digests |= {federation.plan(attempt=2).digest(), federation.plan(run="run-2").digest()}
    assert len(digests) == 4


def test_another_signer_domain_or_payload(federation: Any) -> None:
    plan = federation.plan()
    good = sign_plan(federation.coordinator, plan)
    edited = federation.plan(model_digest="f" * 64).payload()
    for signed in (
        sign_plan(IdentityKey.generate(), plan),
        federation.coordinator.sign("header", plan.payload()),
        Signed(edited, good.signature),
        Signed(plan.payload(), good.signature[:-1]),
    ):
        refused(PlanCode.BAD_SIGNATURE, lambda: federation.verify(plan, signed=signed))  # noqa: B023


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace(":", ": ", 1),
        lambda text: text.replace('"round":1', '"round":1.0'),
        lambda text: json.dumps({**json.loads(text), "extra": 1}, separators=(",", ":")),
        lambda text: text.replace('"seeded":false,', ""),
        lambda text: text.replace('"version":1', '"version":2'),
        lambda text: text.replace('"releases":10', '"releases":100000000000000000000'),
        lambda text: text.replace('"releases":10', '"releases":1e999'),
        lambda text: text.replace('"seeded":false', '"seeded":false,"seeded":false'),
        lambda text: "[" * 100_000,
        lambda text: "",
    ],
)
def test_another_spelling_of_a_plan(federation: Any, edit: Callable[[str], str]) -> None:
    payload = edit(federation.plan().payload().decode()).encode()
    signed = federation.coordinator.sign("plan", payload)
    refused(PlanCode.NOT_CANONICAL, lambda: federation.verify(federation.plan(), signed=signed))


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        (PlanCode.WRONG_FEDERATION, {"federation": "banks"}),
        (PlanCode.WRONG_RUNTIME, {"runtime": "simulate"}),
        (PlanCode.WRONG_ROSTER, {"epoch": 2}),
        (PlanCode.WRONG_ROSTER, {"roster_digest": "0" * 64}),
        (PlanCode.OLD_ROUND, {"attempt": 4}),
        (PlanCode.OLD_ROUND, {"round": 11}),
        (PlanCode.BAD_COHORT, {"cohort": ("node-0",)}),
        (PlanCode.BAD_COHORT, {"cohort": ("node-0", "node-1", "node-2")}),
        (PlanCode.BAD_COHORT, {"cohort": ("node-0", "node-1", "node-2", "sybil")}),
        (PlanCode.BAD_COHORT, {"cohort": ("node-1", "node-0", "node-2", "node-3")}),
        (PlanCode.BAD_COHORT, {"cohort": ("node-0", "node-0", "node-1", "node-2", "node-3")}),
        (PlanCode.COHORT_TOO_SMALL, {"n_min": 2}),
        (PlanCode.COHORT_TOO_SMALL, {"n_min": 5}),
        (PlanCode.COHORT_TOO_SMALL, {"colluders": 3, "quorum": 4}),
        (PlanCode.BAD_GRAPH, {"quorum": 2}),
        (PlanCode.BAD_GRAPH, {"quorum": 5}),
        (PlanCode.BAD_GRAPH, {"quorum": 4}),
        (PlanCode.BAD_GRAPH, {"degree": 2}),
        (PlanCode.BAD_GRAPH, {"committee": 3}),
        (PlanCode.BAD_GRAPH, {"least_neighbours": 1}),
        (PlanCode.WRONG_EVENT, {"dp_event": {"class_name": "NoOpDpEvent"}}),
        (PlanCode.WRONG_LENGTH, {"vector_length": 100}),
        (PlanCode.NOT_TRAINABLE, {"trainable": (("router.weight", 101),)}),
        (PlanCode.NOT_TRAINABLE, {"trainable": (("lora.a", 100), ("lora.a", 1))}),
        (PlanCode.SEEDED, {"seeded": True}),
    ],
)
def test_one_broken_field(federation: Any, code: PlanCode, changes: dict[str, Any]) -> None:
    plan = federation.plan(**changes)
    refused(code, lambda: federation.verify(plan))


@pytest.mark.parametrize(
    ("code", "clause", "changes"),
    [
        (PlanCode.WRONG_SURVIVORS, "tolerated_colluders", {"honest_survivors": 3}),
        (PlanCode.WRONG_UNIT, "unit", {"unit": "patient"}),
        (
            PlanCode.NO_NOISE,
            "allow_unprotected_release",
            {"noise_multiplier": 0.0, "ring_bits": 32},
        ),
        (PlanCode.OVER_BUDGET, "epsilon_per_run", {"noise_multiplier": 0.6}),
        (PlanCode.OVER_BUDGET, "epsilon_per_run", {"noise_multiplier": 1e-4}),
        (PlanCode.OVER_BUDGET, "epsilon_per_run", {"noise_multiplier": 1e-150}),
        (PlanCode.OVER_BUDGET, "epsilon_per_run", {"releases": 2**52}),
        (PlanCode.OVER_BUDGET, "epsilon_if_all_others_collude", {"noise_multiplier": 1.0}),
    ],
)
def test_one_broken_field_of_the_step(
    federation: Any, code: PlanCode, clause: str, changes: dict[str, Any]
) -> None:
    plan = federation.plan(step=federation.step(**changes))
    assert refused(code, lambda: federation.verify(plan)).clause == clause


def test_a_coarse_lattice_is_refused_even_if_the_step_were_built(federation: Any) -> None:
    step = PrivateStep.model_construct(
        **{**federation.step().model_dump(), "noise_in_lattice_units": 2.0}
    )
    plan = RoundPlan.model_construct(**{**dict(federation.plan()), "step": step})
    with pytest.raises(PlanRefused):
        federation.verify(plan)


def test_fewer_colluders_than_the_consent_tolerates(make_federation: Callable[..., Any]) -> None:
    federation = make_federation(5, 4, 2)
    step = federation.step(honest_survivors=3)
    plan = federation.plan(colluders=1, step=step)
    refused(PlanCode.TOO_FEW_COLLUDERS, lambda: federation.verify(plan))


def test_two_members_are_too_few_even_if_all_are_pinned(
    make_federation: Callable[..., Any],
) -> None:
    federation = make_federation(2, 2, 1)
    plan = federation.plan(degree=1, least_neighbours=1, committee=2, quorum=2)
    refused(PlanCode.BAD_COHORT, lambda: federation.verify(plan))


def test_a_roster_of_other_members_than_the_consent_pins(federation: Any) -> None:
    """Should a node ever hold such a roster, no plan for it passes: a Sybil is in no cohort."""
    plan, pinned = federation.plan(), federation.consent().members
    sybil = {**pinned, "sybil": IdentityKey.generate().public_key.hex()}
    swapped = dict(list(sybil.items())[1:])
    for members in (swapped, dict(list(swapped.items())[1:]), dict(list(pinned.items())[1:])):
        consent = federation.consent(members=members)
        refused(PlanCode.BAD_COHORT, lambda: federation.verify(plan, consent))  # noqa: B023


@pytest.mark.parametrize(("away", "is_enough"), [(0, True), (1, True), (2, True), (3, False)])
def test_pinned_members_that_are_away(federation: Any, away: int, is_enough: bool) -> None:
    """Four are there, and one may collude: two cohorts of them share an honest one of at most 6."""
    quorum = quorum_for(4 + away, 1)
    plan, pinned = federation.plan(quorum=quorum), federation.consent().members
    strangers = {f"node-{9 - n}": IdentityKey.generate().public_key.hex() for n in range(away)}
    consent = federation.consent(members={**pinned, **strangers})
    if is_enough:
        assert federation.verify(plan, consent) == plan
        expected = epsilon(
            plan.step.schedule_event(),
            run_delta(consent),
            vector_length=plan.vector_length,
            contributors=4 + away,
        )
        assert run_cost(plan, consent).epsilon == expected
    else:
        told = refused(PlanCode.BAD_COHORT, lambda: federation.verify(plan, consent))
        assert "at least 5 of the 7 pinned ones" in str(told)


def test_the_quorum_is_that_of_all_who_are_pinned(federation: Any) -> None:
    """Four are there, and three of them could sign for one sum, and one and two for another."""
    pinned = federation.consent().members
    members = {**pinned, "node-9": IdentityKey.generate().public_key.hex()}
    consent = federation.consent(members=members)
    for quorum in (3, 5):
        plan = federation.plan(quorum=quorum)
        refused(PlanCode.BAD_GRAPH, lambda: federation.verify(plan, consent))  # noqa: B023
    plan = federation.plan(quorum=4)
    assert federation.verify(plan, consent) == plan


def test_a_cohort_that_could_never_reach_n_min(federation: Any) -> None:
    """One of five is away, and whoever agrees to no fewer than five takes no part."""
    pinned = federation.consent().members
    members = {**pinned, "node-9": IdentityKey.generate().public_key.hex()}
    consent = federation.consent(members=members, smallest_cohort=5)
    refused(PlanCode.BAD_COHORT, lambda: federation.verify(federation.plan(), consent))


def test_rounds_only_go_forward(federation: Any) -> None:
    plan = federation.plan(3, attempt=2)
    for last in ((3, 2), (3, 3), (4, 1)):
        refused(PlanCode.OLD_ROUND, lambda: federation.verify(plan, last_seen=last))  # noqa: B023
    for last in ((3, 1), (2, 3), None):
        assert federation.verify(plan, last_seen=last) == plan


def test_the_coordinators_own_roster_is_no_members(federation: Any) -> None:
    plan = federation.plan()
    refused(PlanCode.BAD_COHORT, lambda: federation.verify(plan, roster=federation.roster))


def test_the_runtime_is_the_one_the_node_runs_on(federation: Any) -> None:
    consent = federation.consent(runtimes=("arion-grpc", "simulate"))
    plan = federation.plan(runtime="simulate")
    assert federation.verify(plan, consent) == plan
    refused(PlanCode.WRONG_RUNTIME, lambda: federation.verify(plan, consent, runtime="arion-grpc"))


def test_seeded_noise_needs_its_clause_and_a_simulation(federation: Any) -> None:
    runtimes = ("arion-grpc", "simulate")
    allowing = federation.consent(allow_seeded_simulation=True, runtimes=runtimes)
    forbidding = federation.consent(runtimes=runtimes)
    simulated = federation.plan(seeded=True, runtime="simulate")
    assert federation.verify(simulated, allowing) == simulated
    refused(PlanCode.SEEDED, lambda: federation.verify(simulated, forbidding))
    refused(PlanCode.SEEDED, lambda: federation.verify(federation.plan(seeded=True), allowing))


def test_a_run_without_noise_needs_its_clause(federation: Any) -> None:
    plan = federation.plan(step=federation.step(noise_multiplier=0.0, ring_bits=32))
    consent = federation.consent(allow_unprotected_release=True)
    assert federation.verify(plan, consent) == plan


def test_the_lifes_budget_counts_what_other_runs_spent(federation: Any) -> None:
    plan, consent = federation.plan(), federation.consent()
    cost = run_cost(plan, consent)
    assert federation.verify(plan, spent=(1.0 - cost.epsilon - 1e-5, 0.5e-5)) == plan
    for spent in ((1.0 - cost.epsilon + 1e-5, 0.0), (0.0, 0.5e-5 + 2e-15)):
        refused(PlanCode.OVER_BUDGET, lambda: federation.verify(plan, spent=spent))  # noqa: B023


def test_delta_and_epsilon_last_for_equally_many_runs(federation: Any) -> None:
    consent = federation.consent(epsilon=0.9, epsilon_per_run=0.3)
    delta = run_delta(consent)
    assert delta == pytest.approx(1e-5 / 3, rel=1e-9)
    assert 3 * round(delta * 1e15) <= 1e10


@pytest.mark.parametrize("runs", range(2, 30))
def test_the_last_of_equal_runs_fits_as_the_ledger_charges_them(federation: Any, runs: int) -> None:
    consent = federation.consent(epsilon=0.9, epsilon_per_run=0.9 / runs)
    charged = delta_units(run_delta(consent))
    assert runs * charged <= 10**10 < runs * (charged + 2)


def test_an_expired_consent(federation: Any) -> None:
    plan = federation.plan()
    assert federation.verify(plan, today=date(2030, 1, 1)) == plan
    refused(PlanCode.EXPIRED, lambda: federation.verify(plan, today=date(2030, 1, 2)))


@pytest.mark.parametrize("members", range(3, 51))
def test_two_quorums_share_an_honest_member(members: int) -> None:
    for colluders in range(1, members):
        quorum = quorum_for(members, colluders)
        assert 2 * quorum - members > colluders >= 2 * (quorum - 1) - members
