"""Knocks between the processes of one coordinator, so that none waits for its next look.

The service and each run's driver share a database and look into it from time to time. Whoever wrote
something there knocks: an empty datagram over one of Linux's abstract sockets. It carries nothing
and proves nothing; any process of the machine may send one, and who hears it looks a little
earlier. Where no door is to be had (another system, a container of its own) looking is all.
"""

import hashlib
import select
import socket
import time
from contextlib import suppress
from pathlib import Path

SERVICE = "service"
_MOST_AT_ONCE = 64


def run_door(run: str) -> str:
    """Return the name of the door of a run's driver."""
    return f"run/{run}"


class Door:
    """Where one process is knocked at; `was_heard` once it ever was."""

    def __init__(self, address: bytes) -> None:
        self.was_heard = False
        self.socket: socket.socket | None = None
        with suppress(OSError, AttributeError):  # taken by another process; not on this system
            opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            opened.setblocking(False)
            try:
                opened.bind(address)
            except OSError:
                opened.close()
                raise
            self.socket = opened

    def wait(self, seconds: float) -> None:
        """Wait until someone knocks, or so long."""
        if self.socket is None:
            time.sleep(seconds)
        elif select.select([self.socket], [], [], seconds)[0]:
            self.hear()

    def hear(self) -> None:
        """Take the knocks that came."""
        assert self.socket is not None, "only an open door is knocked at"
        self.was_heard = True
        with suppress(BlockingIOError):
            for _ in range(_MOST_AT_ONCE):
                self.socket.recv(1)

    def close(self) -> None:
        """Nobody is knocked at here any more."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class Doors:
    """The doors of one coordinator's processes.

    Args:
        home: the coordinator's.

    """

    def __init__(self, home: Path) -> None:
        self._home = str(home.resolve()).encode()
        self._sender: socket.socket | None = None
        with suppress(OSError, AttributeError):
            self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._sender.setblocking(False)

    def open(self, name: str) -> Door:
        """Open a door; one that cannot be had is never knocked at."""
        return Door(self._address(name))

    def knock(self, name: str) -> None:
        """Knock; nothing happens where nobody is."""
        if self._sender is not None:
            with suppress(OSError):
                self._sender.sendto(b"", self._address(name))

    def close(self) -> None:
        """Give the socket back."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def _address(self, name: str) -> bytes:
        """Begin with NUL: an abstract name, which no file holds and the kernel forgets."""
        named = hashlib.sha256(self._home + b"\0" + name.encode()).hexdigest()[:32]
        return b"\0arion/" + named.encode()
