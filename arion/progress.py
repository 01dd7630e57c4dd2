"""Progress of long work: a bar on a terminal, a line now and then elsewhere; on standard error."""

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

_QUIET_S = 10.0


class Progress(Protocol):
    """Who is told how a long run goes."""

    def stage(self, name: str, steps: int) -> None:
        """A stage of so many steps begins."""

    def step(self, done: int, text: str) -> None:
        """So many steps of the stage are done."""

    def note(self, text: str) -> None:
        """Something worth knowing."""

    def close(self) -> None:
        """Nothing more will be told."""


def make_progress() -> Progress:
    """A bar where a person watches, lines elsewhere."""
    console = Console(stderr=True)
    return TerminalProgress(console) if console.is_terminal else LineProgress()


class TerminalProgress:
    """A bar per stage, with its time left."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description:>18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
        )
        self._bars.start()
        self._task: TaskID | None = None

    def stage(self, name: str, steps: int) -> None:
        """See `Progress.stage`."""
        self._task = self._bars.add_task(name, total=steps, text="")

    def step(self, done: int, text: str) -> None:
        """See `Progress.step`."""
        if self._task is not None:
            self._bars.update(self._task, completed=done, text=text)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        self._bars.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """See `Progress.close`."""
        self._bars.stop()


class LineProgress:
    """A line at a stage's beginning and end, and every ten seconds between."""

    def __init__(self) -> None:
        self._name, self._steps, self._started, self._told = "", 0, 0.0, 0.0
        self._is_over = False

    def stage(self, name: str, steps: int) -> None:
        """See `Progress.stage`."""
        self._name, self._steps = name, steps
        self._started = self._told = time.monotonic()
        self._is_over = False
        self.note(f"{name}: {steps} steps")

    def step(self, done: int, text: str) -> None:
        """See `Progress.step`."""
        now = time.monotonic()
        if self._is_over or (done < self._steps and now - self._told < _QUIET_S):
            return
        self._told, self._is_over = now, done >= self._steps
        left = (now - self._started) / max(done, 1) * max(self._steps - done, 0)
        self.note(f"{self._name}: {done}/{self._steps}  {text}  about {left:.0f} s left")

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """See `Progress.close`."""


class Silent:
    """Tells nobody."""

    def stage(self, name: str, steps: int) -> None:
        """See `Progress.stage`."""

    def step(self, done: int, text: str) -> None:
        """See `Progress.step`."""

    def note(self, text: str) -> None:
        """See `Progress.note`."""

    def close(self) -> None:
        """See `Progress.close`."""


class Stage:
    """A stage of progress whose length is known when its first step is done."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name, self._begun = progress, name, False

    def __call__(self, done: int, total: int) -> None:
        if not self._begun:
            self._progress.stage(self._name, total)
            self._begun = True
        self._progress.step(done, "")
