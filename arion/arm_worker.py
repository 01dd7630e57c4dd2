"""What a worker process of a comparison does: train one job, or evaluate one, and keep the result.

A finished job is a folder with `trained.safetensors` and `result.json`; it is never done twice.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from arion.arms import Job, Setting, arm_losses, train
from arion.corpus import open_corpus
from arion.evaluation import Evaluator
from arion.journal import Journal
from arion.progress import Silent
from arion.run_file import RunFile
from arion.watch import RoundWatch
from coordinator.outcome import RoundOutcome
from coordinator.settings import load_settings
from models.optimiser import OptimiserState
from models.training_settings import Recipe
from privacy.dp.plan import PrivateStep
from privacy.ledger.files import make_directory, replace_durably

_VECTORS = "trained.safetensors"
_RESULT = "result.json"


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker needs to begin with; small, so that it can be sent to another process.

    Attributes:
        data_dir: folder of institutions.
        out: folder of the jobs.

    """

    run: RunFile
    data_dir: Path
    base: Path
    recipe: Recipe
    step: PrivateStep
    out: Path


_WORKER: "ArmWorker | None" = None


def start_worker(setup: WorkerSetup) -> None:
    """Initialise a worker process: one thread each, the corpus is read once."""
    global _WORKER  # noqa: PLW0603  (a process of the pool has one setup for its life)
    torch.set_num_threads(1)
    _WORKER = ArmWorker(setup)


def train_job(job: Job, watched: bool) -> dict[str, Any]:
    """Train in a worker process; see `ArmWorker.train`."""
    assert _WORKER is not None, "start_worker ran first"
    return _WORKER.train(job, watched=watched)


def evaluate_job(job: Job) -> dict[str, Any]:
    """Evaluate in a worker process; see `ArmWorker.evaluate`."""
    assert _WORKER is not None, "start_worker ran first"
    return _WORKER.evaluate(job)


class ArmWorker:
    """Trains and evaluates jobs of one comparison."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        corpus = open_corpus(setup.data_dir, setup.run)
        self._setting = Setting(setup.run, corpus, setup.base, setup.recipe, setup.step)
        self._evaluator = Evaluator(setup.base, setup.recipe, corpus)

    def train(self, job: Job, *, watched: bool) -> dict[str, Any]:
        """Train a job and note its validation loss: the only one that rates are chosen by."""
        home = self._setup.out / job.name
        result = _read_result(home)
        if result is None:
            make_directory(home)
            started = time.monotonic()
            observer = self._watch(home) if watched else (lambda outcome, state: None)
            vectors = train(job, self._setting, home, observer)
            seconds = time.monotonic() - started
            limit = self._setup.run.data.evaluate_records
            losses = arm_losses(self._evaluator, vectors, "validation", limit)
            replace_durably(home / _VECTORS, save(dict(vectors)))
            result = {"validation": losses["mean"], "seconds": seconds}
            _write_result(home, result)
        return result

    def evaluate(self, job: Job) -> dict[str, Any]:
        """Add the held-out losses of a trained job."""
        home = self._setup.out / job.name
        result = _read_result(home)
        assert result is not None, "jobs are trained before they are evaluated"
        if "heldout" not in result:
            vectors = load_file(home / _VECTORS)
            limit = self._setup.run.data.evaluate_records
            result["heldout"] = arm_losses(self._evaluator, vectors, "heldout", limit)
            _write_result(home, result)
        return result

    def _watch(self, home: Path) -> "_LateWatch":
        return _LateWatch(home, self._setup.run, self._evaluator)


class _LateWatch:
    """A `RoundWatch` that begins with the first round, when the run's settings are there."""

    def __init__(self, home: Path, run: RunFile, evaluator: Evaluator) -> None:
        self._home, self._run, self._evaluator = home, run, evaluator
        self._watch: RoundWatch | None = None

    def __call__(self, outcome: RoundOutcome, state: OptimiserState) -> None:
        if self._watch is None:
            self._watch = RoundWatch(
                load_settings(self._home / "coordinator"),
                self._run,
                Journal.load(self._home / "journal.json"),
                evaluator=self._evaluator,
                progress=Silent(),
            )
            self._watch.before_the_first()
        self._watch(outcome, state)


def _read_result(home: Path) -> dict[str, Any] | None:
    path = home / _RESULT
    return json.loads(path.read_text()) if path.exists() else None


def _write_result(home: Path, result: dict[str, Any]) -> None:
    replace_durably(home / _RESULT, json.dumps(result).encode())
