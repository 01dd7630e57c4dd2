"""Whether memory stays flat: samples of resident size, judged in two ways.

Against rounds: the largest size of each process that saw two rounds end, first quarter of the soak
beside the last, so that what a longer history costs shows. Against age: a run that nobody
disturbs, its second half, so that a leak of one process shows, which restarts would hide.
"""

import csv
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

FEWEST_ROUNDS = 2
GROWTH = 1.10
"""Last quarter over first, at most."""
PER_ROUND_MB = 0.25
"""Growth of one process in an undisturbed run, at most."""
_FEWEST = 8


@dataclass(frozen=True)
class Sample:
    """Resident size of one process at one time.

    Attributes:
        name, kind, pid: whose.
        age: seconds since it was started.
        rounds: that had ended.
        is_quiet: whether nothing was killed any more.
        mb: resident size, 10^6 bytes.

    """

    name: str
    kind: str
    pid: int
    age: float
    rounds: int
    is_quiet: bool
    mb: float


@dataclass(frozen=True)
class Memory:
    """What was found for one kind of process; None where there were too few samples.

    Attributes:
        first, last: median of the processes' largest sizes in the first and the last quarter, MB.
        per_round: median growth over rounds in the undisturbed run, MB.

    """

    first: float | None
    last: float | None
    per_round: float | None

    def faults(self, kind: str) -> Iterable[str]:
        """What is not flat, in words."""
        if self.first and self.last and self.last > GROWTH * self.first:
            yield f"memory of a {kind} grew from {self.first:.0f} to {self.last:.0f} MB"
        if self.per_round is not None and self.per_round > PER_ROUND_MB:
            yield f"memory of a {kind} grew by {self.per_round:.2f} MB a round when undisturbed"


class Samples:
    """A file of samples, one a line.

    Args:
        path: appended to.

    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, samples: Iterable[Sample]) -> None:
        """Append some."""
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerows(astuple(sample) for sample in samples)

    def read(self) -> list[Sample]:
        """All of them, oldest first."""
        if not self._path.exists():
            return []
        names = [field.name for field in fields(Sample)]
        with self._path.open(newline="") as file:
            return [_sample(row) for row in csv.DictReader(file, names)]


def judge(samples: Sequence[Sample], kind: str) -> Memory:
    """Judge one kind of process."""
    lives: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.kind == kind:
            lives[sample.name, sample.pid].append(sample)
    first, last = _quarters(
        [
            max(each.mb for each in life)
            for life in lives.values()
            if life[-1].rounds - life[0].rounds >= FEWEST_ROUNDS
        ]
    )
    quiet = [[each for each in life if each.is_quiet] for life in lives.values()]
    slopes = [slope for life in quiet if (slope := _slope(life)) is not None]
    return Memory(first, last, statistics.median(slopes) if slopes else None)


def _quarters(largest: Sequence[float]) -> tuple[float | None, float | None]:
    if len(largest) < _FEWEST:
        return None, None
    quarter = len(largest) // 4
    return statistics.median(largest[:quarter]), statistics.median(largest[-quarter:])


def _slope(life: Sequence[Sample]) -> float | None:
    """MB a round over the second half of a life's rounds."""
    if not life:
        return None
    middle = (life[0].rounds + life[-1].rounds) / 2
    late = [each for each in life if each.rounds >= middle]
    if len({each.rounds for each in late}) < _FEWEST // 2:
        return None
    return float(np.polyfit([each.rounds for each in late], [each.mb for each in late], 1)[0])


def _sample(row: dict[str, str]) -> Sample:
    return Sample(
        row["name"], row["kind"], int(row["pid"]), float(row["age"]), int(row["rounds"]),
        row["is_quiet"] == "True", float(row["mb"]),
    )  # fmt: skip
