"""The coordinator's entries in its ledger; each is written exactly once, also after a crash."""

from coordinator.attempts import Attempt
from coordinator.settings import RunSettings
from coordinator.shared import SharedLedger
from privacy.ledger.entries import (
    Entry,
    Release,
    RoundAborted,
    RoundRecorded,
    RunOpened,
)
from privacy.rounds import RoundPlan


class RunRecords:
    """Writes what happened in one run; a second call for the same event writes nothing.

    Args:
        ledger: the coordinator's; other runs write to it too.
        settings: of the run.

    """

    def __init__(self, ledger: SharedLedger, settings: RunSettings) -> None:
        self._ledger, self._settings = ledger, settings
        with ledger.turn() as log:
            own = [entry for entry in log.entries if _run_of(entry) == settings.run]
        self._rounds = {_place(entry) for entry in own} - {None}
        self._kinds = {entry.kind for entry in own}

    def open(self, model_digest: str) -> None:
        """Write that the run began, and from which model."""
        if "run-opened" not in self._kinds:
            self._write(
                "run-opened",
                RunOpened(
                    run=self._settings.run,
                    federation=self._settings.federation,
                    cohort=tuple(sorted(self._settings.members)),
                    model_digest=model_digest,
                ),
            )

    def recorded(self, attempt: Attempt, model_digest_after: str) -> None:
        """Write a round whose sum was applied."""
        plan = RoundPlan.from_payload(attempt.plan.payload)
        if (plan.round, plan.attempt) not in self._rounds:
            self._write(
                "round-recorded",
                RoundRecorded(
                    run=plan.run,
                    round=plan.round,
                    attempt=plan.attempt,
                    plan_digest=plan.digest().hex(),
                    survivors=attempt.survivors,
                    model_digest_before=plan.model_digest,
                    model_digest_after=model_digest_after,
                    event=plan.dp_event,
                    outcome="applied",
                ),
            )

    def aborted(self, attempt: Attempt) -> None:
        """Write an attempt that ended without a sum."""
        plan = RoundPlan.from_payload(attempt.plan.payload)
        if (plan.round, plan.attempt) not in self._rounds:
            self._write(
                "round-aborted",
                RoundAborted(
                    run=plan.run,
                    round=plan.round,
                    attempt=plan.attempt,
                    plan_digest=plan.digest().hex(),
                    code=attempt.code,
                ),
            )

    def released(self, model_digest: str) -> None:
        """Write that the run's model was handed out."""
        if "release" not in self._kinds:
            body = Release(run=self._settings.run, name="model", model_digest=model_digest)
            self._write("release", body)

    def _write(self, kind: str, body: RunOpened | RoundRecorded | RoundAborted | Release) -> None:
        with self._ledger.turn() as log:
            entry = log.append(kind, body)
        self._kinds.add(kind)
        self._rounds.add(_place(entry))


def _run_of(entry: Entry) -> str:
    return str(getattr(entry.parsed(), "run", ""))


def _place(entry: Entry) -> tuple[int, int] | None:
    body = entry.parsed()
    if isinstance(body, RoundRecorded | RoundAborted):
        return body.round, body.attempt
    return None
