"""What a simulation has seen so far, kept in its folder so that a resumed one goes on."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arion.evaluation import Losses
from privacy.ledger.files import replace_durably


@dataclass
class Journal:
    """What a simulation has seen so far; kept in the run's folder, so that a resumed one goes on.

    Attributes:
        losses: by institution after each round, from round 0.
        attempts: what happened in each attempt.
        seconds: by stage, over all of the run's processes.

    """

    path: Path
    losses: dict[int, Losses] = field(default_factory=dict)
    attempts: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> "Journal":
        """Read the journal of a run, or begin one."""
        if not path.exists():
            return cls(path)
        saved = json.loads(path.read_text())
        attempts = {(a["round"], a["attempt"]): a for a in saved["attempts"]}
        losses = {int(number): found for number, found in saved["losses"].items()}
        return cls(path, losses, attempts, saved["seconds"])

    def save(self) -> None:
        """Write it whole."""
        saved = {
            "losses": self.losses,
            "attempts": [self.attempts[place] for place in sorted(self.attempts)],
            "seconds": self.seconds,
        }
        replace_durably(self.path, json.dumps(saved).encode())

    def spend(self, stage: str, seconds: float) -> None:
        """Add to a stage's time."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
