"""`arion model pretrain`: alone, stopped and gone on with, and under torchrun."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from arion.cli import app
from arion.pretraining import Pretraining, PretrainingError, at_most, pretrain
from models.checkpoint import load_model
from models.parallel import ALONE, World
from models.training_settings import WarmUp
from tests.conftest import ROOT
from tests.parallel.conftest import Gang

WORDS = [
    "ward",
    "knee",
    "left",
    "mild",
    "scan",
    "night",
    "cough",
    "dose",
    "stable",
    "pain",
    "court",
    "bank",
    "loan",
]
OPTIONS = ("--batch", "4", "--sequence-length", "16", "--steps", "6")
SETTINGS = WarmUp(batch=4, sequence_length=16, steps=6)


def test_a_shape_that_no_memory_here_holds_is_refused_before_all(tmp_path: Path) -> None:
    """The system would end the process, or another one, minutes later."""
    order = Pretraining("arion-1.2-30b", (tmp_path / "none",), SETTINGS, seed=0)
    with pytest.raises(PretrainingError, match="GB of free memory"):
        pretrain(order, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("public") / "texts.jsonl"
    order = torch.randint(0, len(WORDS), (60, 20), generator=torch.Generator().manual_seed(0))
    lines = [json.dumps({"text": " ".join(WORDS[i] for i in row)}) for row in order.tolist()]
    path.write_text("\n".join(lines) + "\n")
    return path


def train(
    world: World, public: Path, out: Path, stop: int | None = None, settings: WarmUp = SETTINGS
) -> float:
    def step(done: int, steps: int, loss: float) -> None:
        if done == stop:
            raise KeyboardInterrupt

    order = Pretraining("nano", (public,), settings, seed=0)
    return pretrain(order, out, step, snapshot_every=2, world=world)


@pytest.fixture(scope="module")
def alone(public: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of an undisturbed run."""
    out = tmp_path_factory.mktemp("alone") / "model"
    train(ALONE, public, out)
    return out


def distance(ours: Path, theirs: Path) -> float:
    """Relative difference of all weights."""
    first, second = (load_file(folder / "model.safetensors") for folder in (ours, theirs))
    apart = sum(float((first[name] - second[name]).square().sum()) for name in second)
    return float((apart / sum(float(t.square().sum()) for t in second.values())) ** 0.5)


def test_the_command_makes_a_model_folder(public: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    command = ["model", "pretrain", "--preset", "nano", "--public", str(public), "--out", str(out)]
    ran = CliRunner().invoke(app, [*command, *OPTIONS])
    assert ran.exit_code == 0, ran.output
    model, tokenizer = load_model(out)
    assert model.config.vocab_size == tokenizer.vocab_size
    assert distance(out, alone) == 0.0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    again = CliRunner().invoke(app, [*command, *OPTIONS])
    assert again.exit_code == 2
    assert "Name another folder" in again.output


def test_a_stopped_run_goes_on(public: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    with suppress(KeyboardInterrupt):
        train(ALONE, public, out, stop=5)
    other = SETTINGS.model_copy(update={"learning_rate": 1e-3})
    with pytest.raises(PretrainingError, match="began with"):
        train(ALONE, public, out, settings=other)
    assert not out.exists()
    train(ALONE, public, out)
    assert distance(out, alone) == 0.0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_run_that_never_came_to_a_snapshot_is_in_nobody_s_way(
    public: Path, alone: Path, tmp_path: Path
) -> None:
    too_long = SETTINGS.model_copy(update={"sequence_length": 10_000})
    with pytest.raises(ValueError, match="sequence_length"):
        train(ALONE, public, tmp_path / "model", settings=too_long)
    train(ALONE, public, tmp_path / "model")
    assert distance(tmp_path / "model", alone) == 0.0


def test_two_processes_make_the_same_model(
    gang: Gang, public: Path, alone: Path, tmp_path: Path
) -> None:
    first, second = gang.run(train, public, tmp_path / "model")
    assert first == pytest.approx(second)
    assert distance(tmp_path / "model", alone) < 1e-4


@pytest.mark.parametrize(("passes", "steps"), [(1, 10), (3, 30), (9, 40)])
def test_the_text_is_read_so_often_at_most(passes: int, steps: int) -> None:
    settings = WarmUp(steps=40, batch=5, sequence_length=20)
    assert at_most(settings, 1000, passes).steps == steps


def torchrun(*options: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    return subprocess.run(
        [*command, "-m", "arion", "model", "pretrain", "--preset", "nano", *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_torchrun(public: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    ran = torchrun("--public", str(public), "--out", str(out), *OPTIONS)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("nats per token over the last steps") == 1
    assert distance(out, alone) < 1e-4
    failed = torchrun("--public", str(public), "--out", str(out), *OPTIONS)
    assert failed.returncode != 0
    assert failed.stderr.count("error: ") == 1
    assert "Name another folder" in failed.stderr
