"""Who judges answers: a trained scorer, or a program of the user's."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Judge(Protocol):
    """Says how likely each answer is right, and what one more would be worth.

    Attributes:
        most: draws per prompt beyond which it expects nothing.

    """

    @property
    def most(self) -> int:
        """See the class."""

    def scores(self, prompt: str, answers: Sequence[str]) -> list[float]:
        """Return a number in [0, 1] per answer, higher where it is likelier right."""

    def gain(self, scores: Sequence[float]) -> float:
        """Return how much likelier one more draw makes it that the chosen answer is right."""


class CheckError(ValueError):
    """A check that cannot be run."""


@dataclass(frozen=True)
class Check:
    """A program that is given an answer and says by its exit code whether it is right (0).

    It reads one JSON object, `prompt` and `answer`, on standard input. It is run as the user, with
    the user's rights and no shell; if it runs the answer as code, then shielding the machine from
    that code is its own task. A program that runs out of time says no.

    Attributes:
        command: the program and its arguments. timeout_s: per answer, above 0.
        most: draws per prompt, at least 1.

    """

    command: tuple[str, ...]
    timeout_s: float = 10.0
    most: int = 8
    _known: dict[tuple[str, str], bool] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.command:
            raise CheckError("Expected a program to check answers, got an empty one. Name it.")
        if not self.timeout_s > 0:
            raise CheckError(f"Expected a timeout above 0 s, got {self.timeout_s}. Raise it.")

    def scores(self, prompt: str, answers: Sequence[str]) -> list[float]:
        """See `Judge.scores`: 1 where the program exits with 0; it is run once for each answer.

        Raises:
            CheckError: the program cannot be started.

        """
        for answer in answers:
            if (prompt, answer) not in self._known:
                self._known[prompt, answer] = self._passes(prompt, answer)
        return [float(self._known[prompt, answer]) for answer in answers]

    def gain(self, scores: Sequence[float]) -> float:
        """Return the chance that the next draw passes after so many failures: 1 / (failures + 2).

        0 once one passed. Source: Laplace's rule of succession (a uniform prior of the pass rate).
        """
        return 0.0 if any(scores) else 1.0 / (len(scores) + 2)

    def _passes(self, prompt: str, answer: str) -> bool:
        given = json.dumps({"prompt": prompt, "answer": answer})
        try:
            ended = subprocess.run(  # noqa: S603  (the user's own program, without a shell)
                self.command, input=given, text=True, timeout=self.timeout_s,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
        except OSError as error:
            raise CheckError(
                f"Expected a check that can be run, got {self.command[0]}: {error.strerror}. "
                "Name a program."
            ) from error
        return ended.returncode == 0
