"""What one member may use of the service, so that no member takes it from the others."""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from pydantic import BaseModel, ConfigDict, Field

from coordinator.service.refusals import Refused

_BURST_S = 10.0
_REMEMBERED = 10_000


class Limits(BaseModel):
    """Limits of the service; each refusal has the code that is named here.

    Attributes:
        streams: open streams of a member; "too-many-streams".
        transfers: answers and payloads of a member under way at once; "too-many-transfers".
        calls_per_s: calls of a member, ten seconds' worth at once; "too-many-calls".
        joins_per_s: calls from one address without a certificate; "too-many-calls".
        quota_bytes: answers of a member on the disk; "over-quota".
        reserve_bytes: of the disk that uploads leave free, so that the rest goes on; "disk-full".
        idle_s: seconds without a byte that end a transfer; "too-slow".
        slowest_bytes_per_s: pace that a transfer must keep after `idle_s`; "too-slow".

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    streams: int = Field(default=4, ge=1)
    transfers: int = Field(default=8, ge=1)
    calls_per_s: float = Field(default=50.0, gt=0)
    joins_per_s: float = Field(default=5.0, gt=0)
    quota_bytes: int = Field(default=64 << 30, ge=1)
    reserve_bytes: int = Field(default=256 << 20, ge=0)
    idle_s: float = Field(default=60.0, gt=0)
    slowest_bytes_per_s: int = Field(default=16 << 10, ge=1)

    def transfer_s(self, size: int) -> float:
        """Seconds that a transfer of so many bytes may take."""
        return self.idle_s + size / self.slowest_bytes_per_s


class Slots:
    """At most so many of a thing at once, by caller."""

    def __init__(self, most: int, code: str, what: str) -> None:
        self._most, self._code, self._what = most, code, what
        self._held: Counter[str] = Counter()

    @property
    def holders(self) -> tuple[str, ...]:
        """Who holds one."""
        return tuple(self._held)

    @contextmanager
    def take(self, caller: str) -> Iterator[None]:
        """Hold one, or refuse."""
        if self._held[caller] >= self._most:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                self._code,
                f"Expected at most {self._most} {self._what} at once, got one more. Close one.",
            )
        self._held[caller] += 1
        try:
            yield
        finally:
            self._held[caller] -= 1
            if not self._held[caller]:
                del self._held[caller]


class Pace:
    """At most so many calls a second, by caller; ten seconds' worth may come at once.

    Callers that were quiet for longest are forgotten, so that memory is bounded.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._clock = per_s, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def count(self, caller: str) -> None:
        """Count a call, or refuse it."""
        now, most = self._clock(), max(1.0, self._per_s * _BURST_S)
        left, counted = self._left.pop(caller, (most, now))
        left = min(most, left + (now - counted) * self._per_s)
        self._left[caller] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)
        if left < 1:
            raise Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "too-many-calls",
                f"Expected at most {self._per_s:g} calls a second, got more. Call more slowly.",
            )
