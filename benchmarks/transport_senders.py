"""What uploads in `benchmarks.transport`: a node of ours, or a bare client; a process each.

It says on its output that it is ready, and for each line of its input that it is done.
"""

import os
import socket
import ssl
import sys
import time
from contextlib import closing
from pathlib import Path

from benchmarks.transport_receivers import CHUNK, LENGTH, say
from client.membership import MembershipFile
from client.transport import Link


def upload(home: Path, size: int) -> None:
    """A node: for each message named on the input, answer it with a payload of this size."""
    membership = MembershipFile(home).load()
    payload = os.urandom(size)
    with closing(Link(membership.address, membership.credentials)) as link:
        assert not link.answer("0" * 32, "Done", b"", b""), "the connection is open"
        say("ready")
        for line in sys.stdin:
            assert link.answer(line.strip(), "Upload", b"", payload)
            say(time.monotonic())


def send(folder: Path, port: int, size: int) -> None:
    """A bare client: for each line of the input, send a payload of this size."""
    context = ssl.create_default_context(cafile=str(folder / "server.pem"))
    payload = memoryview(os.urandom(size))
    say("ready")
    for _ in sys.stdin:
        plain = socket.create_connection(("127.0.0.1", port))
        with context.wrap_socket(plain, server_hostname="localhost") as connection:
            connection.sendall(size.to_bytes(LENGTH, "big"))
            for start in range(0, size, CHUNK):
                connection.sendall(payload[start : start + CHUNK])
            assert connection.recv(1) == b"k"
        say(time.monotonic())


if __name__ == "__main__":
    role, place, *numbers = sys.argv[1:]
    {"upload": upload, "send": send}[role](Path(place), *map(int, numbers))
