"""A trained scorer of answers: logistic regression on what they compute and where they agree.

Shapes: N answers to one prompt, F features, S sources.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.durable import file_digest, put, sync
from models.effort.features import NAMES, Read, agreement, features, read

_WEIGHTS, _CARD = "verifier.safetensors", "verifier.json"
_VERSION = 2
_SPREAD = 5.0  # standard deviations beyond which a feature says no more


class VerifierError(ValueError):
    """A verifier that cannot be used."""


class Stopping(BaseModel):
    """Draw while `worth` exceeds a level.

    Attributes:
        power: 0: what matters is the chance that the chosen answer is wrong. 1: times the chance
            that it is right, so that prompts that look hopeless get no more draws either.
        level: at or below it nothing more is drawn.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    power: Literal[0, 1]
    level: float = Field(allow_inf_nan=False)

    def worth(self, best_: Tensor) -> Tensor:
        """Return what a further draw is worth by the chosen answer's probability, any shape."""
        return (1 - best_) * best_**self.power


class Card(BaseModel):
    """What a verifier was trained on, and for which features.

    Attributes:
        features: names, in order. sources: who may have written an answer; empty where the verifier
            does not ask. most: answers per question of its training data.
        content, decay: how it was fitted (`models.effort.training.Plan`).
        stopping: when `--effort auto` has drawn enough.
        questions: of the training data. data_sha256: of its file. weights_sha256: of the weights.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = _VERSION
    features: tuple[str, ...]
    sources: tuple[str, ...]
    most: int
    content: bool
    decay: float
    stopping: Stopping
    questions: int
    data_sha256: str
    weights_sha256: str = ""


@dataclass(frozen=True)
class Scorer:
    """p = sigmoid(w . clip((x - mean) / scale) + b).

    Attributes:
        weight_F, mean_F, scale_F: fp64. bias: fp64 scalar.

    """

    weight_F: Tensor
    bias: Tensor
    mean_F: Tensor
    scale_F: Tensor

    def __call__(self, x_NF: Tensor) -> Tensor:
        """Return the probability that each answer is right, fp64 [N]."""
        return torch.sigmoid(
            standardised(x_NF, self.mean_F, self.scale_F) @ self.weight_F + self.bias
        )


@dataclass(frozen=True)
class Verifier:
    """A judge (`models.effort.judges.Judge`) that was trained on labelled answers."""

    card: Card
    scorer: Scorer

    @property
    def most(self) -> int:
        """See `Judge`."""
        return self.card.most

    def scores(self, prompt: str, answers: Sequence[str]) -> list[float]:
        """See `Judge.scores`.

        Raises:
            VerifierError: the verifier asks who wrote an answer.

        """
        if self.card.sources:
            raise VerifierError(
                f"Expected a verifier that does not ask who wrote an answer, got one for "
                f"{', '.join(self.card.sources)}. Train it without --by-source."
            )
        return self.probabilities([read(prompt, answer) for answer in answers], ()).tolist()

    def gain(self, scores: Sequence[float]) -> float:
        """See `Judge.gain`."""
        stopping = self.card.stopping
        worth = float(stopping.worth(torch.tensor(max(scores), dtype=torch.float64)))
        return worth if len(scores) < self.most and worth > stopping.level else 0.0

    def probabilities(self, answers: Sequence[Read], sources: Sequence[str]) -> Tensor:
        """Return how likely each answer is right, fp64 [N]; `sources`: who wrote it, if asked."""
        return self.scorer(inputs(answers, sources, self.card.sources))


def inputs(answers: Sequence[Read], sources: Sequence[str], known: tuple[str, ...]) -> Tensor:
    """Return what a scorer is given, fp64 [N, F or F + 2 S].

    With `known` sources: who wrote each answer, and which of them wrote one that ends alike.
    """
    x_NF = features(answers).double()
    if not known:
        return x_NF
    by_NS = torch.tensor([[source == each for each in known] for source in sources]).double()
    alike_NS = (agreement(answers).double() @ by_NS).clamp(max=1)
    return torch.cat([x_NF, by_NS, alike_NS], -1)


def standardised(x_NF: Tensor, mean_F: Tensor, scale_F: Tensor) -> Tensor:
    """Return inputs in standard deviations, clipped."""
    return ((x_NF - mean_F) / scale_F).clamp(-_SPREAD, _SPREAD)


def save_verifier(verifier: Verifier, folder: Path) -> None:
    """Write a verifier as a new folder, which appears whole.

    Raises:
        VerifierError: something stands there.

    """
    if folder.exists():
        raise VerifierError(f"Expected no {folder}, got one. Choose another --out, or remove it.")
    part = folder.with_name(folder.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(verifier.scorer, name) for name in Scorer.__dataclass_fields__}
    save_file({name: t.contiguous() for name, t in tensors.items()}, part / _WEIGHTS)
    digest = file_digest(part / _WEIGHTS)
    card = verifier.card.model_copy(update={"weights_sha256": digest})
    (part / _CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for each in (_WEIGHTS, _CARD):
        sync(part / each)
    put(part, folder)


def load_verifier(folder: Path) -> Verifier:
    """Read a verifier that `save_verifier` wrote.

    Raises:
        VerifierError: none there, damaged, changed, or of another version of the features.

    """
    card = _load_card(folder / _CARD)
    if card.features != NAMES or card.version != _VERSION:
        raise VerifierError(
            f"Expected a verifier of this version's features in {folder}, got another's. Train it "
            "again."
        )
    weights = folder / _WEIGHTS
    if not weights.is_file() or file_digest(weights) != card.weights_sha256:
        raise VerifierError(
            f"Expected the weights that {folder / _CARD} names, got others or none. Fetch the "
            "verifier again."
        )
    return Verifier(card, _scorer(weights, card))


def _load_card(path: Path) -> Card:
    if not path.is_file():
        raise VerifierError(
            f"Expected a verifier at {path.parent}, got none. Write one with: arion model verifier "
            "train."
        )
    try:
        return Card.model_validate(json.loads(path.read_bytes()))
    except (ValueError, ValidationError) as error:
        raise VerifierError(
            f"Expected a verifier's card in {path}, got something else. Fetch the verifier again, "
            "or train it again if it is of an earlier version."
        ) from error


def _scorer(path: Path, card: Card) -> Scorer:
    width = len(card.features) + 2 * len(card.sources)
    try:
        found = load_file(path)
        scorer = Scorer(**{name: found[name] for name in Scorer.__dataclass_fields__})
    except (SafetensorError, KeyError) as error:
        raise VerifierError(
            f"Expected a verifier's weights in {path}, got others. Fetch the verifier again."
        ) from error
    fits = scorer.weight_F.shape == scorer.mean_F.shape == scorer.scale_F.shape == (width,)
    if not (fits and all(bool(tensor.isfinite().all()) for tensor in found.values())):
        raise VerifierError(
            f"Expected {width} finite weights in {path}, got others. Fetch the verifier again."
        )
    return scorer
