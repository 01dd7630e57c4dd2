"""The soak itself: processes kept up, killed at random, and watched."""

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from arion.run_status import RunStatus, status_of
from benchmarks.soak_checks import violations
from benchmarks.soak_federation import Operator, SoakFederation, rounds_of
from benchmarks.soak_memory import Sample, Samples
from benchmarks.soak_processes import Events, Fleet, Unit, rss_mb
from benchmarks.soak_state import State, read_state
from coordinator.attempts import Phase

STUCK_S = 300.0
"""Without a round that ended, something hangs."""
_TICK_S, _SAMPLE_S, _SAY_S = 0.1, 1.0, 15.0
_SETTLED_S = 600.0
_LATE_WRITES_S = 3.0


class Soak:
    """A federation that is kept up and disturbed.

    Args:
        federation: where it lies.
        rounds: that shall end.
        between_kills: seconds, on average; they are drawn from half to one and a half of it.
        seed: of who is killed and when.

    Attributes:
        violations: rules that were broken, in words.

    """

    def __init__(
        self, federation: SoakFederation, rounds: int, between_kills: float, seed: int
    ) -> None:
        self.federation, self._rounds, self._between = federation, rounds, between_kills
        self.events = Events(federation.folder / "events.jsonl")
        self.samples = Samples(federation.folder / "memory.csv")
        self.violations: list[str] = []
        self._chance = random.Random(f"{seed} after {len(self.events.read())} events")
        self._operator = Operator(federation)
        self._driver = Unit("driver", "driver", self._drive)
        self._fleet = Fleet(
            [*self._served(), self._driver], federation.folder / "logs", self.events
        )
        self._next: Callable[[RunStatus | None], Sequence[str] | None] = self._carry_on
        self._checked: set[str] = set()
        self._over: dict[str, tuple[int, int]] = {}
        self._is_quiet, self._sampling = False, _Every(_SAMPLE_S)

    def run(self, until: float) -> None:
        """Soak until enough rounds have ended or a moment (monotonic) has come; then settle."""
        try:
            self._disturb(until)
            self._settle()
        finally:
            self._fleet.stop()
        self.check()

    def state(self) -> State:
        """Everything on the disk."""
        there = self.federation
        return read_state(there.folder, there.service, there.runs(), there.nodes)

    def check(self) -> None:
        """Hold everything on the disk against the rules.

        A node may still answer what a driver asked before it was killed. What is torn because it
        was read in that moment is whole a little later; what is wrong stays wrong.
        """
        if not any(status_of(home).attempts for home in self.federation.runs().values()):
            return  # no epoch was ever entered: nobody has signed anything
        if violations(self.state()):
            time.sleep(_LATE_WRITES_S)
        found = violations(self.state())
        self.violations += [fault for fault in found if fault not in self.violations]

    def rounds(self) -> tuple[int, int]:
        """Rounds recorded and given up, in all runs."""
        counts = []
        for name, home in self.federation.runs().items():
            if name not in self._over:
                status = status_of(home)
                counts.append(rounds_of(status))
                if status.is_over:
                    self._over[name] = counts.pop()
        counts += self._over.values()
        return sum(recorded for recorded, _ in counts), sum(given_up for _, given_up in counts)

    def _disturb(self, until: float) -> None:
        """Kill, until enough rounds have ended."""
        ended, changed = -1, time.monotonic()
        kill_at = changed + self._pause()
        say = _Every(_SAY_S)
        while ended < self._rounds and time.monotonic() < until and not self.violations:
            self._watch()
            if time.monotonic() >= kill_at:
                self._fleet.kill(self._chance, place=self._place())
                kill_at = time.monotonic() + self._pause()
            if (now := sum(self.rounds())) != ended:
                ended, changed = now, time.monotonic()
            if time.monotonic() > changed + STUCK_S:
                self.violations.append(f"no round ended for {STUCK_S:g} s, after {ended}")
            if say.is_due():
                self._say()

    def _settle(self) -> None:
        """End what is under way, and have one run that nobody disturbs."""
        if self._driver.pid and not self._driver.is_killed:
            self._fleet.end(self._driver, place=self._place())
        self._next = lambda last: self._operator.cancel(last.name) if _is_open(last) else None
        self._wait(lambda last: not _is_open(last), "the last run to be cancelled")
        if self.violations:
            return
        before, self._is_quiet = len(self.federation.runs()), True
        self._next = self._one_more(before)
        self._wait(
            lambda last: len(self.federation.runs()) > before and not _is_open(last),
            "an undisturbed run to end",
        )
        last = self._operator.last()
        if last and any(attempt.phase == Phase.ABORTED for attempt in last.attempts):
            self.violations.append(f"{last.name} had an aborted attempt, though nothing was killed")

    def _one_more(self, before: int) -> Callable[[RunStatus | None], Sequence[str] | None]:
        def command(last: RunStatus | None) -> Sequence[str] | None:
            is_there = len(self.federation.runs()) > before
            return None if is_there and not _is_open(last) else self._operator.command()

        return command

    def _wait(self, is_done: Callable[[RunStatus | None], bool], what: str) -> None:
        end, say = time.monotonic() + _SETTLED_S, _Every(_SAY_S)
        while self._driver.pid or not is_done(self._operator.last()):
            self._watch()
            if say.is_due():
                self._say()
            if self.violations:
                return
            if time.monotonic() > end:
                self.violations.append(f"waited for {_SETTLED_S:g} s in vain for {what}")
                return

    def _watch(self) -> None:
        """Keep everything up for a moment, and see how much memory it has."""
        self._fleet.tick()
        if self._sampling.is_due():
            ended = sum(self.rounds())
            found = [(unit, rss_mb(unit.pid)) for unit in self._fleet.units if unit.pid]
            self.samples.add(self._sample(unit, ended, mb) for unit, mb in found if mb)
        time.sleep(_TICK_S)

    def _sample(self, unit: Unit, ended: int, mb: float) -> Sample:
        age = round(time.monotonic() - unit.born, 1)
        return Sample(unit.name, unit.kind, unit.pid, age, ended, self._is_quiet, round(mb, 2))

    def _drive(self) -> Sequence[str] | None:
        """What the driver does when it is started; the files are checked when a run is over."""
        last = self._operator.last()
        if last is not None and last.is_over and last.name not in self._checked:
            self._checked.add(last.name)
            self.check()
        return None if self.violations else self._next(last)

    def _carry_on(self, _: RunStatus | None) -> Sequence[str]:
        return self._operator.command()

    def _served(self) -> list[Unit]:
        def unit(name: str, kind: str, home: Path, *words: str) -> Unit:
            return Unit(name, kind, lambda: (*words, str(home)))

        nodes = [
            unit(name, "node", home, "node", "run") for name, home in self.federation.nodes.items()
        ]
        service = self.federation.service
        return [unit("coordinator", "coordinator", service, "coordinator", "serve"), *nodes]

    def _place(self) -> list[str | int] | None:
        """The newest attempt: run, round, attempt, phase."""
        last = self._operator.last()
        if last is None or not last.attempts:
            return None
        newest = last.attempts[-1]
        return [last.name, newest.round, newest.attempt, str(newest.phase)]

    def _pause(self) -> float:
        return self._between * self._chance.uniform(0.5, 1.5)

    def _say(self) -> None:
        recorded, given_up = self.rounds()
        kills = sum(event["event"] == "kill" for event in self.events.read())
        print(
            f"{recorded} rounds recorded, {given_up} given up, {kills} kills; {self._place()}",
            flush=True,
        )


class _Every:
    """True at most once in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time."""
        if time.monotonic() < self._next:
            return False
        self._next = time.monotonic() + self._seconds
        return True


def _is_open(status: RunStatus | None) -> bool:
    return status is not None and not status.is_over
