"""What a simulation does after every attempt: evaluate, note, tell how far it is."""

import time
from typing import Any

from arion.evaluation import Evaluator
from arion.journal import Journal
from arion.progress import Progress
from arion.run_file import RunFile
from coordinator.attempts import Phase
from coordinator.outcome import RoundOutcome
from coordinator.settings import RunSettings
from coordinator.store import RunStore
from models.optimiser import OptimiserState
from models.vector import read_vector
from privacy.dp.accountant import epsilon_after
from privacy.figures import at_most


class RoundWatch:
    """Observes a run (`coordinator.outcome.observing`) and keeps its journal.

    Args:
        settings: of the run.
        run: what is evaluated, and the budget.
        journal: where it is kept.
        evaluator: of the run's base model.
        progress: who is told.

    """

    def __init__(
        self,
        settings: RunSettings,
        run: RunFile,
        journal: Journal,
        *,
        evaluator: Evaluator,
        progress: Progress,
    ) -> None:
        self._settings, self._run, self._journal = settings, run, journal
        self._evaluator, self._progress = evaluator, progress
        self._length = len(read_vector(evaluator.model))
        self._started = time.monotonic()

    def before_the_first(self) -> None:
        """Evaluate the base model, once."""
        if 0 not in self._journal.losses:
            self._evaluate(0, OptimiserState.start(read_vector(self._evaluator.model)))

    def catch_up(self, store: RunStore) -> None:
        """Note the last attempt of a run that was killed before it could be told of it."""
        last = store.last_attempt()
        if last is None or last.phase not in (Phase.APPLIED, Phase.RECORDED, Phase.ABORTED):
            return
        place = (last.round, last.attempt)
        if place not in self._journal.attempts:
            self._journal.attempts[place] = {
                "round": last.round,
                "attempt": last.attempt,
                "survivors": list(last.survivors),
                "code": last.code,
                "spoilt": list(last.spoilt),
                "refusals": {},
                "seconds": {},
                "sent_bytes": 0,
                "received_bytes": 0,
                "near_edge": 0,
                "figures_lost": True,  # the process was killed before they were kept
            }
        state = store.load_state(last.round)
        if not last.code and state is not None and last.round not in self._journal.losses:
            self._evaluate(last.round, state)
        self._journal.save()

    def __call__(self, outcome: RoundOutcome, state: OptimiserState) -> None:
        """Note one attempt, and evaluate where a round was applied."""
        self._journal.spend("rounds", time.monotonic() - self._started)
        self._journal.attempts[outcome.round, outcome.attempt] = _as_json(outcome)
        if outcome.code:
            self._progress.note(
                f"round {outcome.round} attempt {outcome.attempt} aborted: {outcome.code}"
            )
        else:
            self._evaluate(outcome.round, state)
            self._progress.step(outcome.round, self._text(outcome.round))
        self._journal.save()
        self._started = time.monotonic()

    def _evaluate(self, number: int, state: OptimiserState) -> None:
        limit = self._run.data.evaluate_each_round
        if limit:
            started = time.monotonic()
            self._journal.losses[number] = self._evaluator.losses(state.average_D, "heldout", limit)
            self._journal.spend("evaluation", time.monotonic() - started)

    def _text(self, number: int) -> str:
        losses = self._journal.losses.get(number)
        loss = f"held-out loss {losses['mean']:.3f}  " if losses else ""
        if not self._settings.step.is_private:
            return loss + "no privacy"
        epsilon = epsilon_so_far(self._settings, number, self._run.privacy.delta, self._length)
        return f"{loss}epsilon so far {at_most(epsilon, 2)}"


def epsilon_so_far(settings: RunSettings, number: int, delta: float, vector_length: int) -> float:
    """What the first rounds alone would have cost: to show; the whole schedule is charged."""
    return epsilon_after(
        settings.step,
        number,
        delta - settings.failure,
        vector_length=vector_length,
        contributors=len(settings.members),
    )


def _as_json(outcome: RoundOutcome) -> dict[str, Any]:
    return vars(outcome) | {
        "survivors": list(outcome.survivors),
        "spoilt": list(outcome.spoilt),
    }
