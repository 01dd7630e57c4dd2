"""A trained scorer of answers: logistic regression on what they compute and where they agree.

Shapes: N answers to one prompt, F features, S sources, D draws per prompt less one, B bins.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.durable import file_digest, put, sync
from models.effort.features import NAMES, Read, agreement, features, read

_WEIGHTS, _CARD = "verifier.safetensors", "verifier.json"
_SPREAD = 5.0  # standard deviations beyond which a feature says no more


class VerifierError(ValueError):
    """A verifier that cannot be used."""


class Card(BaseModel):
    """What a verifier was trained on, and for which features.

    Attributes:
        features: names, in order. sources: who may have written an answer; empty where the verifier
            does not ask. most: answers per question of its training data.
        questions: of the training data. data_sha256: of its file. weights_sha256: of the weights.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    features: tuple[str, ...]
    sources: tuple[str, ...]
    most: int
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
class Curve:
    """What a further draw brought on the training data, by the best answer's probability so far.

    Attributes:
        edge_DB: upper edges of all bins but the last, per number of draws. rate_DB: gain in the
            chance of being right, per draw, up to the best number of further draws.

    """

    edge_DB: Tensor
    rate_DB: Tensor

    def rate(self, draws: int, best: float) -> float:
        """Return the gain per further draw after `draws` draws, 0 where none was ever tried."""
        if draws > len(self.rate_DB):
            return 0.0
        found = torch.tensor(best, dtype=torch.float64)
        return float(self.rate_DB[draws - 1, torch.bucketize(found, self.edge_DB[draws - 1])])


@dataclass(frozen=True)
class Verifier:
    """A judge (`models.effort.judges.Judge`) that was trained on labelled answers."""

    card: Card
    scorer: Scorer
    curve: Curve

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
        return self.curve.rate(len(scores), max(scores))

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
    scorer, curve = verifier.scorer, verifier.curve
    tensors = {name: getattr(scorer, name) for name in Scorer.__dataclass_fields__}
    tensors |= {name: getattr(curve, name) for name in Curve.__dataclass_fields__}
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
    if card.features != NAMES or card.version != 1:
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
    return Verifier(card, *_tensors(weights, card))


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
            f"Expected a verifier's card in {path}, got something else. Fetch the verifier again."
        ) from error


def _tensors(path: Path, card: Card) -> tuple[Scorer, Curve]:
    width = len(card.features) + 2 * len(card.sources)
    try:
        found = load_file(path)
        scorer = Scorer(**{name: found[name] for name in Scorer.__dataclass_fields__})
        curve = Curve(**{name: found[name] for name in Curve.__dataclass_fields__})
    except (SafetensorError, KeyError) as error:
        raise VerifierError(
            f"Expected a verifier's weights in {path}, got others. Fetch the verifier again."
        ) from error
    fits = scorer.weight_F.shape == scorer.mean_F.shape == scorer.scale_F.shape == (width,)
    finite = all(bool(tensor.isfinite().all()) for tensor in found.values())
    if not (fits and finite and len(curve.rate_DB) == len(curve.edge_DB) == card.most - 1):
        raise VerifierError(
            f"Expected {width} finite weights in {path}, got others. Fetch the verifier again."
        )
    return scorer, curve
