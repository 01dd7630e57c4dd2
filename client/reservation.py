"""What the ledger says of a run before its first release."""

from privacy.consent import Consent
from privacy.dp.accountant import epsilon_microunits
from privacy.experts_job import ExpertsJob
from privacy.ledger.entries import Noise, RunReserved, ScheduleBasis, delta_units
from privacy.rounds import RoundPlan, run_cost


def round_reservation(plan: RoundPlan, consent: Consent, *, kept_apart: bool) -> RunReserved:
    """Return the whole schedule of a run of rounds, as it is charged.

    Args:
        plan: of any of its rounds.
        consent: gives delta and the data set.
        kept_apart: whether units of other data sets are left out of the run.

    """
    cost = run_cost(plan, consent)
    private = plan.step.is_private
    return RunReserved(
        run=plan.run,
        event=plan.dp_event,
        releases=plan.step.releases,
        epsilon_micro=epsilon_microunits(cost.epsilon) if private else None,
        delta_1e15=delta_units(cost.delta) if private else 0,
        accountant="schedule",
        unit=plan.step.unit,
        data_set=consent.data_set,
        noise=noise_label(plan),
        kept_apart=kept_apart,
        basis=_round_basis(plan, consent) if private else None,
    )


def experts_reservation(job: ExpertsJob, consent: Consent, epsilon: float) -> RunReserved:
    """Return the whole training of a module, as it is charged: to the units of all data sets.

    Args:
        job: what is to be done.
        consent: gives the data set.
        epsilon: what `verify_job` computed for it.

    """
    return RunReserved(
        run=job.run,
        event=job.plan.event_json(),
        releases=1,
        epsilon_micro=epsilon_microunits(epsilon),
        delta_1e15=job.delta_1e15,
        accountant="schedule",
        unit=job.plan.step.unit,
        data_set=consent.data_set,
        noise=noise_label(job),
        job=job.digest().hex(),
        basis=ScheduleBasis(
            vector_length=job.plan.longest,
            contributors=1,
            noise_in_lattice_units=job.plan.step.noise_in_lattice_units,
        ),
    )


def _round_basis(plan: RoundPlan, consent: Consent) -> ScheduleBasis:
    """What `run_cost` computed with."""
    return ScheduleBasis(
        vector_length=plan.vector_length,
        contributors=len(consent.members),
        noise_in_lattice_units=plan.step.noise_in_lattice_units,
        is_sparse=plan.is_sparse,
    )


def noise_label(plan: RoundPlan | ExpertsJob) -> Noise:
    """What the ledger calls the noise of a plan or job."""
    return "seeded, not private" if plan.seeded else "csprng"
