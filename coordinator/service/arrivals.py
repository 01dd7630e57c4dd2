"""Wakes a node's stream when a message for it comes, from whichever process.

One look at the mailbox serves all streams, however many there are.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

from coordinator.service.doors import SERVICE, Door
from coordinator.service.mailbox import Mailbox

_LOG = logging.getLogger("arion.service")
_POLL_S, _LOOK_S = 0.05, 0.25
_FIRST_POLL_S = 0.002
_AFTER_FAILURE_S = 1.0


class Arrivals:
    """The bells of one service's streams.

    Args:
        mailbox: that runs, which are processes of their own, write to.

    """

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._bells: defaultdict[int, set[asyncio.Event]] = defaultdict(set)

    @contextmanager
    def bell(self, address: int) -> Iterator[asyncio.Event]:
        """An event that is set when something may have come for a node."""
        bell = asyncio.Event()
        self._bells[address].add(bell)
        try:
            yield bell
        finally:
            self._bells[address].discard(bell)
            if not self._bells[address]:
                del self._bells[address]

    async def watch(self) -> None:
        """Look at the mailbox until cancelled; a database that is away is asked again."""
        with closing(self._mailbox.doors.open(SERVICE)) as door, _knocks(door) as knocked:
            await self._watch(door, knocked)

    async def _watch(self, door: Door, knocked: asyncio.Event) -> None:
        seen: dict[int, tuple[int, float]] = {}
        pause = _POLL_S
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(knocked.wait(), _LOOK_S if door.was_heard else pause)
            knocked.clear()
            try:
                newest = await asyncio.to_thread(self._mailbox.newest)
            except OSError as error:
                _LOG.error("the mailbox cannot be read: %s", error)
                await asyncio.sleep(_AFTER_FAILURE_S)
                continue
            # One phase follows another at once: after news it looks often, then less so; not where
            # drivers knock.
            pause = min(1.5 * pause, _POLL_S) if newest == seen else _FIRST_POLL_S
            for address, found in newest.items():
                if seen.get(address) != found:
                    for bell in self._bells.get(address, ()):
                        bell.set()
            seen = newest


@contextmanager
def _knocks(door: Door) -> Iterator[asyncio.Event]:
    """An event that is set when someone knocks."""
    knocked, loop, socket = asyncio.Event(), asyncio.get_running_loop(), door.socket
    if socket is None:
        yield knocked
        return

    def hear() -> None:
        door.hear()
        knocked.set()

    loop.add_reader(socket, hear)
    try:
        yield knocked
    finally:
        loop.remove_reader(socket)
