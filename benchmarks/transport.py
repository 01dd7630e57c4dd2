"""How fast updates come in: our service beside a bare TLS socket into the same kind of sink.

Every party is a process of its own on loopback. Ours: mutual TLS, the member's row asked, a
durable message answered; each chunk is written as it comes, flushed, hashed and named by its
digest. Limit: a TLS socket of Python's `ssl`, a thread per connection: hashed, written, flushed,
renamed. In both, 1 MiB at a time. The clock runs from the word "go" to the last acknowledgement.

Memory: the largest resident size of the service's process over all uploads, beside 100 MB and one
update.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from benchmarks.harness import Row, context, main, paired_ratio
from client.membership import collect, join
from coordinator.service.home import ServiceHome, ServiceSettings
from coordinator.service.limits import Limits
from privacy.enrolment import key_pem, new_connection_key

LIMIT = "TLS socket"
PACKAGES = ["grpcio", "cryptography"]
RUN = "benchmark"
_ROOM_MB = 100


def run(quick: bool) -> Iterator[Row]:
    """Yield the rows: one node and four."""
    size = 64_000_000 if quick else 400_000_000
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_parties:
        stage = Stage(Path(folder), size, open_parties)
        for nodes in (1, 4):
            yield stage.row(nodes, 3 if quick else 5)
        yield stage.memory_row()


class Party:
    """A process that answers lines with lines."""

    def __init__(self, side: str, *arguments: object) -> None:
        command = [sys.executable, "-m", f"benchmarks.transport_{side}", *map(str, arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.first = self.heard()

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)

    def heard(self) -> list[str]:
        assert self._process.stdout is not None
        return self._process.stdout.readline().split()

    def close(self) -> list[str]:
        """End its input; return what it says last."""
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            self._process.stdin.close()
        said = self.heard()
        self._process.wait(60)
        return said


class Stage:
    """Both receivers, and as many senders for each as are asked for."""

    def __init__(self, folder: Path, size: int, open_parties: ExitStack) -> None:
        self._folder, self._size, self._open = folder, size, open_parties
        settings = ServiceSettings(
            federation="benchmark",
            hosts=("localhost",),
            port=0,
            enrolment_port=0,
            limits=Limits(quota_bytes=1 << 40, reserve_bytes=0),
        )
        self._home = ServiceHome.create(folder / "service", settings)
        open_parties.callback(self._home.close)
        self._service = self._party("receivers", "serve", folder / "service")
        self._sink_folder = folder / "sink"
        self._sink_folder.mkdir()
        self._write_pair()
        self._sink = self._party("receivers", "sink", self._sink_folder)
        self._nodes: list[Party] = []
        self._senders: list[Party] = []

    def row(self, nodes: int, repetitions: int) -> Row:
        """The rate with so many nodes at once."""
        while len(self._nodes) < nodes:
            self._nodes.append(self._enrolled(len(self._nodes) + 1))
            port = self._sink.first[0]
            self._senders.append(
                self._party("senders", "send", self._sink_folder, port, self._size)
            )
        seconds: dict[str, list[float]] = {"ours": [], LIMIT: []}
        for repetition in range(repetitions + 1):
            ours, limit = self._ours(nodes), self._limit(nodes)
            if repetition:
                seconds["ours"].append(ours)
                seconds[LIMIT].append(limit)
        total = nodes * self._size / 1e9
        rates = {name: total / statistics.median(found) for name, found in seconds.items()}
        return Row(
            f"uploads, {nodes} node{'s' * (nodes > 1)}", rates["ours"], "GB/s", limit=LIMIT,
            limit_value=rates[LIMIT], ratio_to_limit=paired_ratio(seconds[LIMIT], seconds["ours"]),
            context=self._context(nodes=nodes, repetitions=repetitions),
        )  # fmt: skip

    def memory_row(self) -> Row:
        """The service's memory; ends it."""
        peak = float(self._service.close()[0])
        limit = _ROOM_MB + self._size / 1e6
        return Row(
            "memory of the service", peak, "MB", limit="100 MB and one update", limit_value=limit,
            ratio_to_limit=peak / limit, context=self._context(nodes=len(self._nodes)),
        )  # fmt: skip

    def _ours(self, nodes: int) -> float:
        mailbox = self._home.mailbox
        messages = [
            mailbox.post(RUN, number, "train.upload", ("UploadRequest", b"", b""))
            for number in range(1, nodes + 1)
        ]
        seconds = _timed(self._nodes[:nodes], messages)
        mailbox.clear(RUN)
        return seconds

    def _limit(self, nodes: int) -> float:
        seconds = _timed(self._senders[:nodes], ["go"] * nodes)
        for path in self._sink_folder.iterdir():
            if path.suffix not in (".pem", ".key"):
                path.unlink()
        return seconds

    def _party(self, side: str, *arguments: object) -> Party:
        party = Party(side, *arguments)
        self._open.callback(party.close)
        return party

    def _enrolled(self, number: int) -> Party:
        """A node's process, joined and approved; its address is its number."""
        exchange, enrolment = map(int, self._service.first)
        home, name = self._folder / f"node-{number}", f"node-{number}"
        token = str(self._home.registry.invite(name))
        join(home, "localhost", (exchange, enrolment), token)
        assert self._home.registry.approve(name).address == number
        collect(home, 5)
        return self._party("senders", "upload", home, self._size)

    def _write_pair(self) -> None:
        key = new_connection_key()
        certificate = self._home.authority.issue_server(key, ["localhost"])
        chain = certificate.public_bytes(Encoding.PEM) + self._home.authority.pem
        (self._sink_folder / "server.pem").write_bytes(chain)
        (self._sink_folder / "server.key").write_bytes(key_pem(key))

    def _context(self, **details: object) -> dict[str, object]:
        return context(PACKAGES, update_bytes=self._size, **details)


def _timed(parties: list[Party], lines: list[str]) -> float:
    """Seconds from the first word to the last acknowledgement."""
    begin = time.monotonic()
    for party, line in zip(parties, lines, strict=True):
        party.tell(line)
    return max(float(party.heard()[0]) for party in parties) - begin


if __name__ == "__main__":
    main(run)
