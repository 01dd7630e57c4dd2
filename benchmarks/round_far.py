"""Seconds of a round whose nodes are far away: every byte arrives half a round trip late.

The nodes dial through an HTTP CONNECT proxy that holds back what it carries, for half the round
trip and as long as the line takes. So calls wait and HTTP/2's windows fill as over a real distance;
what TCP itself loses (its own windows, lost packets) is not shown, for the proxy's ends are near.

The limit is what cannot be saved: the same round beside the coordinator, measured in the same run,
a round trip for each of the four questions of a round (upload, survivors, unmask, countersign), and
the bytes of a node over its line, down and then up.
"""

import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.harness import Row, context, main
from benchmarks.round_ours import OurFederation, parameters_of

NODES = 4
QUESTIONS = 4
DOWN_BYTES, UP_BYTES = 4, 2
"""Of a parameter: fp32, and a word of the ring of 16 bits."""


@dataclass(frozen=True)
class Line:
    """Between a node and its coordinator.

    Attributes:
        round_trip_s: there and back.
        megabits: a second, of each connection in each direction; 0 is no limit.

    """

    round_trip_s: float
    megabits: float = 0.0

    def seconds(self, parameters: int) -> float:
        """What a round's questions and bytes take at least."""
        bits = 8 * parameters * (DOWN_BYTES + UP_BYTES)
        carried = bits / (1e6 * self.megabits) if self.megabits else 0.0
        return QUESTIONS * self.round_trip_s + carried


LINES = {4: (Line(0.02), Line(0.1), Line(0.1, 50)), 100: (Line(0.1), Line(0.1, 200))}
ROUNDS = {4: 10, 100: 5}
QUICK_LINES, QUICK = {4: (Line(0.1),)}, {4: 4}


def run(quick: bool) -> Iterator[Row]:
    """Yield a row for each size and line."""
    rounds = QUICK if quick else ROUNDS
    for megabytes, lines in (QUICK_LINES if quick else LINES).items():
        near = measure(megabytes, Line(0.0), rounds[megabytes])
        for line in lines:
            yield _row(megabytes, line, near, measure(megabytes, line, rounds[megabytes]))


def measure(megabytes: int, line: Line, rounds: int) -> float:
    """Return the median seconds of a round, the first left out."""
    with far(line) as proxy, tempfile.TemporaryDirectory() as folder:
        federation = OurFederation(Path(folder), megabytes, NODES, rounds, proxy=proxy)
        ends, _ = federation.rounds()
    return statistics.median(after - before for before, after in pairwise(ends))


@contextlib.contextmanager
def far(line: Line) -> Iterator[str]:
    """Run a proxy that holds back what it carries; yield its URL."""
    command = [sys.executable, "-m", "benchmarks.round_line"]
    proxy = subprocess.Popen(
        [*command, str(line.round_trip_s / 2), str(line.megabits)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert proxy.stdout is not None
        yield f"http://127.0.0.1:{int(proxy.stdout.readline())}"
    finally:
        proxy.terminate()
        proxy.wait(30)


def _row(megabytes: int, line: Line, near: float, value: float) -> Row:
    parameters = parameters_of(megabytes)
    speed = f", {line.megabits:g} Mbit/s" if line.megabits else ""
    limit = near + line.seconds(parameters)
    return Row(
        f"round of {megabytes} MB, {NODES} nodes, {1e3 * line.round_trip_s:g} ms away{speed}",
        value, "s", limit="beside the coordinator, four round trips, the bytes",
        limit_value=limit, ratio_to_limit=value / limit,
        context=context(["grpcio", "torch"], parameters=parameters, beside_s=near),
    )  # fmt: skip


if __name__ == "__main__":
    main(run)
