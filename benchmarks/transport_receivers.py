"""What `benchmarks.transport` uploads to: our service, or a bare sink; a process each.

It says on its output where it listens, serves until its input ends, and then says how much memory
it had.
"""

import asyncio
import os
import socket
import ssl
import sys
import threading
from contextlib import closing
from pathlib import Path

from blake3 import blake3

from arion.memory import keep_freed_memory
from coordinator.service.home import ServiceHome
from coordinator.service.serve import Service
from privacy.ledger.files import sync_directory, write_all

CHUNK = 1 << 20
LENGTH = 8


def say(*words: object) -> None:
    """Tell the benchmark."""
    print(*words, flush=True)


def peak_mb() -> float:
    """Largest resident memory of this process so far, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def serve(home: Path) -> None:
    """Our service, until its input ends."""

    async def run() -> None:
        service = Service(opened)
        ports = await service.start()
        say(ports.exchange, ports.enrolment)
        await asyncio.to_thread(sys.stdin.read)
        await service.stop()

    with closing(ServiceHome.open(home)) as opened:
        asyncio.run(run())
    say(peak_mb())


def sink(folder: Path) -> None:
    """A bare TLS socket: what comes is hashed, written, flushed and renamed, as a payload is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    listener = socket.create_server(("127.0.0.1", 0))
    say(listener.getsockname()[1])
    threading.Thread(target=_accept, args=(listener, context, folder), daemon=True).start()
    sys.stdin.read()
    say(peak_mb())
    os._exit(0)


def _accept(listener: socket.socket, context: ssl.SSLContext, folder: Path) -> None:
    while True:
        plain, _ = listener.accept()
        threading.Thread(target=_take, args=(context, plain, folder), daemon=True).start()


def _take(context: ssl.SSLContext, plain: socket.socket, folder: Path) -> None:
    with context.wrap_socket(plain, server_side=True) as connection:
        left = int.from_bytes(connection.recv(LENGTH), "big")
        part = folder / f"{threading.get_ident()}.part"
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        digest, room = blake3(), memoryview(bytearray(CHUNK))
        while left:
            count = connection.recv_into(room)
            digest.update(room[:count])
            write_all(file, room[:count])
            left -= count
        os.fsync(file)
        os.close(file)
        part.replace(folder / digest.hexdigest())
        sync_directory(folder)
        connection.sendall(b"k")


if __name__ == "__main__":
    role, place = sys.argv[1:]
    keep_freed_memory()  # as every command does
    {"serve": serve, "sink": sink}[role](Path(place))
