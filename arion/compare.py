"""`arion simulate --compare`: every arm on the same data and budget, rates from validation.

Each arm's learning rate is searched by factors of two on the first seed's validation loss, and
then trained with every seed. Held-out losses choose nothing.
"""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from os import sched_getaffinity
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from arion.arm_worker import WorkerSetup, evaluate_job, start_worker, train_job
from arion.arms import Job
from arion.corpus import Corpus
from arion.evaluation import Losses
from arion.progress import Progress
from arion.report import write_chart, write_report
from arion.run_file import RunFile
from arion.simulate import REPORT_FILE, Simulation
from arion.summary import comparison_report
from privacy.ledger.files import replace_durably

_FACTOR = 2.0
_WATCHED = "federated_dp"
_USUAL_SEARCH = 2
"""Rates beyond the chosen one that a search usually tries; only progress is told by it."""


class Comparison:
    """One comparison in a folder; `run` may be called again after any crash.

    Args:
        run: what to do; `run.compare.seeds` says with how many seeds.
        out: folder of the comparison.
        progress: who is told.

    """

    def __init__(self, run: RunFile, out: Path, progress: Progress) -> None:
        self._run, self._out, self._progress = run, out, progress
        self._simulation = Simulation(run, out, progress)
        self._lock = threading.Lock()
        self._done = 0
        self._trained: set[Job] = set()

    def run(self) -> dict[str, Any]:
        """Carry the comparison to its end; returns the report."""
        started = time.monotonic()
        corpus, setup = self._set_up()
        jobs = len(self._run.compare.arms) * (self._run.compare.seeds + _USUAL_SEARCH)
        self._progress.stage("comparison", jobs)
        workers = len(sched_getaffinity(0))
        with (
            ProcessPoolExecutor(
                workers, get_context("spawn"), initializer=start_worker, initargs=(setup,)
            ) as pool,
            ThreadPoolExecutor(len(self._run.compare.arms)) as threads,
        ):
            arms = dict(
                zip(
                    self._run.compare.arms,
                    threads.map(lambda arm: self._arm(arm, pool), self._run.compare.arms),
                    strict=True,
                )
            )
        self._simulation.journal.spend("arms", time.monotonic() - started)
        return self._report(corpus, setup, arms)

    def _set_up(self) -> tuple[Corpus, WorkerSetup]:
        simulation = self._simulation
        corpus = simulation.corpus()
        simulation.prepare_base()
        recipe, step, _ = simulation.mechanism(corpus)
        setup = WorkerSetup(
            run=self._run,
            data_dir=simulation.data_dir,
            base=simulation.base.resolve(),
            recipe=recipe,
            step=step,
            out=self._out / "arms",
        )
        return corpus, setup

    def _arm(self, arm: str, pool: Executor) -> dict[str, Any]:
        """Choose an arm's rate, train it with every seed, and evaluate."""
        first = self._run.public_seed
        rate = search_rate(
            self._run.training.learning_rate,
            lambda rate: self._train(pool, Job(arm, rate, first))["validation"],
        )
        seeds = [first + index for index in range(self._run.compare.seeds)]
        results = []
        for seed in seeds:
            self._train(pool, Job(arm, rate, seed))
            results.append(pool.submit(evaluate_job, Job(arm, rate, seed)).result())
        return {
            **over_seeds([result["heldout"] for result in results]),
            "learning_rate": rate,
            "seeds": len(seeds),
            "seconds": fmean(result["seconds"] for result in results),
        }

    def _train(self, pool: Executor, job: Job) -> dict[str, Any]:
        watched = job.arm == _WATCHED and job.seed == self._run.public_seed
        result: dict[str, Any] = pool.submit(train_job, job, watched).result()
        with self._lock:
            if job in self._trained:
                return result
            self._trained.add(job)
            self._done += 1
            self._progress.step(self._done, f"{job.name} validation {result['validation']:.3f}")
        return result

    def _report(
        self, corpus: Corpus, setup: WorkerSetup, arms: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        base = self._simulation.base_losses(setup.recipe, corpus)
        arms = {"base": {"heldout_loss": base, "learning_rate": None, "seeds": 1}, **arms}
        watched = arms.get(_WATCHED)
        home = None
        if watched is not None:
            job = Job(_WATCHED, watched["learning_rate"], self._run.public_seed)
            home = setup.out / job.name
        report = comparison_report(self._run, corpus, self._simulation.journal, arms, home)
        replace_durably(self._out / REPORT_FILE, json.dumps(report, indent=1).encode() + b"\n")
        write_report(report, self._out / "report.html")
        write_chart(report, self._out / "arms.svg")
        return report


def search_rate(start: float, loss_at: Callable[[float], float]) -> float:
    """Walk by factors of two towards a lower loss until it rises again.

    Args:
        start: first rate, > 0.
        loss_at: validation loss at a rate.

    Returns:
        The rate with the lowest loss among those tried: a local minimum on the grid.

    """
    losses = {start: loss_at(start)}
    for factor in (_FACTOR, 1 / _FACTOR):
        rate = start * factor
        while True:
            losses[rate] = loss_at(rate)
            if losses[rate] >= losses[rate / factor]:
                break
            rate *= factor
        if min(losses, key=losses.__getitem__) != start:
            break
    return min(losses, key=losses.__getitem__)


def over_seeds(found: list[Losses]) -> dict[str, Losses]:
    """Mean and standard deviation of each loss over the seeds."""
    mean = {name: fmean(losses[name] for losses in found) for name in found[0]}
    if len(found) == 1:
        return {"heldout_loss": mean}
    spread = {name: stdev(losses[name] for losses in found) for name in found[0]}
    return {"heldout_loss": mean, "heldout_loss_sd": spread}
