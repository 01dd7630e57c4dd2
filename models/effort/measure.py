"""How often a verifier's choice is right, beside simpler choices and the best that could be.

Shapes: Q questions, M answers per question, one per draw.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from models.effort.labelled import Labelled, Question
from models.effort.spending import Asked, Chosen, Draw, Effort, spend
from models.effort.verifier import Verifier, VerifierError


@dataclass(frozen=True)
class Accuracy:
    """Per question, fp64 [Q]: 1 where the choice is right, and costs.

    Attributes:
        first_Q: the first answer drawn. majority_Q: the most frequent answer, of equal ones the
            first. fixed_Q: the verifier's among all. auto_Q: the verifier's, drawing while more is
            expected of it. oracle_Q: any is right. auto_cost_Q, cost_Q: of what auto drew; of all.

    """

    first_Q: Tensor
    majority_Q: Tensor
    fixed_Q: Tensor
    auto_Q: Tensor
    oracle_Q: Tensor
    auto_cost_Q: Tensor
    cost_Q: Tensor


def measure(
    verifier: Verifier,
    questions: Sequence[Question],
    generator: torch.Generator,
    cost: Callable[[str], int],
) -> Accuracy:
    """Replay recorded answers as draws, in random order, or source by source as the card lists.

    Args:
        verifier: the judge. questions: labelled answers that it has not seen.
        generator: of the order. cost: of an answer's text, at least 1.

    Raises:
        VerifierError: answers of sources that the verifier does not know.

    """
    rows = [_measured(verifier, question, generator, cost) for question in questions]
    by_name = zip((field.name for field in fields(Accuracy)), zip(*rows, strict=True), strict=True)
    return Accuracy(**{name: torch.tensor(values).double() for name, values in by_name})


def drawn_in_order(
    question: Question, sources: tuple[str, ...], generator: torch.Generator
) -> list[Labelled]:
    """Return the answers in random order, sorted by `sources` where there are any.

    Raises:
        VerifierError: an answer of another source.

    """
    order = torch.randperm(len(question.answers), generator=generator).tolist()
    answers = [question.answers[index] for index in order]
    strange = {answer.source for answer in answers} - set(sources)
    if sources and strange:
        raise VerifierError(
            f"Expected answers of {', '.join(sources)}, got one of {min(strange) or 'nobody'}. "
            "Train a verifier on that source, or one that does not ask."
        )
    return sorted(answers, key=lambda a: sources.index(a.source)) if sources else answers


@dataclass(frozen=True)
class _Replay:
    """A judge and a sampler of recorded answers to one question."""

    verifier: Verifier
    answers: tuple[Labelled, ...]
    cost: Callable[[str], int]

    @property
    def most(self) -> int:
        return min(self.verifier.most, len(self.answers))

    def scores(self, _prompt: str, answers: Sequence[str]) -> list[float]:
        seen = self.answers[: len(answers)]
        sources = [answer.source for answer in seen]
        return self.verifier.probabilities([answer.read for answer in seen], sources).tolist()

    def gain(self, scores: Sequence[float]) -> float:
        return self.verifier.gain(scores)

    def draw(self, asked: Sequence[Asked]) -> list[Draw]:
        texts = [self.answers[len(each.answers)].text for each in asked]
        return [Draw(text, self.cost(text)) for text in texts]


def _measured(
    verifier: Verifier,
    question: Question,
    generator: torch.Generator,
    cost: Callable[[str], int],
) -> tuple[float, ...]:
    answers = tuple(drawn_in_order(question, verifier.card.sources, generator))
    replay = _Replay(verifier, answers, cost)

    def played(effort: Effort) -> Chosen:
        return spend([question.prompt], replay.draw, replay, effort, 1)[0]

    fixed, auto = played(Effort(len(answers))), played(Effort())
    common = Counter(answer.read.final for answer in answers).most_common(1)[0][0]
    majority = next(answer for answer in answers if answer.read.final == common)
    return (
        answers[0].correct, majority.correct, answers[fixed.best].correct,
        answers[auto.best].correct, any(answer.correct for answer in answers),
        sum(draw.tokens for draw in auto.draws), sum(draw.tokens for draw in fixed.draws),
    )  # fmt: skip
