"""Held-out losses of a simulation's models, by institution; and what experts each one uses.

Shapes: D coordinates of the trainable vector.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from torch import Tensor

from arion.corpus import Corpus, first_rows
from models.decoder import Decoder
from models.evaluate import evaluate, expert_shares
from models.folders import open_model
from models.language_model import LanguageModel
from models.recipe import prepare
from models.tokenizer import Row
from models.training_settings import Recipe
from models.vector import write_vector

Losses = dict[str, float]


class Evaluator:
    """Evaluates trainable vectors on the base model.

    Args:
        base: the model folder that the run started from.
        recipe: which parameters the vectors hold.
        corpus: institutions; those that take part make up "mean", the unseen ones "unseen".

    """

    def __init__(self, base: Path, recipe: Recipe, corpus: Corpus) -> None:
        self._model, self._tokenizer = open_model(base)
        prepare(self._model, recipe)
        self._length, self._corpus = recipe.sequence_length, corpus
        self._rows: dict[tuple[str, int], dict[str, list[Row]]] = {}

    @property
    def model(self) -> LanguageModel:
        """The model, with the vector that was evaluated last."""
        return self._model

    @property
    def unseen(self) -> tuple[str, ...]:
        """Names of the institutions that take no part."""
        return tuple(institution.name for institution in self._corpus.unseen)

    def losses(self, vector_D: Tensor, part: str, limit: int) -> Losses:
        """Nats per token of each institution, and their means.

        Args:
            vector_D: trainable parameters, fp32 [D].
            part: "heldout" or "validation".
            limit: most records of each institution.

        Returns:
            By institution; "mean" over those that take part, "unseen" over the unseen.

        """
        names = self._evaluated(part, limit)
        return with_means(self.losses_of(vector_D, tuple(names), part, limit), self.unseen)

    def losses_of(self, vector_D: Tensor, names: Sequence[str], part: str, limit: int) -> Losses:
        """Nats per token of some institutions; see `losses`."""
        write_vector(self._model, vector_D)
        rows = self._evaluated(part, limit)
        return {name: evaluate(self._model, rows[name]).nats_per_token for name in names}

    def routing(self, vector_D: Tensor, limit: int) -> dict[str, list[list[float]]]:
        """Share of the router's weight per layer and expert, by institution.

        Empty for a class without our experts.
        """
        if not isinstance(self._model, Decoder):
            return {}
        write_vector(self._model, vector_D)
        return {
            name: expert_shares(self._model, rows, self._length).tolist()
            for name, rows in self._evaluated("heldout", limit).items()
        }

    def _evaluated(self, part: str, limit: int) -> Mapping[str, Sequence[Row]]:
        if (part, limit) not in self._rows:
            records = self._corpus.evaluation(part, limit)
            self._rows[part, limit] = first_rows(records, self._tokenizer, self._length)
        return self._rows[part, limit]


def with_means(found: Losses, unseen: Sequence[str]) -> Losses:
    """Put "mean" (and "unseen") before the losses by institution."""
    seen = [loss for name, loss in found.items() if name not in unseen]
    away = [loss for name, loss in found.items() if name in unseen]
    means = {"mean": fmean(seen)} if seen else {}
    if away:
        means["unseen"] = fmean(away)
    return means | found
