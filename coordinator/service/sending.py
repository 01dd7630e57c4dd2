"""Streams to a member that must keep reading: one that does not is told so and let go."""

import asyncio
from typing import Any

import grpc

from coordinator.service.limits import Limits
from coordinator.service.refusals import Refused


class Sender:
    """Sends the parts of one transfer.

    Args:
        context: of the call.
        limits: of a member; `idle_s` for a part, `transfer_s` for all.
        size: bytes that the transfer has; None for a stream that stays open.

    """

    def __init__(self, context: Any, limits: Limits, size: int | None = None) -> None:
        self._context, self._idle_s = context, limits.idle_s
        self._end = None if size is None else _now() + limits.transfer_s(size)

    async def send(self, part: Any) -> None:
        """Send a part; Refused where it is not read in time."""
        seconds = self._idle_s
        if self._end is not None:
            seconds = min(seconds, max(self._end - _now(), 0.0))
        try:
            await asyncio.wait_for(self._context.write(part), seconds)
        except TimeoutError:
            raise too_slow() from None


def too_slow() -> Refused:
    """What a transfer ends with that does not go on."""
    return Refused(
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "too-slow",
        "Expected a transfer that goes on, got none in time. Call again: it goes on where it was.",
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
