"""The server's optimiser: Adam on released sums. All of it is post-processing of the release.

Shapes: D coordinates of the trainable vector.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from coordinator.settings import OptimiserSettings


@dataclass(frozen=True)
class OptimiserState:
    """Parameters and moments after `step` rounds, each fp32 [D]."""

    step: int
    vector_D: Tensor
    first_D: Tensor
    second_D: Tensor

    @classmethod
    def start(cls, vector_D: Tensor) -> "OptimiserState":
        """Return the state before the first round."""
        return cls(0, vector_D, torch.zeros_like(vector_D), torch.zeros_like(vector_D))


def adam_step(
    state: OptimiserState,
    sum_D: Tensor,
    expected_batch: float,
    settings: OptimiserSettings,
    rounds: int,
) -> OptimiserState:
    """Take one step on a released sum.

    Args:
        state: parameters and moments.
        sum_D: released sum of clipped gradients, fp32 or fp64 [D].
        expected_batch: B, the divisor: a run constant, never the drawn size.
        settings: rates.
        rounds: length of the schedule of rates.

    Returns:
        A new state; the old one is not changed.

    Raises:
        ValueError: a sum that is not finite or of another length.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 1.

    """
    if sum_D.shape != state.vector_D.shape or not torch.isfinite(sum_D).all():
        raise ValueError(
            f"Expected a finite sum of {len(state.vector_D)} coordinates, got shape "
            f"{tuple(sum_D.shape)}. The round must be aborted."
        )
    step = state.step + 1
    mean_D = (sum_D / expected_batch).float()
    first_D = torch.lerp(state.first_D, mean_D, 1 - settings.beta1)
    second_D = torch.lerp(state.second_D, mean_D.square(), 1 - settings.beta2)
    corrected_D = first_D / (1 - settings.beta1**step)
    root_D = (second_D / (1 - settings.beta2**step)).sqrt()
    rate = settings.learning_rate * rate_factor(step, rounds, settings.warm_up)
    vector_D = state.vector_D - rate * corrected_D / (root_D + settings.epsilon)
    return OptimiserState(step, vector_D, first_D, second_D)


def rate_factor(step: int, rounds: int, warm_up: float) -> float:
    """Learning-rate factor of a step (from 1): rises over `warm_up` of the rounds, cosine to 0."""
    rise = min(1.0, step / max(1.0, warm_up * rounds))
    return rise * 0.5 * (1 + math.cos(math.pi * (step - 1) / rounds))
