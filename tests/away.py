"""Members of the small federation that are away: who can be reached, and what became of a run."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

import client.app
from arion.local_grid import LocalGrid
from coordinator.app import GridChannel
from coordinator.driver import RunDriver
from coordinator.store import RunStore
from models.optimiser import OptimiserState
from privacy.rounds import RoundPlan
from tests.small_federation import SmallFederation

OTHERS = ("east", "north", "south")
"""All of the usual four but west."""
OPENING = ("keys", "roster", "reveals", "recall", "countersign")
"""What is asked while an epoch is opened."""


class Reach(LocalGrid):
    """A grid that knows who can be reached: whoever is not in `away`."""

    def __init__(self, federation: SmallFederation, *away: str) -> None:
        super().__init__(client.app.app, federation.homes.nodes, lambda name, _: name in self.away)
        self.away = set(away)

    def get_node_ids(self) -> Iterable[int]:
        return [place for place, name in self._names.items() if name not in self.away]


class Impatient(GridChannel):
    """Does not wait for nodes; the deadline is for answers."""

    def addresses(self, count: int, deadline_s: float) -> Sequence[int]:
        return super().addresses(count, min(deadline_s, 0.0))


def drive(federation: SmallFederation, grid: LocalGrid, home: Path | None = None) -> OptimiserState:
    """Drive the run, or that of another home, over a grid to its end."""
    client.app.close_nodes()
    driver = RunDriver(home or federation.homes.coordinator, Impatient(grid))
    try:
        return driver.run()
    finally:
        driver.close()
        client.app.close_nodes()


def plans(federation: SmallFederation) -> list[RoundPlan]:
    store = RunStore(federation.homes.coordinator)
    attempts = store.attempts()
    store.close()
    return [RoundPlan.from_payload(attempt.plan.payload) for attempt in attempts]


def survivors(federation: SmallFederation) -> list[tuple[str, ...]]:
    rounds = federation.bodies("coordinator", "round-recorded")
    return [tuple(body["survivors"]) for body in rounds]


def debits(federation: SmallFederation) -> list[int]:
    """How often each node paid; one that was never asked anything has no ledger yet."""
    return [
        len(federation.bodies(name, "release-debited")) if (home / "ledger").exists() else 0
        for name, home in federation.homes.nodes.items()
    ]


def epochs(federation: SmallFederation) -> int:
    """How many were opened."""
    return int((federation.homes.coordinator / "epochs").read_text())


def after_round(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Have something happen once a round is recorded."""
    original = RunDriver._record

    def record(self: RunDriver, attempt: Any) -> None:
        original(self, attempt)
        if attempt.round == number:
            act()

    monkeypatch.setattr(RunDriver, "_record", record)
