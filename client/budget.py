"""The node's own books: what each run reserved and used, read from and written to its ledger."""

from dataclasses import dataclass

from client.filter_release import admit, openable, over_budget
from privacy.consent import Consent
from privacy.dp.accountant import epsilon_microunits
from privacy.experts_job import ExpertsJob
from privacy.identity import IdentityKey
from privacy.ledger.entries import (
    DELTA_UNITS,
    EPSILON_UNITS,
    Body,
    ExpertsDebited,
    FederationJoined,
    FilterCharge,
    FilterOpened,
    LedgerError,
    Noise,
    Refusal,
    ReleaseDebited,
    RunClosed,
    RunReserved,
    delta_units,
)
from privacy.ledger.filter import FilterState
from privacy.ledger.log import LedgerLog
from privacy.rounds import PlanCode, PlanRefused, RoundPlan, run_cost


@dataclass
class _Run:
    reserved: RunReserved
    debits: int = 0


class NodeBooks:
    """The ledger of one node as the gate needs it; every method is durable before it returns.

    Args:
        log: the node's ledger.
        key: signs its heads.
        consent: what the node agreed to.

    """

    def __init__(self, log: LedgerLog, key: IdentityKey, consent: Consent) -> None:
        self._log, self._key, self._consent = log, key, consent
        self._runs: dict[str, _Run] = {}
        self._debits: dict[str, ReleaseDebited] = {}
        self._modules: dict[str, ExpertsDebited] = {}
        self._joined: FederationJoined | None = None
        self._filter: FilterState | None = None
        self._closed: set[str] = set()
        for entry in log.entries:
            self._read(entry.parsed())

    @property
    def name(self) -> str:
        """Whose books they are."""
        return self._log.name

    @property
    def has_released(self) -> bool:
        """Whether an upload to a round was ever debited."""
        return bool(self._debits)

    def join(self, noise: Noise) -> None:
        """Bind the node to its consent, once for each version of it, and sign what is there."""
        body = FederationJoined(
            federation=self._consent.federation, consent_digest=self._consent.digest(), noise=noise
        )
        if body != self._joined:
            self._write("federation-joined", body)
        self._log.sign_head(self._key)

    def spent_elsewhere(self, run: str) -> tuple[float, float]:
        """(epsilon, delta) that all runs but this one were charged, over the data's life."""
        others = [r.reserved for name, r in self._runs.items() if name != run]
        epsilon = sum(reserved.epsilon_micro or 0 for reserved in others) / EPSILON_UNITS
        return epsilon, sum(reserved.delta_1e15 for reserved in others) / DELTA_UNITS

    def debit_of(self, plan_digest: bytes) -> ReleaseDebited | None:
        """The release made under a plan, or None."""
        return self._debits.get(plan_digest.hex())

    def debit_of_experts(self, job_digest: bytes) -> ExpertsDebited | None:
        """The module released under a job, or None."""
        return self._modules.get(job_digest.hex())

    def reserve(self, plan: RoundPlan) -> None:
        """Charge a run's whole schedule, once, before its first release; or ask the filter.

        Raises:
            PlanRefused: the run was reserved with another mechanism, is closed, or has used up
                its schedule; a filter does not admit the release; the ledger was charged by the
                other accountant, or for another unit.

        """
        self._check_one_kind()
        if self._consent.accountant == "filter":
            self._admit(plan)
        else:
            self._reserve(self._reservation(plan))

    def reserve_experts(self, job: ExpertsJob, epsilon: float) -> int:
        """Charge a module's whole training, once, before anything is computed from the data.

        Args:
            job: what is to be done.
            epsilon: what `verify_job` computed for it.

        Returns:
            Index of the reservation's entry.

        Raises:
            PlanRefused: the run was reserved for another job or mechanism, is closed, or made its
                module.

        """
        self._check_one_kind()
        wanted = self._experts_reservation(job, epsilon)
        self._reserve(wanted)
        return next(e.index for e in self._log.entries if e.parsed() == wanted)

    def _reserve(self, wanted: RunReserved) -> None:
        run = self._runs.get(wanted.run)
        if run is None:
            self._write("run-reserved", wanted)
            return
        if run.reserved != wanted:
            raise PlanRefused(
                PlanCode.WRONG_EVENT,
                "",
                f"Expected what run {wanted.run!r} reserved, got another mechanism or job. A run "
                "keeps both; start a new run for another one.",
            )
        if wanted.run in self._closed or run.debits >= run.reserved.releases:
            raise PlanRefused(
                PlanCode.OVER_BUDGET,
                "epsilon_per_run",
                f"Expected at most {run.reserved.releases} releases in run {wanted.run!r}, got "
                f"{run.debits} and a request for another. Its schedule is used up.",
            )

    def debit(self, plan: RoundPlan, sealed_digest: str) -> None:
        """Write down one release before it leaves, and sign the ledger with it in.

        Raises:
            PlanRefused: a filter does not admit it, though it did when it was reserved.

        """
        charge = self._admit(plan) if self._consent.accountant == "filter" else None
        body = ReleaseDebited(
            run=plan.run,
            epoch=plan.epoch,
            round=plan.round,
            attempt=plan.attempt,
            plan_digest=plan.digest().hex(),
            sealed_digest=sealed_digest,
            event=plan.dp_event,
            noise=noise_label(plan),
            charge=charge,
        )
        self._write("release-debited", body)
        self._log.sign_head(self._key)

    def debit_experts(self, job: ExpertsJob, sealed_digest: str, card_digest: str) -> None:
        """Write down a module before it leaves, and sign the ledger with it in."""
        body = ExpertsDebited(
            run=job.run,
            owner=job.owner,
            plan_digest=job.digest().hex(),
            sealed_digest=sealed_digest,
            card_digest=card_digest,
            event=job.plan.event_json(),
            noise=noise_label(job),
        )
        self._write("experts-debited", body)
        self._log.sign_head(self._key)

    def refuse(self, refusal: PlanRefused, plan_digest: bytes) -> None:
        """Write down a plan that was turned down, and sign the ledger."""
        body = Refusal(
            code=str(refusal.code), clause=refusal.clause or "-", plan_digest=plan_digest.hex()
        )
        self._write("refusal", body)
        self._log.sign_head(self._key)

    def close(self, run: str) -> None:
        """Note that a run makes no more releases; what it reserved stays charged."""
        known = self._runs.get(run)
        charged = any(debit.run == run for debit in self._debits.values())
        if (known is not None or charged) and run not in self._closed:
            self._write("run-closed", RunClosed(run=run))
            self._log.sign_head(self._key)

    def _admit(self, plan: RoundPlan) -> FilterCharge:
        """Ask the filter for one more release; opens it, durably, before the first."""
        if plan.run in self._closed:
            raise over_budget("epsilon_per_run", f"an open run, got {plan.run!r}, which was closed")
        if self._filter is None:
            self._write("filter-opened", openable(self._consent))
        return admit(self._filter, plan, self._consent)

    def _check_one_kind(self) -> None:
        """Refuse where the ledger was charged in other figures: they do not add up."""
        units = {run.reserved.unit for run in self._runs.values()} - {self._consent.unit}
        if units:
            raise over_budget(
                "unit",
                f"a ledger charged for one unit, got {self._consent.unit!r} in the consent and "
                f"runs charged for {', '.join(map(repr, sorted(units)))}, which say nothing of it",
            )
        other = self._runs if self._consent.accountant == "filter" else self._filter
        if other:
            raise over_budget(
                "accountant",
                f"a ledger charged by one accountant, got {self._consent.accountant!r} in the "
                "consent and entries of the other one",
            )

    def _reservation(self, plan: RoundPlan) -> RunReserved:
        cost = run_cost(plan, self._consent)
        private = plan.step.is_private
        return RunReserved(
            run=plan.run,
            event=plan.dp_event,
            releases=plan.step.releases,
            epsilon_micro=epsilon_microunits(cost.epsilon) if private else None,
            delta_1e15=delta_units(cost.delta) if private else 0,
            accountant="schedule",
            unit=plan.step.unit,
            data_set=self._consent.data_set,
            noise=noise_label(plan),
        )

    def _experts_reservation(self, job: ExpertsJob, epsilon: float) -> RunReserved:
        return RunReserved(
            run=job.run,
            event=job.plan.event_json(),
            releases=1,
            epsilon_micro=epsilon_microunits(epsilon),
            delta_1e15=job.delta_1e15,
            accountant="schedule",
            unit=job.plan.step.unit,
            data_set=self._consent.data_set,
            noise=noise_label(job),
            job=job.digest().hex(),
        )

    def _write(self, kind: str, body: Body) -> None:
        self._read(self._log.append(kind, body).parsed())

    def _read(self, body: Body) -> None:
        if isinstance(body, FederationJoined):
            self._joined = body
        elif isinstance(body, RunReserved):
            self._runs[body.run] = _Run(body)
        elif isinstance(body, FilterOpened):
            self._open_filter(body)
        elif isinstance(body, ReleaseDebited):
            self._read_debit(body)
        elif isinstance(body, ExpertsDebited):
            self._runs[body.run].debits += 1
            self._modules[body.plan_digest] = body
        elif isinstance(body, RunClosed):
            self._closed.add(body.run)

    def _open_filter(self, body: FilterOpened) -> None:
        if self._filter is not None:  # a second one would forget what the first was charged
            raise LedgerError(
                "Expected one 'filter-opened' in a ledger, got two. Run "
                "`arion privacy ledger verify` on this node's ledger."
            )
        self._filter = FilterState(body)

    def _read_debit(self, body: ReleaseDebited) -> None:
        self._debits[body.plan_digest] = body
        if body.charge is None:
            self._runs[body.run].debits += 1
        elif self._filter is not None:
            self._filter.add(body)
        else:
            raise LedgerError(
                "Expected 'filter-opened' before a debit that a filter was charged, got none. Run "
                "`arion privacy ledger verify` on this node's ledger."
            )


def noise_label(plan: RoundPlan | ExpertsJob) -> Noise:
    """What the ledger calls the noise of a plan or job."""
    return "seeded, not private" if plan.seeded else "csprng"
