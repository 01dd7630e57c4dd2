"""What a round came to, told to whoever observes a run in the same process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from coordinator.attempt import AttemptReport
from coordinator.attempts import Attempt
from coordinator.channel import Traffic
from models.optimiser import OptimiserState


@dataclass(frozen=True)
class RoundOutcome:
    """One attempt, for people; holds nothing private.

    Attributes:
        round, attempt: which.
        survivors: members in the sum; empty where it was aborted.
        code: "" or why it was aborted.
        spoilt: members of groups whose sum some member of the group spoilt.
        refusals: code and detail by member.
        seconds: by phase.
        sent_bytes, received_bytes: traffic of the coordinator.
        near_edge: coordinates of the sum beyond 7/8 of the ring's range: a wrap would be silent.
        model_digest: after the round, hex.

    """

    round: int
    attempt: int
    survivors: tuple[str, ...]
    code: str
    spoilt: tuple[str, ...]
    refusals: dict[str, tuple[str, str]]
    seconds: dict[str, float]
    sent_bytes: int
    received_bytes: int
    near_edge: int
    model_digest: str


def outcome_of(
    attempt: Attempt, report: AttemptReport, traffic: Traffic, near_edge: int, model_digest: str
) -> RoundOutcome:
    """Put together what is told of an attempt.

    Args:
        attempt: as it ended. traffic: of this attempt alone.

    """
    return RoundOutcome(
        round=attempt.round,
        attempt=attempt.attempt,
        survivors=attempt.survivors,
        code=attempt.code,
        spoilt=attempt.spoilt,
        refusals=dict(report.refusals),
        seconds=dict(report.seconds),
        sent_bytes=traffic.sent_bytes,
        received_bytes=traffic.received_bytes,
        near_edge=near_edge,
        model_digest=model_digest,
    )


Observer = Callable[[RoundOutcome, OptimiserState], None]
_OBSERVER: ContextVar[Observer | None] = ContextVar("arion_run_observer", default=None)


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Call `observer` after every attempt of runs driven inside the block."""
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


def tell_observer(outcome: RoundOutcome, state: OptimiserState) -> None:
    """Tell the observer of this context, if there is one."""
    observer = _OBSERVER.get()
    if observer is not None:
        observer(outcome, state)
