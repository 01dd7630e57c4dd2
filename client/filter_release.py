"""Whether a Rényi filter admits one more release of a node, and what its debit then names."""

from privacy.budget_clauses import filter_budget
from privacy.consent import Consent
from privacy.dp.accountant import AccountantError
from privacy.ledger.entries import FilterBasis, FilterCharge, FilterOpened
from privacy.ledger.filter import FilterState, charge_entry, cost_of
from privacy.rounds import PlanCode, PlanRefused, RoundPlan


def openable(consent: Consent) -> FilterOpened:
    """Return the budget that a filter is opened on under a consent.

    Raises:
        PlanRefused: a budget too small for a filter to keep.

    """
    wanted = filter_budget(consent)
    try:
        FilterState(wanted)
    except AccountantError as error:
        raise PlanRefused(PlanCode.OVER_BUDGET, "epsilon", str(error)) from error
    return wanted


def admit(state: FilterState | None, plan: RoundPlan, consent: Consent) -> FilterCharge:
    """Return the charge of one more release, if the filter admits it.

    Args:
        state: the filter with all that the ledger debited.
        plan: verified.
        consent: gives the budget, which must be the one that the filter was opened on.

    Raises:
        PlanRefused: over one of the budget's clauses, which it names.

    """
    if state is None or state.opened != filter_budget(consent):
        raise over_budget(
            "epsilon",
            "the budget that this ledger's filter was opened on, fixed before its first release, "
            "got another one in the consent",
        )
    basis = FilterBasis(
        vector_length=plan.vector_length,
        contributors=len(consent.members),
        noise_in_lattice_units=plan.step.noise_in_lattice_units,
        honest_survivors=plan.step.honest_survivors,
    )
    try:
        cost = cost_of(plan.dp_event, basis)
    except (ValueError, ArithmeticError) as error:  # extreme steps overflow deep in the accountant
        raise PlanRefused(PlanCode.OVER_BUDGET, "epsilon", str(error)) from error
    if (clause := state.clause_against(plan.run, cost)) is not None:
        raise over_budget(
            clause,
            f"a release that the filter on {clause} = {getattr(consent, clause):g} admits beside "
            f"those already debited, got one more of run {plan.run!r} that would exceed it",
        )
    return charge_entry(plan.dp_event, basis)


def over_budget(clause: str, expected: str) -> PlanRefused:
    """Return a refusal with code over-budget by a clause."""
    return PlanRefused(
        PlanCode.OVER_BUDGET, clause, f"Expected {expected}. See the clause {clause!r}."
    )
