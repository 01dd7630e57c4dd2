"""Whom the coordinator waits for, and how long: less for who did not answer before."""

import time
from collections.abc import Callable, Iterable, Set

from coordinator.channel import Channel

_LOOK_S = 1.0
"""How often it is looked who is there: in a service that is a question to its database."""
_GRACE = 2.0
"""For who hung before, as multiples of the time that the others needed."""


class Patience:
    """When to wait again for who listens and does not answer: after 2 plans, then 4, then 8."""

    def __init__(self) -> None:
        self._plans = 0
        self._waits: dict[int, int] = {}
        self._again: dict[int, int] = {}

    def count(self, there: Iterable[int]) -> None:
        """Count a plan; who is not there starts afresh when it comes back."""
        self._plans += 1
        for address in self._again.keys() - set(there):
            del self._waits[address], self._again[address]

    def note(self, answered: Iterable[int], silent: Iterable[int]) -> None:
        """Note who answered, and who was waited for and did not."""
        for address in answered:
            self._waits.pop(address, None)
            self._again.pop(address, None)
        for address in silent:
            self._waits[address] = 2 * self._waits.get(address, 1)
            self._again[address] = self._plans + self._waits[address]

    def due(self, addresses: Iterable[int]) -> list[int]:
        """Return those of some addresses that are to be waited for."""
        return [at for at in addresses if self._plans >= self._again.get(at, 0)]


class Wait:
    """One waiting for answers: over when whoever is left is away, or was not worth it before.

    Args:
        asked: addresses.
        hung: those that are given no more than twice the time that the others need.
        channel: tells who is there.
        is_enough: whether it is possible to go on with what has come.

    Attributes:
        missing: those that have not answered.

    """

    def __init__(
        self,
        asked: Iterable[int],
        hung: Set[int],
        channel: Channel,
        is_enough: Callable[[], bool],
    ) -> None:
        self.missing, self._hung = set(asked), hung
        self._channel, self._is_enough = channel, is_enough
        self._started = self._last = self._looked = time.monotonic()
        self._gone: Set[int] = frozenset()

    def note(self, address: int) -> None:
        """Note an answer."""
        self.missing.discard(address)
        self._last = time.monotonic()

    def is_over(self) -> bool:
        """Tell whether to go on without those that have not answered."""
        if not self._is_enough():
            return False
        left: Set[int] = self.missing
        if left:
            left = left - self._away()
        if left and self._is_grace_over():
            left = left - self._hung
        return not left

    def silent(self, deadline_s: float) -> Set[int]:
        """Return who was waited for until the deadline; nobody where it has not passed."""
        if time.monotonic() - self._started < deadline_s:
            return frozenset()
        return self.missing - self._hung

    def _is_grace_over(self) -> bool:
        needed_s = self._last - self._started
        return time.monotonic() - self._started >= _GRACE * needed_s

    def _away(self) -> Set[int]:
        """Return who is away; nobody where nobody is there, for then it is the service that was."""
        if time.monotonic() - self._looked >= _LOOK_S:
            self._looked = time.monotonic()
            there = set(self._channel.addresses(0, 0.0))
            self._gone = self.missing - there if there else frozenset()
        return self._gone
