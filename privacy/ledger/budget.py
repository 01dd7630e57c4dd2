"""What a node's entries must say together: nothing left before it was charged in full."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from pydantic import JsonValue

from privacy.canonical import canonical_bytes, parse_canonical
from privacy.ledger.entries import (
    DELTA_UNITS,
    NODE_KINDS,
    Entry,
    ExpertsDebited,
    FederationJoined,
    ReleaseDebited,
    RunClosed,
    RunReserved,
)


@dataclass(frozen=True)
class RunSpend:
    """What one run may cost and has used, as its ledger says.

    Attributes:
        epsilon_micro: millionths, for the whole schedule; None where the run adds no noise.
        delta_1e15: units of 1e-15, for the whole schedule.
        releases: length of the schedule.
        debits: releases made so far.

    """

    run: str
    epsilon_micro: int | None
    delta_1e15: int
    releases: int
    debits: int
    unit: str
    data_set: str


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
    jobs: set[str] = field(default_factory=set)


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

    def read(self, entries: Sequence[Entry]) -> Findings:
        if entries and entries[0].kind != "federation-joined":  # 2
            self._fail(entries[0], "a node's ledger begins with 'federation-joined'")
        for entry in entries:
            self._read_entry(entry)
        self._found.runs = [_spend(run) for run in self._runs.values()]
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
        elif isinstance(body, ReleaseDebited):
            self._debit_round(entry, body)
        elif isinstance(body, ExpertsDebited):
            self._debit_experts(entry, body)
        elif isinstance(body, RunClosed):
            self._close(entry, body)

    def _reserve(self, entry: Entry, body: RunReserved) -> None:
        if body.run in self._runs:  # 3
            self._fail(entry, f"run {body.run!r} is reserved a second time")
            return
        self._runs[body.run] = _Run(body)
        if body.job is not None:
            self._found.jobs.add(body.job)
        try:
            owed = schedule_epsilon_micro(body.event, body.releases, body.delta_1e15)
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
        if body.run not in self._runs:
            self._fail(entry, f"run {body.run!r} is closed and was never reserved")
            return
        self._runs[body.run].closed = True

    def _fail(self, entry: Entry, reason: str) -> None:
        self._found.failures.append(f"entry {entry.index}: {reason}")


def compose_spends(runs: Sequence[RunSpend]) -> tuple[int | None, int]:
    """Add up what all runs may cost.

    Formal guarantee: basic composition, valid for runs chosen after seeing the results of earlier
    ones: the releases of all runs together are (sum of epsilons, sum of deltas)-DP per unit.

    Returns:
        epsilon in millionths (None if any run has no noise), delta in units of 1e-15.

    Source: Dwork and Roth 2014, theorem 3.16; Rogers et al. 2016 (1605.08294) for adaptivity.

    """
    epsilons = [run.epsilon_micro for run in runs]
    known = [epsilon for epsilon in epsilons if epsilon is not None]
    total = sum(known) if len(known) == len(epsilons) else None
    return total, sum(run.delta_1e15 for run in runs)


def schedule_epsilon_micro(event: JsonValue, releases: int, delta_1e15: int) -> int | None:
    """Recompute the epsilon of `releases` times `event`, in millionths rounded up.

    Args:
        event: DP event of one release, as `privacy.dp.plan.event_json` writes it.
        releases: length of the schedule.
        delta_1e15: delta in units of 1e-15.

    Returns:
        A lower limit of what had to be charged (the slack of lattice and floats comes on top), or
        None where there is no finite epsilon.

    Raises:
        ValueError: an event of an unknown kind.

    """
    return _schedule_epsilon_micro(canonical_bytes(event), releases, delta_1e15)


@lru_cache(maxsize=256)
def _schedule_epsilon_micro(event: bytes, releases: int, delta_1e15: int) -> int | None:
    # The accountant takes a second to import; a ledger without runs is read without it.
    from dp_accounting.dp_event import NonPrivateDpEvent, SelfComposedDpEvent  # noqa: PLC0415

    from privacy.dp.accountant import epsilon, epsilon_microunits  # noqa: PLC0415
    from privacy.dp.plan import event_from_json  # noqa: PLC0415

    release = event_from_json(parse_canonical(event))
    if isinstance(release, NonPrivateDpEvent):
        return None
    spent = epsilon(SelfComposedDpEvent(release, releases), delta_1e15 / DELTA_UNITS)
    return None if spent == float("inf") else epsilon_microunits(spent)


def format_micro(epsilon_micro: int | None) -> str:
    """Write an epsilon for people; None is a run without a finite one."""
    return "unbounded" if epsilon_micro is None else f"{epsilon_micro / 1e6:.6f}"


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
    )


def _is_less(charged: int | None, owed: int | None) -> bool:
    """Compare two epsilons, where None is without bound."""
    return charged is not None and (owed is None or charged < owed)
