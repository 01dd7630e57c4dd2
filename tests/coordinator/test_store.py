"""What a run's home keeps of its states."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from coordinator.store import RunStore
from models.optimiser import OptimiserState


def test_beside_a_rounds_state_the_one_that_it_was_made_of_is_kept(tmp_path: Path) -> None:
    start = OptimiserState.start(torch.ones(3))
    with closing(RunStore(tmp_path)) as store:
        (tmp_path / "states" / "000001 (copy).safetensors").touch()  # somebody's, and no harm
        for step in range(12):
            store.drop_states(step)  # before it is written, as a driver may
            store.save_state(replace(start, step=step))
        kept = [step for step in range(12) if store.load_state(step) is not None]
        assert kept == [10, 11]
        store.drop_states(11)
        assert [step for step in range(12) if store.load_state(step)] == [10, 11]
