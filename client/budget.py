"""The node's own books: what each run reserved and used, read from and written to its ledger."""

from dataclasses import dataclass

from client.filter_release import admit, openable, over_budget
from client.reservation import experts_reservation, noise_label, round_reservation
from client.unit_keys import UnitKeys, verify_register
from privacy.consent import Consent
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
)
from privacy.ledger.filter import FilterState
from privacy.ledger.log import LedgerLog
from privacy.ledger.spends import compose_spends
from privacy.rounds import PlanCode, PlanRefused, RoundPlan


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
        unit_keys: by which runs on different data sets are kept apart; None adds all runs up.

    Raises:
        NodeError: a register of unit keys that is not the one the ledger's releases were made by.

    """

    def __init__(
        self,
        log: LedgerLog,
        key: IdentityKey,
        consent: Consent,
        unit_keys: UnitKeys | None = None,
    ) -> None:
        self._log, self._key, self._consent = log, key, consent
        self._unit_keys = unit_keys
        self._runs: dict[str, _Run] = {}
        self._debits: dict[str, ReleaseDebited] = {}
        self._modules: dict[str, ExpertsDebited] = {}
        self._joined: FederationJoined | None = None
        self._filter: FilterState | None = None
        self._closed: set[str] = set()
        for entry in log.entries:
            self._read(entry.parsed())
        if unit_keys is not None:
            verify_register(unit_keys, self._debits.values())

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

    def spent_elsewhere(self, run: str, *, apart: bool = False) -> tuple[float, float]:
        """(epsilon, delta) that all runs but this one were charged, over its units' life.

        Args:
            run: what is to be charged beside them.
            apart: whether it may leave out the units of other data sets; a module never does.

        """
        others = [r.reserved for name, r in self._runs.items() if name != run]
        private = [reserved for reserved in others if reserved.epsilon_micro is not None]
        own = self._consent.data_set if apart and self._keeps_apart(run) else None
        epsilon, delta = compose_spends(private, own)
        return (epsilon or 0) / EPSILON_UNITS, delta / DELTA_UNITS

    def debit_of(self, plan_digest: bytes) -> ReleaseDebited | None:
        """The release made under a plan, or None."""
        return self._debits.get(plan_digest.hex())

    def epochs_of(self, run: str) -> frozenset[int]:
        """Numbers of the epochs that a run released in."""
        return frozenset(debit.epoch for debit in self._debits.values() if debit.run == run)

    def newest_plans(self) -> set[bytes]:
        """Digests of the plans that open runs released under last: they may be asked for again."""
        newest = {
            debit.run: bytes.fromhex(debit.plan_digest)
            for debit in self._debits.values()
            if debit.run not in self._closed
        }
        return set(newest.values())

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
        self._check_apart(plan.run)
        if self._consent.accountant == "filter":
            self._admit(plan)
        else:
            apart = self._keeps_apart(plan.run)
            self._reserve(round_reservation(plan, self._consent, kept_apart=apart))

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
        wanted = experts_reservation(job, self._consent, epsilon)
        reserved = self._reserve(wanted)
        return next(e.index for e in self._log.entries if e.parsed() == reserved)

    def _reserve(self, wanted: RunReserved) -> RunReserved:
        """Write a reservation unless it stands; return what stands."""
        run = self._runs.get(wanted.run)
        if run is None:
            self._write("run-reserved", wanted)
            return wanted
        # who is pinned may change meanwhile, earlier versions wrote no basis: the charge counts
        wanted = wanted.model_copy(update={"basis": run.reserved.basis})
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
        return run.reserved

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
            unit_keys=self._register(plan),
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

    def _keeps_apart(self, run: str) -> bool:
        """Whether a run leaves other data sets' units out: fixed when it is reserved."""
        known = self._runs.get(run)
        return self._unit_keys is not None if known is None else known.reserved.kept_apart

    def _check_apart(self, run: str) -> None:
        if self._keeps_apart(run) and self._unit_keys is None:
            raise over_budget(
                "keep_data_sets_apart",
                f"data that is kept apart as it was when run {run!r} began, got a consent that "
                "does not ask for it; start a new run",
            )

    def _register(self, plan: RoundPlan) -> str | None:
        if not self._keeps_apart(plan.run) or self._unit_keys is None:
            return None
        return self._unit_keys.state(plan.digest())

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
