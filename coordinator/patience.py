"""Whom the coordinator asks and waits for: not who is away, and less often who let it wait."""

import time
from collections.abc import Callable, Iterable, Set

from coordinator.channel import Channel

_LOOK_S = 1.0
"""How often it is looked who is there: in a service that is a question to its database."""
_ABSENT_S = 60.0
"""How long we must have seen that somebody is away."""
_LONGEST_WAIT = 8


class Patience:
    """When to ask those again that listen and do not answer: after 2 plans, 4, and then each 8."""

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
            self._waits[address] = min(2 * self._waits.get(address, 1), _LONGEST_WAIT)
            self._again[address] = self._plans + self._waits[address]

    def due(self, addresses: Iterable[int]) -> list[int]:
        """Return those of some addresses that are to be asked."""
        return [at for at in addresses if self._plans >= self._again.get(at, 0)]


class Wait:
    """One waiting for answers, which goes on without members that are away where it can.

    Args:
        channel: tells who is there.
        is_enough: whether what has come is enough to go on with.

    Attributes:
        left: addresses that have not answered; `Channel.exchange` keeps it.

    """

    def __init__(self, channel: Channel, is_enough: Callable[[], bool]) -> None:
        self.left: Set[int] = frozenset()
        self._channel, self._is_enough = channel, is_enough
        self._looked = time.monotonic()
        self._absent: dict[int, float] = {}

    def is_over(self) -> bool:
        """Tell whether to go on without those that have not answered."""
        return self.left <= self._away() and self._is_enough()

    def silent(self) -> Set[int]:
        """Return who listens and did not answer, once the waiting has ended."""
        if not self.left:
            return self.left
        return self.left & set(self._channel.addresses(0, 0.0))

    def _away(self) -> Set[int]:
        """Return who has been away for a while, as we saw it.

        After a fault of the service or the network members come back one by one, those that train
        last. So where nobody is there, nobody is away.
        """
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            there = set(self._channel.addresses(0, 0.0))
            absent = self.left - there if there else frozenset[int]()
            self._absent = {at: self._absent.get(at, now) for at in absent}
        return {at for at, since in self._absent.items() if now - since >= _ABSENT_S}
