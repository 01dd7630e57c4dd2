"""Public training: two processes with half of each batch equal one with all of it."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from models.config import ModelConfig
from models.decoder import Decoder
from models.parallel import ALONE, World, unsharded
from models.pretrain import warm_up
from models.snapshot import Snapshot, SnapshotError
from models.training_settings import WarmUp
from tests.parallel.conftest import Gang

CONFIG = ModelConfig(
    vocab_size=61, hidden_size=16, layers=2, heads=2, kv_heads=1, head_dim=8, experts=5,
    experts_per_token=2, expert_hidden_size=12, max_positions=32, initializer_range=0.1,
)  # fmt: skip
SETTINGS = WarmUp(steps=12, batch=6, sequence_length=16, learning_rate=1e-2)
Outcome = tuple[list[float], Tensor]


def stream() -> Tensor:
    """Tokens with something to learn: each is the one before plus 1, 2 or 3."""
    steps = torch.randint(1, 4, (4000,), generator=torch.Generator().manual_seed(3))
    return (steps.cumsum(0) % 61).int()


def train(
    world: World,
    snapshot: Path | None = None,
    stop: int | None = None,
    settings: WarmUp = SETTINGS,
) -> Outcome:
    """Losses of the steps made, and the final weights; `stop` kills the run after that step."""
    model = Decoder(CONFIG, torch.Generator().manual_seed(1))
    losses: list[float] = []

    def note(step: int, loss: float) -> None:
        losses.append(loss)
        if step == stop:
            raise KeyboardInterrupt

    keep = Snapshot(snapshot, 4, "run", world) if snapshot else None
    generator = torch.Generator().manual_seed(2)
    with suppress(KeyboardInterrupt):
        warm_up(model, stream(), settings, generator, note, world=world, snapshot=keep)
    return losses, torch.cat([p.detach().flatten() for p in unsharded(model).parameters()])


def assert_same(ours: Outcome, expected: Outcome, tolerance: float = 1e-4) -> None:
    assert ours[0] == pytest.approx(expected[0], rel=tolerance)
    assert (ours[1] - expected[1]).norm() <= tolerance * expected[1].norm()


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-4),
        ({"checkpoint_blocks": True, "random_activation": True}, 1e-4),
        ({"precision": "bf16"}, 3e-2),
    ],
    ids=["plain", "checkpointed", "bf16"],
)
def test_two_processes_equal_one(gang: Gang, options: dict[str, Any], tolerance: float) -> None:
    settings = SETTINGS.model_copy(update=options)
    expected = train(ALONE, settings=settings)
    assert expected[0][-1] < expected[0][0] - 0.3  # it learns: a frozen model would agree as well
    for ours in gang.run(train, None, None, settings):
        assert_same(ours, expected, tolerance)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "snapshot"
    settings = SETTINGS.model_copy(update={"precision": precision})
    expected = train(ALONE, settings=settings)
    first, _ = train(ALONE, path, stop=10, settings=settings)
    rest, weights = train(ALONE, path, settings=settings)
    assert first[:8] + rest == expected[0]
    assert torch.equal(weights, expected[1])


def test_a_run_goes_on_with_another_number_of_processes(gang: Gang, tmp_path: Path) -> None:
    expected = train(ALONE)
    (first, _), _ = gang.run(train, tmp_path / "grows", 7)
    assert_same((first[:4] + (late := train(ALONE, tmp_path / "grows"))[0], late[1]), expected)
    first, _ = train(ALONE, tmp_path / "shrinks", stop=9)
    for rest, weights in gang.run(train, tmp_path / "shrinks"):
        assert_same((first[:8] + rest, weights), expected)


def test_another_run_s_snapshot_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    train(ALONE, path, stop=4)
    model = Decoder(CONFIG, torch.Generator())
    other = Snapshot(path, 4, "other run")
    with pytest.raises(SnapshotError, match="another run"):
        warm_up(model, stream(), SETTINGS, torch.Generator(), snapshot=other)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SnapshotError, match="damaged"):
        warm_up(model, stream(), SETTINGS, torch.Generator(), snapshot=Snapshot(path, 4, "run"))


def uneven(world: World) -> str:
    with pytest.raises(ValueError, match="multiple of 2") as caught:
        train(world, settings=SETTINGS.model_copy(update={"batch": 5}))
    return str(caught.value)


def test_a_batch_that_cannot_be_shared_is_refused(gang: Gang) -> None:
    assert all(gang.run(uneven))
