"""Runs over the service in words, and as JSON."""

from collections.abc import Collection, Sequence
from typing import Any

from arion.run_status import RunStatus, Waiting
from coordinator.attempts import Attempt

ACTIONS = {
    "query.recall": "heads of the ledger",
    "query.keys": "keys of an epoch",
    "train.upload": "training",
    "query.survivors": "who is in the sum",
    "query.unmask": "opening the sum",
    "query.head": "heads of the ledger",
    "query.countersign": "signatures of the ledger",
    "query.close": "closing the run",
}
"""What members are asked in a run, for people."""
_NAMED = 3


def attempt_json(attempt: Attempt) -> dict[str, Any]:
    """What programs are told of an attempt."""
    return {
        "round": attempt.round,
        "attempt": attempt.attempt,
        "phase": str(attempt.phase),
        "survivors": list(attempt.survivors),
        "code": attempt.code,
    }


def status_json(status: RunStatus) -> dict[str, Any]:
    """What programs are told of a run."""
    attempts = [attempt_json(attempt) for attempt in status.attempts]
    waiting = status.waiting and {**vars(status.waiting), "missing": list(status.waiting.missing)}
    return {**vars(status), "attempts": attempts, "waiting": waiting}


def status_line(status: RunStatus) -> str:
    """A run in one line, for people."""
    stopped = status.reason or f"go on with arion run resume {status.name} --coordinator HOME"
    reason = f"  {stopped}" if status.state == "stopped" else ""
    if status.state == "finished" and status.round < status.rounds:
        reason = "  its schedule was used up"
    reason = f"  {waiting_words(status.waiting)}" if status.waiting else reason
    return f"{status.name:<24} {status.state:<10} {status.round}/{status.rounds} rounds{reason}"


def sum_words(survivors: Collection[str], members: Collection[str]) -> str:
    """Who is in a round's sum and who is not, for people."""
    missing = sorted(set(members) - set(survivors))
    if not missing:
        return f"{len(survivors)} members in the sum"
    return f"{len(survivors)} of {len(members)} members in the sum, without {_some(missing)}"


def waiting_words(waiting: Waiting) -> str:
    """What members are asked and who is still to answer, for people."""
    what = ACTIONS.get(waiting.action, waiting.action)
    if not waiting.missing:
        return f"{what}: all {waiting.asked} answered"
    answered = waiting.asked - len(waiting.missing)
    return f"{what}: {answered} of {waiting.asked} answered, waits for {_some(waiting.missing)}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
