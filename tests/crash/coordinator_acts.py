"""Acts of a run: phases are closed, models are published."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from coordinator.attempts import Attempt, Phase
from coordinator.shared import next_epoch
from coordinator.store import RunStore
from models.optimiser import OptimiserState
from privacy.identity import Signed
from privacy.ledger import uncached
from tests.crash.actors import acknowledge

PLAN = Signed(b"{}", bytes(64))
PHASES = (Phase.UPLOADING, Phase.SURVIVORS, Phase.APPLIED, Phase.RECORDED)


class ClosePhase:
    """An attempt moves on through its phases, and a new epoch is opened; no step is undone."""

    def prepare(self, folder: Path, rests: Path) -> None:
        RunStore(folder).close()

    def act(self, folder: Path, rests: Path) -> None:
        store = RunStore(folder)
        acknowledge(f"epoch {next_epoch(folder)}")
        for phase in PHASES:
            store.save(Attempt(1, 1, phase, PLAN, ("east", "north")))
            acknowledge(f"phase {phase}")
        acknowledge(f"epoch {next_epoch(folder)}")
        store.close()

    def check(self, folder: Path, rests: Path, acknowledged: Sequence[str]) -> None:
        store = RunStore(folder)
        said = [line.split() for line in acknowledged]
        epochs = [int(value) for kind, value in said if kind == "epoch"]
        phases = [Phase(value) for kind, value in said if kind == "phase"]
        last = store.last_attempt()
        reached = 0 if last is None else PHASES.index(last.phase) + 1
        assert len(phases) <= reached <= len(phases) + 1
        assert len(store.attempts()) == (last is not None)
        opened = next_epoch(folder)
        assert max(epochs, default=0) < opened <= len(epochs) + 2
        for phase in PHASES[reached:]:
            store.save(Attempt(1, 1, phase, PLAN, ("east", "north")))
        (whole,) = store.attempts()
        assert whole == Attempt(1, 1, Phase.RECORDED, PLAN, ("east", "north"))
        store.close()


def state_after(step: int) -> OptimiserState:
    start = OptimiserState.start(torch.full((5_000,), float(step)))
    return replace(start, step=step)


class PublishModel:
    """States of three rounds: that of an applied round is there, whole, and is the newest."""

    def prepare(self, folder: Path, rests: Path) -> None:
        store = RunStore(folder)
        store.save_state(state_after(0))
        store.close()

    def act(self, folder: Path, rests: Path) -> None:
        uncached._ROOMS.room = uncached._ROOMS.room[: 1 << 15]  # a state: two writes, and a rest
        store = RunStore(folder)
        for step in (1, 2, 3):
            store.drop_states(step)  # the driver deletes while it writes
            store.save_state(state_after(step))
            acknowledge(f"state {step}")
            store.save(Attempt(step, 1, Phase.APPLIED, PLAN))
            acknowledge(f"applied {step}")
        store.close()

    def check(self, folder: Path, rests: Path, acknowledged: Sequence[str]) -> None:
        store = RunStore(folder)
        last = store.last_attempt()
        done = 0 if last is None else last.round
        applied = [int(line.split()[1]) for line in acknowledged if line.startswith("applied")]
        assert max(applied, default=0) <= done <= len(applied) + 1
        found = store.load_state(done)
        assert found is not None
        assert found.to_bytes() == state_after(done).to_bytes()
        for step in range(done + 1, 4):
            store.save_state(state_after(step))
            store.save(Attempt(step, 1, Phase.APPLIED, PLAN))
        assert [at.round for at in store.attempts()] == [1, 2, 3]
        assert store.load_state(3) is not None
        assert store.load_state(2) is not None
        store.close()
