"""`arion simulate`: a whole federation in one process, from text to model, ledger and report."""

import json
import time
from pathlib import Path
from typing import Any

import torch

from arion.base_model import prepare_base
from arion.corpus import Corpus, open_corpus
from arion.evaluation import Evaluator, Losses
from arion.federation import FEDERATION, Homes, build_homes
from arion.journal import Journal
from arion.mechanism import budget_of, choose_cohort, choose_recipe, choose_step
from arion.preflight import check_liveness
from arion.progress import Progress
from arion.report import write_report
from arion.run_federation import (
    final_vector,
    rounds_made,
    run_federation,
    write_merged_model,
)
from arion.run_file import RunFile
from arion.summary import FEDERATED, Finished, summarise
from arion.synthetic import write_synthetic
from arion.watch import RoundWatch
from client.data import describe
from coordinator.settings import load_settings
from coordinator.store import RunStore
from models.folders import open_model
from models.foreign.model import ForeignModel
from models.recipe import prepare
from models.training_settings import Recipe
from models.vector import read_vector
from privacy.dp.plan import PrivateStep
from privacy.ledger.files import make_directory, replace_durably
from privacy.units import INSTITUTION

REPORT_FILE = "report.json"
RUN_FILE = "run.json"


class Simulation:
    """One simulated federation in a folder; `run` may be called again after any crash.

    Args:
        run: what to do.
        out: folder of the run.
        progress: who is told.

    """

    def __init__(self, run: RunFile, out: Path, progress: Progress) -> None:
        self.run_file, self.out, self._progress = run, out, progress
        make_directory(out)
        self.journal = Journal.load(out / "journal.json")
        self.base = out / "base"

    def run(self) -> dict[str, Any]:
        """Carry the simulation to its end; returns the report."""
        corpus = self.corpus()
        self.prepare_base()
        self.check_liveness(corpus)
        homes = self.homes(corpus)
        recipe = load_settings(homes.coordinator).recipe
        evaluator = Evaluator(self.base, recipe, corpus)
        if isinstance(evaluator.model, ForeignModel):
            self._progress.note(evaluator.model.describe())
        self._rounds(homes, evaluator)
        return self._report(corpus, homes, evaluator)

    def corpus(self) -> Corpus:
        """Open the institutions' text, writing the invented one if none was given."""
        started = time.monotonic()
        if self.run_file.data.path is None:
            write_synthetic(self.out / "data")
        corpus = open_corpus(self.data_dir, self.run_file)
        for line in what_was_found(corpus):
            self._progress.note(line)
        self.journal.spend("data", time.monotonic() - started)
        return corpus

    @property
    def data_dir(self) -> Path:
        """Folder of institutions."""
        return self.run_file.data.path or self.out / "data" / "private"

    def prepare_base(self) -> None:
        """Have a base model in the run's folder."""
        started = time.monotonic()
        run = self.run_file
        public = run.data.public
        if not public and run.data.path is None:
            public = (self.out / "data" / "public",)
        prepare_base(self.base, run.model, public, run.public_seed, self._warm_up_step)
        self.journal.spend("warm_up", time.monotonic() - started)
        self.journal.save()

    def mechanism(self, corpus: Corpus) -> tuple[Recipe, PrivateStep, int]:
        """Choose recipe and step for the corpus; the third value is the vector's length."""
        recipe = choose_recipe(self.run_file, corpus.unit, self.base)
        length = len(self._start(recipe))
        units = sum(len({r.unit for r in split.train}) for split in corpus.splits.values())
        cohort = choose_cohort(self.run_file.federation, len(corpus.shares))
        return recipe, choose_step(self.run_file, corpus.unit, units, cohort, length), length

    def check_liveness(self, corpus: Corpus) -> None:
        """Look, before any budget is spent, whether the run can learn; once."""
        if (self.out / "coordinator").exists():
            return
        training = self.run_file.training
        recipe = choose_recipe(self.run_file, corpus.unit, self.base)
        check_liveness(
            self.base, recipe, training.optimiser(training.learning_rate), training.rounds
        )

    def base_losses(self, recipe: Recipe, corpus: Corpus) -> Losses:
        """Held-out losses of the base model."""
        limit = self.run_file.data.evaluate_records
        evaluator = Evaluator(self.base, recipe, corpus)
        return evaluator.losses(self._start(recipe), "heldout", limit)

    def homes(self, corpus: Corpus) -> Homes:
        """Set the federation's homes up."""
        run = self.run_file
        recipe, step, length = self.mechanism(corpus)
        cohort = choose_cohort(run.federation, len(corpus.shares))
        settings = {
            "federation": FEDERATION,
            "run": "simulation",
            "n_min": cohort.n_min,
            "colluders": cohort.colluders,
            "rounds": run.training.rounds,
            "step": step,
            "recipe": recipe,
            "optimiser": run.training.optimiser(run.training.learning_rate),
            "base_model": self.base.resolve(),
            "groups": run.federation.groups,
            "plausible_batches": run.federation.plausible_batches,
            "runtime": "simulate",
            "seeded": run.seed is not None,
        }
        splits = {"heldout": run.data.heldout, "validation": run.data.validation}
        return build_homes(
            self.out,
            corpus.shares,
            settings,
            budget=budget_of(run),
            vector_length=length,
            seed=run.seed,
            node_options=splits,
        )

    def _warm_up_step(self, step: int, steps: int, loss: float) -> None:
        if step == 1:
            self._progress.stage("public warm-up", steps)
        self._progress.step(step, f"loss {loss:.3f}")

    def _rounds(self, homes: Homes, evaluator: Evaluator) -> None:
        settings = load_settings(homes.coordinator)
        watch = RoundWatch(
            settings,
            self.run_file,
            self.journal,
            evaluator=evaluator,
            progress=self._progress,
        )
        self._progress.stage("private rounds", settings.rounds)
        watch.before_the_first()
        store = RunStore(homes.coordinator)
        try:
            watch.catch_up(store)
        finally:
            store.close()
        drop = self.run_file.federation.drop
        run_federation(homes, watch, drop=drop, seed=self.run_file.public_seed)
        self.journal.save()

    def _report(self, corpus: Corpus, homes: Homes, evaluator: Evaluator) -> dict[str, Any]:
        """Evaluate the model, write it, and put the report together."""
        started = time.monotonic()
        made = rounds_made(homes.coordinator)  # fewer where the schedule was used up
        settings = load_settings(homes.coordinator).model_copy(update={"rounds": made})
        final = final_vector(homes.coordinator, made)
        limit = self.run_file.data.evaluate_records
        arm = FEDERATED[settings.step.is_private]
        model = write_merged_model(self.base, settings.recipe, final, self.out / "model")
        self._progress.stage("evaluation", 2)
        losses = {"base": evaluator.losses(self._start(settings.recipe), "heldout", limit)}
        self._progress.step(1, "base")
        losses[arm] = evaluator.losses(final, "heldout", limit)
        routing = evaluator.routing(final, self.run_file.data.evaluate_each_round or 1)
        self._progress.step(2, arm)
        self.journal.spend("evaluation", time.monotonic() - started)
        self.journal.save()
        done = Finished(settings, len(final), model, losses, routing)
        report = summarise(self.run_file, corpus, homes, self.journal, done)
        replace_durably(self.out / REPORT_FILE, json.dumps(report, indent=1).encode() + b"\n")
        write_report(report, self.out / "report.html")
        return report

    def _start(self, recipe: Recipe) -> torch.Tensor:
        model, _ = open_model(self.base)
        prepare(model, recipe)
        return read_vector(model)


def what_was_found(corpus: Corpus) -> list[str]:
    """One line per institution: how its fields were understood. Whose data it is, people say."""
    shares = [(share.name, share.institution.config) for share in corpus.shares]
    unseen = [(f"{i.name} (only evaluated on)", i.config) for i in corpus.unseen]
    lines = [f"{name}: {describe(config)}" for name, config in shares + unseen]
    if corpus.unit == INSTITUTION:
        lines.append("privacy unit of this run: each institution as a whole, not the one above")
    return lines
