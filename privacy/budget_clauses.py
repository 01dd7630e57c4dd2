"""Clauses of the consent that every charge must keep, whichever mechanism asks for it."""

import math
from datetime import date
from fractions import Fraction
from pathlib import Path

from privacy.consent import Consent, ConsentError, load_consent
from privacy.dp.accountant import epsilon_microunits
from privacy.ledger.entries import FilterOpened
from privacy.round_plan import PlanCode, PlanRefused

_DELTA_UNITS = 10**15
_EPSILON_UNITS = 10**6
_LARGEST_INTEGER = 2**53 - 1


def run_delta(consent: Consent) -> float:
    """Return the share of the life's delta that one run uses, at most a multiple of 1e-15.

    A run may use epsilon_per_run / epsilon of the life's epsilon, and the same part of its delta,
    so both last for equally many runs. The float is no larger than the multiple, which is what the
    ledger therefore charges: one unit more each, and the last of these runs would not fit.
    """
    share = Fraction(consent.epsilon_per_run) / Fraction(consent.epsilon)
    units = int(Fraction(consent.delta) * share * _DELTA_UNITS)
    delta = units / _DELTA_UNITS
    return math.nextafter(delta, 0.0) if Fraction(delta) * _DELTA_UNITS > units else delta


def filter_budget(consent: Consent) -> FilterOpened:
    """Return the budget that a filter is opened on under a consent, rounded down."""
    return FilterOpened(
        epsilon_micro=_down(consent.epsilon, _EPSILON_UNITS),
        delta_1e15=_down(consent.delta, _DELTA_UNITS),
        epsilon_per_run_micro=_down(consent.epsilon_per_run, _EPSILON_UNITS),
        run_delta_1e15=round(run_delta(consent) * _DELTA_UNITS),
        epsilon_if_all_others_collude_micro=_down(
            consent.epsilon_if_all_others_collude, _EPSILON_UNITS
        ),
        unit=consent.unit,
        data_set=consent.data_set,
    )


def check_life_budget(
    epsilon: float, delta: float, consent: Consent, spent: tuple[float, float]
) -> None:
    """Refuse a charge that the budget of the data's life does not hold.

    Args:
        epsilon: of the charge, finite.
        delta: of the charge.
        consent: gives the life's budget.
        spent: (epsilon, delta) that everything else was charged.

    Raises:
        PlanRefused: over the budget, by the clause `epsilon`, or `delta` where that alone is short.

    """
    # Integers, as the ledger keeps them: many small charges add up to no less than they are.
    epsilon_units = round(spent[0] * _EPSILON_UNITS) + epsilon_microunits(epsilon)
    delta_units = round(spent[1] * _DELTA_UNITS) + round(delta * _DELTA_UNITS)
    fits = epsilon_units <= round(consent.epsilon * _EPSILON_UNITS)
    require(
        fits and delta_units <= round(consent.delta * _DELTA_UNITS),
        PlanCode.OVER_BUDGET,
        "delta" if fits else "epsilon",
        f"at most epsilon {consent.epsilon:g} and delta {consent.delta:g} over the data's life, "
        f"got {epsilon:.6g} and {delta:g} on top of {spent[0]:g} and {spent[1]:g}",
    )


def check_expiry(consent: Consent, today: date) -> None:
    """Refuse after the consent's last day."""
    try:
        consent.check_not_expired(today)
    except ConsentError as error:
        raise PlanRefused(PlanCode.EXPIRED, "expires", str(error)) from error


def check_consent_stands(consent: Consent, path: Path) -> None:
    """Refuse where the file no longer says what the node was started with.

    Args:
        consent: what was read when the node started.
        path: the `consent.toml` that it was read from.

    Raises:
        PlanRefused: the file is missing or broken, or a clause has another value; names the clause.

    """
    try:
        now = load_consent(path)
    except ConsentError as error:
        raise PlanRefused(PlanCode.CONSENT_CHANGED, error.clause, str(error)) from error
    for clause in Consent.model_fields:
        require(
            getattr(now, clause) == getattr(consent, clause),
            PlanCode.CONSENT_CHANGED,
            clause,
            "the consent that the node was started with, got another value; restart the node to "
            "take part under the new one",
        )


def require(holds: bool, code: PlanCode, clause: str, expected: str) -> None:
    """Refuse unless a check holds; the message says what was expected and what was got."""
    if not holds:
        remedy = f"See the clause {clause!r}." if clause else "Ask the coordinator for a new plan."
        raise PlanRefused(code, clause, f"Expected {expected}. {remedy}")


def _down(value: float, units: int) -> int:
    """Return a figure of the consent, as it is written there, in whole units."""
    return min(int(Fraction(repr(value)) * units), _LARGEST_INTEGER)
