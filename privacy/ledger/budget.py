"""What a node's entries must say together: nothing left before it was charged in full."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from privacy.ledger.entries import (
    NODE_KINDS,
    Entry,
    ExpertsDebited,
    FederationJoined,
    FilterOpened,
    ReleaseDebited,
    RunClosed,
    RunReserved,
)
from privacy.ledger.spends import RunSpend, compose_spends, format_micro
from privacy.ledger.unit_rules import unit_faults

if TYPE_CHECKING:
    from privacy.ledger.filter import FilterState
    from privacy.ledger.filter_rules import FilterRules


@dataclass(frozen=True)
class ModuleSpend:
    """A module of owned experts that was debited: its card, and what was charged for it."""

    card_digest: str
    epsilon_micro: int | None
    delta_1e15: int
    unit: str


@dataclass
class Findings:
    """What reading a ledger's entries found: failures in words, and what they add up to."""

    failures: list[str] = field(default_factory=list)
    runs: list[RunSpend] = field(default_factory=list)
    noises: set[str] = field(default_factory=set)
    plans: set[str] = field(default_factory=set)
    modules: dict[str, ModuleSpend] = field(default_factory=dict)
    filter: "FilterState | None" = None
    jobs: set[str] = field(default_factory=set)

    def total(self) -> tuple[int | None, int]:
        """Return (epsilon in millionths or None, delta in 1e-15) of all runs together.

        Under a filter: its budget, which holds at any time and whatever is released after it.
        """
        if self.filter is not None:
            return self.filter.opened.epsilon_micro, self.filter.opened.delta_1e15
        return compose_spends(self.runs)


@dataclass
class _Run:
    reserved: RunReserved
    debits: int = 0
    last: tuple[int, int] = (0, 0)
    closed: bool = False


def check_node_entries(entries: Sequence[Entry]) -> Findings:
    """Check a node's entries against the rules of a budget.

    1. Only a node's kinds of entry occur. 2. The first says which federation it joined. 3. A run
    is reserved once. 4. Its epsilon is no lower than the accountant's for that schedule. 5. A
    debit follows its run's reservation, of the same event and noise. 6. There are no more debits
    than were reserved. 7. (round, attempt) grows. 8. A closed run makes no release. 9. A module
    comes from the job that its run reserved, rounds from a run of rounds, and no module twice.
    10. A filter is opened once, in a ledger that reserves no run; every debit after it then names
    its charge, which is computed anew, and is within the filter's limits. 11. Every reservation
    keeps the rules of `unit_faults`. 12. Debits of a run that is kept apart, and only those, name
    the register of unit keys.

    Args:
        entries: well-formed entries in order.

    Returns:
        Failures (empty if all holds), runs with their cost, kinds of noise, plans and modules
        debited, jobs reserved.

    """
    return _NodeReader().read(entries)


class _NodeReader:
    def __init__(self) -> None:
        self._found = Findings()
        self._runs: dict[str, _Run] = {}
        self._filter: FilterRules | None = None

    def read(self, entries: Sequence[Entry]) -> Findings:
        if entries and entries[0].kind != "federation-joined":  # 2
            self._fail(entries[0], "a node's ledger begins with 'federation-joined'")
        for entry in entries:
            self._read_entry(entry)
        self._found.runs = [_spend(run) for run in self._runs.values()]
        if self._filter is not None:
            self._found.filter = self._filter.state
            self._found.runs += self._filter.runs()
        return self._found

    def _read_entry(self, entry: Entry) -> None:
        if entry.kind not in NODE_KINDS:  # 1
            self._fail(entry, f"a node never writes {entry.kind!r}")
            return
        body = entry.parsed()
        if isinstance(body, FederationJoined | RunReserved | ReleaseDebited | ExpertsDebited):
            self._found.noises.add(body.noise)
        if isinstance(body, RunReserved):
            self._reserve(entry, body)
        elif isinstance(body, FilterOpened):
            self._open_filter(entry, body)
        elif isinstance(body, ReleaseDebited) and (self._filter or body.charge is not None):
            self._debit_filter(entry, body)
        elif isinstance(body, ReleaseDebited):
            self._debit_round(entry, body)
        elif isinstance(body, ExpertsDebited):
            self._debit_experts(entry, body)
        elif isinstance(body, RunClosed):
            self._close(entry, body)

    def _reserve(self, entry: Entry, body: RunReserved) -> None:
        if self._filter is not None:  # 10
            self._fail(entry, f"run {body.run!r} is reserved in a ledger that a filter keeps")
        if body.run in self._runs:  # 3
            self._fail(entry, f"run {body.run!r} is reserved a second time")
            return
        self._runs[body.run] = _Run(body)
        first = next(iter(self._runs.values())).reserved
        for reason in unit_faults(body, first):  # 11
            self._fail(entry, reason)
        if body.job is not None:
            self._found.jobs.add(body.job)
        # The accountant takes a second to import; a ledger without runs is read without it.
        from privacy.ledger.charges import schedule_epsilon_micro  # noqa: PLC0415

        try:
            owed = schedule_epsilon_micro(body.event, body.releases, body.delta_1e15, body.basis)
        except ValueError as error:
            self._fail(entry, f"run {body.run!r} has an event that cannot be accounted: {error}")
            return
        if _is_less(body.epsilon_micro, owed):  # 4
            self._fail(
                entry,
                f"run {body.run!r} is charged epsilon {format_micro(body.epsilon_micro)}, "
                f"and its schedule costs {format_micro(owed)}",
            )

    def _debit_round(self, entry: Entry, body: ReleaseDebited) -> None:
        run = self._debit(entry, body)
        if run is None:
            return
        if run.reserved.job is not None:  # 9
            self._fail(entry, f"run {body.run!r} releases a round, and reserved a module")
        if (body.round, body.attempt) <= run.last:  # 7
            self._fail(
                entry,
                f"run {body.run!r} goes from round {run.last[0]} attempt {run.last[1]} to round "
                f"{body.round} attempt {body.attempt}",
            )
        run.last = (body.round, body.attempt)
        if (body.unit_keys is not None) != run.reserved.kept_apart:  # 12
            self._fail(
                entry,
                f"run {body.run!r} names a register of unit keys where it is not kept apart, or "
                "none where it is",
            )

    def _open_filter(self, entry: Entry, body: FilterOpened) -> None:
        # Takes the accountant's second to import, as schedules do below.
        from privacy.ledger.filter_rules import FilterRules  # noqa: PLC0415

        if self._filter is not None or self._runs:  # 10
            other = "a second time" if self._filter else "in a ledger that charges schedules"
            self._fail(entry, f"a filter is opened {other}; a ledger keeps one accountant")
            return
        try:
            self._filter = FilterRules(body)
        except ValueError as error:
            self._fail(entry, f"a filter is opened on a budget that it cannot keep: {error}")

    def _debit_filter(self, entry: Entry, body: ReleaseDebited) -> None:
        self._found.plans.add(body.plan_digest)
        if self._filter is None:  # 10
            self._fail(entry, f"run {body.run!r} names a charge, and no filter was opened")
            return
        for reason in self._filter.debit(body):  # 7, 8, 10
            self._fail(entry, reason)

    def _debit_experts(self, entry: Entry, body: ExpertsDebited) -> None:
        run = self._debit(entry, body)
        if run is not None and body.plan_digest != run.reserved.job:  # 9
            self._fail(entry, f"run {body.run!r} releases a module of a job it never reserved")
        if body.sealed_digest in self._found.modules:  # 9
            self._fail(entry, f"module {body.sealed_digest[:12]} is debited a second time")
        charged = (run.reserved.epsilon_micro, run.reserved.delta_1e15) if run else (0, 0)
        unit = run.reserved.unit if run else ""
        self._found.modules[body.sealed_digest] = ModuleSpend(body.card_digest, *charged, unit)

    def _debit(self, entry: Entry, body: ReleaseDebited | ExpertsDebited) -> _Run | None:
        """Check what holds for every debit; None where nothing was reserved for it."""
        self._found.plans.add(body.plan_digest)
        run = self._runs.get(body.run)
        if run is None:  # 5
            self._fail(entry, f"run {body.run!r} is debited without a reservation before it")
            return None
        run.debits += 1
        if (body.event, body.noise) != (run.reserved.event, run.reserved.noise):  # 5
            self._fail(entry, f"run {body.run!r} is debited another event than it reserved")
        if run.debits > run.reserved.releases:  # 6
            self._fail(
                entry,
                f"run {body.run!r} has {run.debits} debits, and it reserved "
                f"{run.reserved.releases}",
            )
        if run.closed:  # 8
            self._fail(entry, f"run {body.run!r} is debited after it was closed")
        return run

    def _close(self, entry: Entry, body: RunClosed) -> None:
        if self._filter is not None and self._filter.close(body.run):
            return
        if body.run not in self._runs:
            self._fail(entry, f"run {body.run!r} is closed and was never reserved")
            return
        self._runs[body.run].closed = True

    def _fail(self, entry: Entry, reason: str) -> None:
        self._found.failures.append(f"entry {entry.index}: {reason}")


def _spend(run: _Run) -> RunSpend:
    reserved = run.reserved
    return RunSpend(
        run=reserved.run,
        epsilon_micro=reserved.epsilon_micro,
        delta_1e15=reserved.delta_1e15,
        releases=reserved.releases,
        debits=run.debits,
        unit=reserved.unit,
        data_set=reserved.data_set,
        kept_apart=reserved.kept_apart,
    )


def _is_less(charged: int | None, owed: int | None) -> bool:
    """Compare two epsilons, where None is without bound."""
    return charged is not None and (owed is None or charged < owed)
