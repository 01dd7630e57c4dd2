"""What a run would cost and could teach, before anyone consents: no data is read.

Only the run file and counts that are known in advance decide: members, privacy units per member,
coordinates of a release. The figures are those that a node recomputes and charges.
"""

import math
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from pathlib import Path

import torch

from arion.mechanism import Cohort, choose_cohort, choose_recipe, choose_step
from arion.run_file import RunFile, RunFileError
from models.config import preset
from models.decoder import Decoder
from models.folders import shape_of
from models.footprint import trained_numbers
from privacy.budget_clauses import filter_budget, run_delta
from privacy.consent import Consent
from privacy.dp.accountant import AccountantError, epsilon_after, epsilon_if_all_others_collude
from privacy.dp.plan import PrivateStep
from privacy.figures import at_most
from privacy.ledger.entries import FilterBasis
from privacy.ledger.filter import CLAUSES, FilterState, cost_of
from privacy.units import INSTITUTION, RECORD

_MOST_ROUNDS = 100_000
_PARTS = 4


@dataclass(frozen=True)
class Outlook:
    """A run before it is run.

    Attributes:
        cohort: who must be in a sum.
        step: the mechanism of every round.
        vector_length: coordinates of a release.
        delta: of the whole run.
        epsilon: (rounds, epsilon after them), at quarters of the schedule; the last is charged.
        epsilon_if_all_others_collude: of the whole schedule.
        rounds_in_budget: rounds that this step could make before the run's epsilon is spent.
        noise_to_signal: length of the noise in a sum over the largest length of the clipped sum,
            B C; the mean gradient's own length is less than C, so the true ratio is larger.
        members_needed: members of this size at which noise_to_signal is at most `target`.

    """

    cohort: Cohort
    step: PrivateStep
    vector_length: int
    delta: float
    epsilon: tuple[tuple[int, float], ...]
    epsilon_if_all_others_collude: float
    rounds_in_budget: int
    noise_to_signal: float
    target: float
    members_needed: int


def plan_run(run: RunFile, *, nodes: int, units_per_node: int, unit: str, target: float) -> Outlook:
    """Work out a run's privacy and noise.

    Args:
        run: the run file; its budget, batch, rounds, model and recipe decide.
        nodes: members of the federation.
        units_per_node: privacy units that a member trains on; 1 where it is the unit itself.
        unit: name of the privacy unit.
        target: noise_to_signal to ask members_needed for, > 0.

    Raises:
        RunFileError: a run without noise, or numbers that do not fit together.
        AccountantError: a budget that cannot be reached.

    """
    if not run.privacy.enabled:
        raise RunFileError(
            "Expected a run with noise, got privacy.enabled = false: no epsilon holds for it. "
            "Set privacy.enabled = true."
        )
    if unit == INSTITUTION and units_per_node != 1:
        raise RunFileError(
            f"Expected --units-per-node 1 where the unit is the institution, got {units_per_node}. "
            "Give 1: each member is one unit."
        )
    cohort = choose_cohort(run.federation, nodes)
    length = vector_length(run, unit)
    step = choose_step(run, unit, nodes * units_per_node, cohort, length)
    delta = run.privacy.delta
    rounds = sorted({math.ceil(step.releases * part / _PARTS) for part in range(1, _PARTS + 1)})
    ratio = noise_to_signal(step, cohort, length)
    return Outlook(
        cohort=cohort,
        step=step,
        vector_length=length,
        delta=delta,
        epsilon=tuple((r, _epsilon(step, r, delta, length, cohort)) for r in rounds),
        epsilon_if_all_others_collude=epsilon_if_all_others_collude(
            step, delta, vector_length=length
        ),
        rounds_in_budget=_rounds_in(run.privacy.epsilon, step, delta, length, cohort),
        noise_to_signal=ratio,
        target=target,
        members_needed=members_needed(ratio, cohort, target),
    )


def unit_of(run: RunFile, asked: str | None = None) -> str:
    """Return the privacy unit of a run whose data is not at hand.

    Args:
        run: the run file, whose word counts if it names a unit.
        asked: what was asked for; None takes the run file's, else each record.

    Raises:
        RunFileError: another unit than the run file's was asked for.

    """
    if run.privacy.unit is not None and asked not in {None, run.privacy.unit}:
        raise RunFileError(
            f"Expected the run file's unit {run.privacy.unit!r}, got {asked!r}. Leave --unit out."
        )
    return run.privacy.unit or asked or RECORD


def vector_length(run: RunFile, unit: str) -> int:
    """Return the coordinates of a release, without allocating a preset's weights."""
    base = Path(run.model.base)
    if base.is_dir():
        return trained_numbers(shape_of(base), choose_recipe(run, unit, base))
    with torch.device("meta"):
        model = Decoder(preset(run.model.base))
    return trained_numbers(model, choose_recipe(run, unit, base))


def noise_to_signal(step: PrivateStep, cohort: Cohort, length: int) -> float:
    """Return the noise's expected length in the sums of all members, over B C."""
    noise = step.node_noise_std * math.sqrt(cohort.members * length)
    return noise / (step.expected_batch * step.clipping_norm)


def members_needed(ratio: float, cohort: Cohort, target: float) -> int:
    """Return the members at which the ratio is at most `target`, all else per member equal.

    The batch grows with the members, n B / nodes. The groups g, the members that a sum may miss, d,
    and the colluders, c, stay as many, so the noise grows as sqrt(n / (n / g - d - c)).
    """
    away = cohort.groups * (cohort.nodes - cohort.n_min + cohort.colluders)
    # ratio(n) = k / sqrt(n (n - away)), so n solves n (n - away) = (k / target)^2.
    k = ratio * math.sqrt(cohort.members * (cohort.members - away))
    members = (away + math.sqrt(away**2 + 4 * (k / target) ** 2)) / 2
    return max(3 * cohort.groups, away + 1, math.ceil(members - 1e-9))


@dataclass(frozen=True)
class Verdict:
    """Whether one consent would let the run through.

    Attributes:
        refused: the clauses that would not, in words.
        runs_in_life: such runs that the life's budget holds, each charged whole; under a schedule
            each takes of delta the share that a run of `epsilon_per_run` would.
        releases_by_filter: such releases that a Rényi filter on the life's budget holds; to
            compare with, where the consent's accountant is the schedule.
        accountant: the consent's.

    """

    refused: tuple[str, ...]
    runs_in_life: int
    releases_by_filter: int
    accountant: str


_Check = tuple[str, bool, str]


def consider(outlook: Outlook, consent: Consent, today: date | None = None) -> Verdict:
    """Compare an outlook with a consent's clauses; the node decides by the same clauses.

    Epsilon is computed anew at the delta that the consent gives a run.
    """
    today = today or date.today()
    step = outlook.step
    charged = _epsilon(
        step, step.releases, run_delta(consent), outlook.vector_length, outlook.cohort
    )
    by_accountant = (
        _filter_checks(outlook, consent)
        if consent.accountant == "filter"
        else _schedule_checks(outlook, consent, charged)
    )
    checks: tuple[_Check, ...] = (
        ("expires", today <= consent.expires, f"today is {today}"),
        ("unit", step.unit == consent.unit, f"the run's unit is {step.unit!r}"),
        (
            "members",
            outlook.cohort.members == len(consent.members),
            f"the run has {outlook.cohort.members} members, and it pins {len(consent.members)}",
        ),
        (
            "smallest_cohort",
            outlook.cohort.n_min >= consent.smallest_cohort,
            f"a sum may have {outlook.cohort.n_min} members",
        ),
        (
            "tolerated_colluders",
            outlook.cohort.colluders >= consent.tolerated_colluders,
            f"the noise bears {outlook.cohort.colluders} colluders",
        ),
        (
            "sparse_graph",
            consent.sparse_graph or not outlook.cohort.is_sparse,
            f"a sum is over a random graph of {outlook.cohort.nodes} members",
        ),
        *by_accountant,
    )
    refused = tuple(
        got if clause == "members" else f"{clause} = {getattr(consent, clause)}: {got}"
        for clause, holds, got in checks
        if not holds
    )
    held = releases_by_filter(outlook, consent)
    return Verdict(refused, _runs_in_life(consent, step, charged, held), held, consent.accountant)


def _runs_in_life(consent: Consent, step: PrivateStep, charged: float, by_filter: int) -> int:
    if consent.accountant == "filter":
        return by_filter // step.releases
    by_delta = int(Fraction(consent.epsilon) / Fraction(consent.epsilon_per_run))
    return min(int(consent.epsilon / charged), by_delta) if charged else 0


def _schedule_checks(outlook: Outlook, consent: Consent, charged: float) -> tuple[_Check, ...]:
    collude = epsilon_if_all_others_collude(
        outlook.step, run_delta(consent), vector_length=outlook.vector_length
    )
    return (
        (
            "epsilon_per_run",
            charged <= consent.epsilon_per_run,
            f"the run costs {at_most(charged)} at a run's delta of {run_delta(consent):.3g}",
        ),
        (
            "epsilon_if_all_others_collude",
            collude <= consent.epsilon_if_all_others_collude,
            f"it costs {at_most(collude)} if all others collude",
        ),
    )


def _filter_checks(outlook: Outlook, consent: Consent) -> tuple[_Check, ...]:
    """Whether the filter would let the run come to its end, if it were the first."""
    releases = outlook.step.releases
    return tuple(
        (clause, held >= releases, f"the filter holds {held} of the run's {releases} releases")
        for clause, held in zip(CLAUSES, _held(outlook, consent), strict=True)
    )


def releases_by_filter(outlook: Outlook, consent: Consent) -> int:
    """Return how many of the run's releases a Rényi filter on the life's budget would hold."""
    return _held(outlook, consent)[0]


def _held(outlook: Outlook, consent: Consent) -> tuple[int, int, int]:
    """Return the releases that each clause's filter would hold, 0 where it cannot be opened."""
    step = outlook.step
    basis = FilterBasis(
        vector_length=outlook.vector_length,
        contributors=outlook.cohort.members,
        noise_in_lattice_units=step.noise_in_lattice_units,
        honest_survivors=step.honest_survivors,
    )
    try:
        state = FilterState(filter_budget(consent))
        return state.releases_left("", cost_of(step.event_json(), basis))
    except AccountantError:
        return 0, 0, 0


def _epsilon(step: PrivateStep, rounds: int, delta: float, length: int, cohort: Cohort) -> float:
    delta -= cohort.failure
    return epsilon_after(step, rounds, delta, vector_length=length, contributors=cohort.members)


def _rounds_in(budget: float, step: PrivateStep, delta: float, length: int, cohort: Cohort) -> int:
    """Return the most rounds of this step within the budget, by bisection."""
    longer = step.model_copy(update={"releases": _MOST_ROUNDS})

    def fits(rounds: int) -> bool:
        return _epsilon(longer, rounds, delta, length, cohort) <= budget

    low, high = step.releases, 2 * step.releases
    if not fits(low):
        low, high = 0, step.releases
    while high < _MOST_ROUNDS and fits(high):
        low, high = high, 2 * high
    high = min(high, _MOST_ROUNDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
