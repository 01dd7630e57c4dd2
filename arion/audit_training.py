"""Audit through training: does the trainer that a node runs hide one unit as well as is claimed.

Text canaries are units of random tokens, each in with probability 1/2, and nothing else is trained
on: no private record takes part, and whatever else a node holds could only hide canaries. They pass
the real clipping, sampler, noise, lattice and optimiser, in every release of the schedule. Two
attackers guess who was in:

* gradient (white-box; Nasr et al. 2023, arXiv 2302.07956; Andrew et al. 2023, arXiv 2302.03098):
  sees every opened sum and model. Its score is the log-likelihood ratio of the sum along each
  canary's own gradient, after what all canaries together contribute on average is taken off.
* loss (black-box): sees the first and the last model. Its score is how far the canary's loss fell.

Shapes: M canaries, B sequences, T positions, D coordinates of the trainable vector.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arion.audit_canaries import (
    Bound,
    bound_of,
    dealt,
    draw_included,
    log_likelihood_ratio,
    opened_sum,
)
from client.entropy import Entropy
from client.training import LocalTrainer, UnitRows
from models.language_model import LanguageModel
from models.optimiser import OptimiserState, adam_step
from models.tokenizer import Row, stack_rows
from models.training_settings import OptimiserSettings, Recipe
from models.vector import read_vector, vector_length, views_by_name, write_vector
from privacy.dp.clipping import Chunk, add_clipped_gradients, unit_losses
from privacy.dp.coefficients import clip_coefficients
from privacy.dp.lattice import release_variance
from privacy.dp.plan import PrivateStep
from privacy.dp.projections import project_gradients
from privacy.dp.records import UnitLayout

_CHUNK = 256
_LONGEST = 16
"""Tokens of a canary, at most: clipped to C anyway, a longer one costs time and shows no more."""

Watch = Callable[[int], None]


def _unwatched(_release: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class AuditedTraining:
    """What is trained, as a run trains it.

    Attributes:
        model: prepared by the recipe, with the parameters that the run starts from; is changed.
        step: the mechanism, with noise. recipe, optimiser: of the run.

    """

    model: LanguageModel
    step: PrivateStep
    recipe: Recipe
    optimiser: OptimiserSettings


def audit_training(
    training: AuditedTraining,
    delta: float,
    *,
    canaries: int,
    confidence: float,
    entropy: Entropy,
    watch: Watch = _unwatched,
) -> tuple[Bound, Bound]:
    """Train on canaries alone for a whole schedule, and attack what comes out.

    Args:
        training: what is trained, and how. delta: of the claim.
        canaries: m >= 10. confidence: of each of the two bounds.
        entropy: where canaries, samples and noise come from.
        watch: told the number of every release that is done.

    Returns:
        The bounds of "gradient" and "loss".

    Raises:
        AuditError: too few canaries. LatticeError: a step without noise.

    """
    model, step = training.model, training.step
    included_M = draw_included(canaries, entropy, "training")
    attacker = _Attacker(model, canary_units(canaries, training, entropy), step)
    members = [
        LocalTrainer(model, attacker.units_at(own), training.recipe, pad_draws=False)
        for own in dealt(included_M, step.honest_survivors)
    ]
    before_M, score_M = attacker.losses(), np.zeros(canaries)
    state = OptimiserState.start(read_vector(model))
    for release in range(step.releases):
        sum_D = torch.from_numpy(opened_sum(members, step, entropy, ("training", release)))
        score_M += attacker.read(sum_D)
        state = _moved(state, sum_D, training)
        write_vector(model, state.vector_D)
        watch(release + 1)
    write_vector(model, state.average_D)
    fall_M = before_M - attacker.losses()
    return (
        bound_of("gradient", score_M, included_M, delta, confidence),
        bound_of("loss", fall_M, included_M, delta, confidence),
    )


def canary_units(count: int, training: AuditedTraining, entropy: Entropy) -> UnitRows:
    """Draw units of one short sequence of uniform tokens each: unlike any text, and each other."""
    length = 1 + min(_LONGEST, training.recipe.sequence_length)
    words = entropy.uniform("canary tokens").words(count * length)
    token_ML = (words % np.uint64(training.model.vocab_size)).astype(np.int64)
    return UnitRows(
        tuple((Row(tuple(ids), 0),) for ids in token_ML.reshape(count, length).tolist())
    )


def _moved(state: OptimiserState, sum_D: Tensor, training: AuditedTraining) -> OptimiserState:
    """The coordinator's step on an opened sum."""
    step = training.step
    return adam_step(
        state,
        sum_D,
        step.expected_batch,
        training.optimiser,
        step.releases,
        noise_variance=release_variance(step, step.honest_survivors),
    )


class _Attacker:
    """Knows the canaries, the model of every round and the mechanism; not who is in."""

    def __init__(self, model: LanguageModel, units: UnitRows, step: PrivateStep) -> None:
        self._model, self._units, self._step = model, units, step

    def units_at(self, index_N: NDArray[np.int64]) -> UnitRows:
        """Some of the canaries, as a member's data."""
        return UnitRows(tuple(self._units.rows[index] for index in index_N))

    @torch.no_grad()
    def losses(self) -> NDArray[np.float64]:
        """Mean nats per token of every canary under the model as it stands, [M]."""
        return _joined([unit_losses(self._model, chunk) for chunk in self._chunks()])

    def read(self, sum_D: Tensor) -> NDArray[np.float64]:
        """Log-likelihood ratio of in over out for every canary, from one opened sum, [M]."""
        step = self._step
        expected_D, norm_M = self._expected()
        rest_D = (sum_D - expected_D).float()
        slopes = [project_gradients(self._model, chunk, rest_D) for chunk in self._chunks()]
        along_M = _joined(slopes) / np.maximum(norm_M, 1e-12)
        norms = torch.from_numpy(norm_M)
        present_M = torch.ones(len(norm_M), dtype=torch.bool)
        factor_M = clip_coefficients(norms, step.clipping_norm, step.clipping, present_M)
        clipped_M = norm_M * factor_M.numpy()
        # `expected_D` holds half of q of the canary itself, which is put back.
        along_M += step.sampling_probability / 2 * clipped_M
        return log_likelihood_ratio(along_M, clipped_M, step)

    def _expected(self) -> tuple[Tensor, NDArray[np.float64]]:
        """What all canaries contribute on average, fp32 [D], and each one's gradient norm, [M]."""
        step = self._step
        sum_D, norms = torch.zeros(vector_length(self._model)), []
        sums = views_by_name(self._model, sum_D)
        for chunk in self._chunks():
            outcome = add_clipped_gradients(
                self._model, chunk, step.clipping_norm, sums, clipping=step.clipping
            )
            norms.append(outcome.norm_U)
        return sum_D * (step.sampling_probability / 2), _joined(norms)

    def _chunks(self) -> Iterator[Chunk]:
        rows = [row for unit in self._units.rows for row in unit]
        for begin in range(0, len(rows), _CHUNK):
            part = rows[begin : begin + _CHUNK]
            token_BT, target_BT = stack_rows(part, len(part[0].ids) - 1)
            layout = UnitLayout(torch.arange(len(part)), len(part))
            yield Chunk(token_BT, target_BT, layout, torch.ones(len(part), dtype=torch.bool))


def _joined(parts: list[Tensor]) -> NDArray[np.float64]:
    return torch.cat(parts).double().numpy()
