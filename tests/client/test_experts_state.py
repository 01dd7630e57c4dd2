"""Training of owned experts goes on from its durable state, and never on half of one."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import client.experts_training
from client.experts_training import STATE_FILE
from tests.client.watched_experts import (
    Start,
    brute_force_sum,
    start,
)

__all__ = ["start"]  # a fixture


class Stopped(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_training_goes_on_from_its_durable_state(
    start: Start, tmp_path: Path, steps: int
) -> None:
    """With seeded streams an interrupted training comes to the same module, bit for bit."""
    whole = start().train().tensors
    for path in tmp_path.iterdir():
        path.unlink()
    first = start()

    def stop(what: str, done: int, total: int) -> None:
        if (what, done, total) == ("steps", steps, 4):
            raise Stopped

    first.training._watch = stop
    with pytest.raises(Stopped):
        first.train()
    assert (tmp_path / STATE_FILE).exists() is (steps >= 2)
    second = start().train()
    assert len(second.drawn) == 4 - 2 * (steps // 2)
    assert all(torch.equal(whole[name], tensor) for name, tensor in second.tensors.items())


def test_what_is_drawn_anew_gets_new_noise(start: Start) -> None:
    """Under the system's entropy no two drawings of one step share noise or sample."""
    first = start(seed=None, seeded=False)

    def stop(what: str, done: int, total: int) -> None:
        if what == "steps":
            raise Stopped

    first.training._watch = stop
    with pytest.raises(Stopped):
        first.train()
    second = start(seed=None, seeded=False).train()
    assert len(second.sums) == 4
    one, other = (w.sums[0] - brute_force_sum(w, 0) for w in (first, second))
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / math.sqrt(len(one))


def test_a_state_without_its_rows_is_not_used(start: Start, tmp_path: Path) -> None:
    """Else noise of two embedding releases would be in one module."""
    whole = start().train()
    assert (tmp_path / STATE_FILE).exists()
    (tmp_path / client.experts_training.ROWS_FILE).unlink()
    again = start().train()
    assert len(again.drawn) == len(whole.drawn) == 4
