"""What the coordinator's entries must say together: one unbroken history of every run's model."""

from collections.abc import Sequence
from dataclasses import dataclass

from privacy.ledger.entries import (
    COORDINATOR_KINDS,
    Entry,
    Release,
    RoundAborted,
    RoundRecorded,
    RunOpened,
)


@dataclass
class History:
    """What was found: failures in words, rounds recorded, and who survived which plan."""

    failures: list[str]
    runs: int
    rounds: int
    survivors: dict[str, tuple[str, ...]]


@dataclass
class _Run:
    opened: RunOpened
    model_digest: str
    last: tuple[int, int] = (0, 0)
    last_recorded: int = 0


def check_coordinator_entries(entries: Sequence[Entry]) -> History:
    """Check the coordinator's entries against the rules of a history.

    1. Only a coordinator's kinds of entry occur. 2. A run is opened once, before all else of it.
    3. (round, attempt) grows, and recorded rounds strictly. 4. A round starts from the model that
    the last one ended with. 5. Survivors are members of the cohort.

    Args:
        entries: well-formed entries in order.

    Returns:
        Failures (empty if all holds) and what the entries add up to.

    """
    return _HistoryReader().read(entries)


class _HistoryReader:
    def __init__(self) -> None:
        self._found = History([], 0, 0, {})
        self._runs: dict[str, _Run] = {}

    def read(self, entries: Sequence[Entry]) -> History:
        for entry in entries:
            self._read_entry(entry)
        self._found.runs = len(self._runs)
        return self._found

    def _read_entry(self, entry: Entry) -> None:
        if entry.kind not in COORDINATOR_KINDS:  # 1
            self._fail(entry, f"a coordinator never writes {entry.kind!r}")
            return
        body = entry.parsed()
        if isinstance(body, RunOpened):
            self._open(entry, body)
        elif isinstance(body, RoundRecorded | RoundAborted | Release):
            run = self._runs.get(body.run)
            if run is None:  # 2
                self._fail(entry, f"run {body.run!r} was not opened before")
            elif not isinstance(body, Release):
                self._read_round(entry, run, body)

    def _open(self, entry: Entry, body: RunOpened) -> None:
        if body.run in self._runs:  # 2
            self._fail(entry, f"run {body.run!r} is opened a second time")
            return
        self._runs[body.run] = _Run(body, body.model_digest)

    def _read_round(self, entry: Entry, run: _Run, body: RoundRecorded | RoundAborted) -> None:
        if (body.round, body.attempt) <= run.last or body.round <= run.last_recorded:  # 3
            self._fail(
                entry,
                f"run {body.run!r} goes from round {run.last[0]} attempt {run.last[1]} to round "
                f"{body.round} attempt {body.attempt}",
            )
        run.last = (body.round, body.attempt)
        if isinstance(body, RoundRecorded):
            self._record(entry, run, body)

    def _record(self, entry: Entry, run: _Run, body: RoundRecorded) -> None:
        if body.model_digest_before != run.model_digest:  # 4
            self._fail(
                entry,
                f"round {body.round} of run {body.run!r} starts from model "
                f"{body.model_digest_before[:12]}, and the last one ended with "
                f"{run.model_digest[:12]}",
            )
        if strangers := sorted(set(body.survivors) - set(run.opened.cohort)):  # 5
            self._fail(entry, f"round {body.round} counts {strangers}, not of the cohort")
        run.model_digest, run.last_recorded = body.model_digest_after, body.round
        self._found.rounds += 1
        self._found.survivors[body.plan_digest] = body.survivors

    def _fail(self, entry: Entry, reason: str) -> None:
        self._found.failures.append(f"entry {entry.index}: {reason}")
