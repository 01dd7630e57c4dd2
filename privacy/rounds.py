"""Whether a node takes part in a round: the checks of its signed plan, and what a run costs it.

Symbols: n members of a group, c colluders, h = n_min - c.
"""

from dataclasses import dataclass
from datetime import date

from privacy.budget_clauses import check_expiry, check_life_budget, require, run_delta
from privacy.canonical import canonical_bytes
from privacy.consent import Consent
from privacy.dp.accountant import epsilon_after, epsilon_if_all_others_collude
from privacy.dp.plan import SMALLEST_LATTICE_NOISE
from privacy.identity import SignatureError, Signed, verify_signed
from privacy.round_plan import PlanCode, PlanRefused, RoundPlan, sign_plan
from privacy.secagg.parameters import (
    FAILURE,
    LARGEST_COMPLETE,
    LARGEST_EPOCH_TRIALS,
    LARGEST_SPARSE,
    SMALLEST_COHORT,
    ParameterError,
    check_parameters,
)
from privacy.secagg.roster import Roster
from privacy.units import INSTITUTION

__all__ = [
    "PlanCode",
    "PlanRefused",
    "RoundPlan",
    "RunCost",
    "run_cost",
    "run_delta",
    "sign_plan",
    "verify_plan",
]

LARGEST_ATTEMPT = 3


@dataclass(frozen=True)
class RunCost:
    """What a run costs this node: the figures it reserves before the first release.

    Attributes:
        epsilon: of the whole schedule, at `delta`; infinity without noise.
        delta: the run's share of the consent's delta.
        epsilon_if_all_others_collude: the same, should every other member conspire.

    """

    epsilon: float
    delta: float
    epsilon_if_all_others_collude: float


def run_cost(plan: RoundPlan, consent: Consent) -> RunCost:
    """Compute what the plan's whole schedule costs this node.

    Args:
        plan: the plan; its step and vector length decide.
        consent: gives delta and the members.

    Returns:
        Upper bounds on epsilon, for one (unit, node), add or remove one. Over a sparse graph they
        are for delta - 2^-40: the rest of delta is for a graph or a committee that fails.

    Raises:
        AccountantError: a schedule that cannot be bounded.

    Formal guarantee: see `privacy.dp.accountant.epsilon`.

    """
    delta = run_delta(consent)
    return RunCost(
        epsilon=epsilon_after(
            plan.step,
            plan.step.releases,
            delta - (FAILURE if plan.is_sparse else 0.0),
            vector_length=plan.vector_length,
            contributors=len(consent.members),  # at most; each epoch has a cohort of its own
        ),
        delta=delta,
        epsilon_if_all_others_collude=epsilon_if_all_others_collude(
            plan.step, delta, vector_length=plan.vector_length
        ),
    )


def verify_plan(
    signed: Signed,
    consent: Consent,
    *,
    coordinator_key: bytes,
    roster: Roster,
    runtime: str,
    last_seen: tuple[int, int] | None,
    spent: tuple[float, float],
    today: date,
) -> RoundPlan:
    """Decide whether this node takes part in a round.

    1. The pinned coordinator key signed it. 2. Its bytes are canonical. 3. It names our
    federation. 4. Its runtime is where we run, and the consent allows it. 5. It names our epoch
    and roster. 6. (round, attempt) comes after the last one seen, attempt <= 3, and the round is
    within the schedule. 7. The cohort is the whole roster, enough of the pinned members, we are in
    it, in groups of one size n, 3 <= n <= 50, or up to 1,000 under the clause `sparse_graph`.
    8. n_min is at least the consent's, at most n, and more than c. 9. c is at least the consent's,
    which is at least 1.
    10. Graph, committee and quorum keep the bounds that we compute from n, c and n_min. 11. h =
    n_min - c. 12. The unit is the consent's, and a whole institution is not sampled. 13. There is
    noise, or a clause for none; always over a sparse graph. 14. The event is the one we compute.
    15. s >= 3. 16. The vector's length is the tensors' sum. 17. Every tensor may be trained, once.
    18. Seeded noise only in a simulation with a clause for it. 19. The schedule's epsilon is
    within its clauses and within what is left of the life's budget; under a filter, which decides
    on single releases, the node's books ask it instead. 20. The consent has not expired.

    Args:
        signed: what arrived.
        consent: this institution's consent.
        coordinator_key: pinned Ed25519 key, 32 bytes.
        roster: what `accept_roster` returned to this node.
        runtime: where this node really runs.
        last_seen: the last (round, attempt) of this run that the node claimed.
        spent: (epsilon, delta) that all other runs were charged over the data's life.
        today: the day, for the clause `expires`.

    Returns:
        The plan.

    Raises:
        PlanRefused: the first check that fails.

    """
    try:
        payload = verify_signed(coordinator_key, "plan", signed)  # 1
    except SignatureError as error:
        raise PlanRefused(PlanCode.BAD_SIGNATURE, "coordinator_key", str(error)) from error
    plan = RoundPlan.from_payload(payload)  # 2
    _check_place(plan, consent, roster, runtime)  # 3-5
    _check_order(plan, last_seen)  # 6
    _check_numbers(plan, consent, roster)  # 7-11
    _check_mechanism(plan, consent)  # 12-15
    _check_scope(plan, consent)  # 16-18
    _check_budget(plan, consent, spent)  # 19
    check_expiry(consent, today)  # 20
    return plan


def _check_place(plan: RoundPlan, consent: Consent, roster: Roster, runtime: str) -> None:
    require(
        plan.federation == consent.federation == roster.federation,
        PlanCode.WRONG_FEDERATION,
        "federation",
        f"federation {consent.federation!r}, got {plan.federation!r}",
    )
    require(
        plan.runtime == runtime and plan.runtime in consent.runtimes,
        PlanCode.WRONG_RUNTIME,
        "runtimes",
        f"this node's runtime {runtime!r}, among {consent.runtimes}, got {plan.runtime!r}",
    )
    require(
        (plan.epoch, plan.roster_digest) == (roster.epoch, roster.digest.hex()),
        PlanCode.WRONG_ROSTER,
        "members",
        f"epoch {roster.epoch} with the roster this node verified, got epoch {plan.epoch} with "
        f"roster {plan.roster_digest[:16]}",
    )


def _check_order(plan: RoundPlan, last_seen: tuple[int, int] | None) -> None:
    last = last_seen or (0, 0)
    require(
        (plan.round, plan.attempt) > last
        and plan.attempt <= LARGEST_ATTEMPT
        and plan.round <= plan.step.releases,
        PlanCode.OLD_ROUND,
        "",
        f"a (round, attempt) after {last}, attempt <= {LARGEST_ATTEMPT}, round <= "
        f"{plan.step.releases}, got ({plan.round}, {plan.attempt})",
    )


def _check_numbers(plan: RoundPlan, consent: Consent, roster: Roster) -> None:
    n = plan.group_size
    largest = LARGEST_SPARSE if consent.sparse_graph else LARGEST_COMPLETE
    require(
        plan.cohort == roster.names  # sorted, and nobody twice, as the roster is
        and set(plan.cohort) <= set(consent.members)
        and len(plan.cohort) >= consent.smallest_roster
        and roster.own in plan.cohort
        and n * plan.groups == len(plan.cohort)
        and SMALLEST_COHORT <= n <= largest,
        PlanCode.BAD_COHORT,
        "members",
        f"the epoch's members as the cohort, at least {consent.smallest_roster} of the "
        f"{len(consent.members)} pinned ones, in groups of one size, of "
        f"{SMALLEST_COHORT} to {largest}, got {len(plan.cohort)} names in {plan.groups} groups",
    )
    require(
        consent.smallest_cohort <= plan.n_min <= n and plan.n_min > plan.colluders,
        PlanCode.COHORT_TOO_SMALL,
        "smallest_cohort",
        f"{max(consent.smallest_cohort, plan.colluders + 1)} <= n_min <= {n}, got {plan.n_min}",
    )
    require(
        plan.colluders >= consent.tolerated_colluders >= 1,
        PlanCode.TOO_FEW_COLLUDERS,
        "tolerated_colluders",
        f"colluders >= {consent.tolerated_colluders}, got {plan.colluders}",
    )
    _check_graph(plan, len(consent.members) if plan.groups == 1 else n)
    require(
        plan.step.honest_survivors == plan.n_min - plan.colluders,
        PlanCode.WRONG_SURVIVORS,
        "tolerated_colluders",
        f"honest_survivors = n_min - colluders = {plan.n_min - plan.colluders}, got "
        f"{plan.step.honest_survivors}",
    )


def _check_graph(plan: RoundPlan, pinned: int) -> None:
    n = plan.group_size
    try:
        check_parameters(plan.parameters, n, plan.colluders, n - plan.n_min, pinned)
    except ParameterError as error:
        raise PlanRefused(PlanCode.BAD_GRAPH, "tolerated_colluders", str(error)) from error
    most = LARGEST_EPOCH_TRIALS // LARGEST_ATTEMPT
    require(
        not plan.is_sparse or plan.step.releases <= most,
        PlanCode.BAD_GRAPH,
        "sparse_graph",
        f"at most {most} releases over a sparse graph, got {plan.step.releases}",
    )


def _check_mechanism(plan: RoundPlan, consent: Consent) -> None:
    require(
        plan.step.unit == consent.unit,
        PlanCode.WRONG_UNIT,
        "unit",
        f"unit {consent.unit!r}, got {plan.step.unit!r}",
    )
    require(
        plan.step.unit != INSTITUTION or plan.step.sampling_probability == 1,
        PlanCode.WRONG_UNIT,
        "unit",
        "sampling_probability = 1 where the unit is a whole institution, which takes part in every "
        f"round, got {plan.step.sampling_probability}",
    )
    require(
        plan.step.is_private or (consent.allow_unprotected_release and not plan.is_sparse),
        PlanCode.NO_NOISE,
        "allow_unprotected_release",
        "noise_multiplier > 0, got 0",
    )
    require(
        canonical_bytes(plan.dp_event) == canonical_bytes(plan.step.event_json()),
        PlanCode.WRONG_EVENT,
        "",
        "the DP event that this node computes from the step, got another",
    )
    require(
        plan.step.noise_in_lattice_units >= SMALLEST_LATTICE_NOISE,
        PlanCode.COARSE_LATTICE,
        "",
        f"noise_in_lattice_units >= {SMALLEST_LATTICE_NOISE}, got "
        f"{plan.step.noise_in_lattice_units}",
    )


def _check_scope(plan: RoundPlan, consent: Consent) -> None:
    total = sum(size for _, size in plan.trainable)
    require(
        plan.vector_length == total,
        PlanCode.WRONG_LENGTH,
        "",
        f"vector_length = sum of the trainable tensors = {total}, got {plan.vector_length}",
    )
    names = [name for name, _ in plan.trainable]
    require(
        consent.allows_trainable(names) and len(set(names)) == len(names),
        PlanCode.NOT_TRAINABLE,
        "trainable",
        f"distinct tensors that match {consent.trainable}, got others among {len(names)}",
    )
    require(
        not plan.seeded or (consent.allow_seeded_simulation and plan.runtime == "simulate"),
        PlanCode.SEEDED,
        "allow_seeded_simulation",
        f"noise from this node's own entropy, got a seeded run on {plan.runtime!r}",
    )


def _check_budget(plan: RoundPlan, consent: Consent, spent: tuple[float, float]) -> None:
    if not plan.step.is_private:
        return  # check 13 found the clause; there is no finite epsilon to compare
    if consent.accountant == "filter":
        return  # nothing is reserved as a whole; `NodeBooks.reserve` and `debit` ask the filter
    try:
        cost = run_cost(plan, consent)
    except (ValueError, ArithmeticError) as error:  # extreme steps overflow deep in the accountant
        raise PlanRefused(PlanCode.OVER_BUDGET, "epsilon_per_run", str(error)) from error
    limits = (
        ("epsilon_per_run", cost.epsilon, consent.epsilon_per_run),
        (
            "epsilon_if_all_others_collude",
            cost.epsilon_if_all_others_collude,
            consent.epsilon_if_all_others_collude,
        ),
    )
    for clause, value, limit in limits:
        message = f"at most {clause} = {limit:g}, got {value:.6g} for the whole schedule"
        require(value <= limit, PlanCode.OVER_BUDGET, clause, message)
    check_life_budget(cost.epsilon, cost.delta, consent, spent)
