"""What each unit's gradient is multiplied by, so that its norm stays within C.

Shapes: U privacy units.
"""

import math

from torch import Tensor

from privacy.dp.plan import Clipping, PlanError

AUTOMATIC_GAMMA = 0.01
"""The stability constant of automatic clipping, in gradient norm units; the paper's value."""


def clip_coefficients(
    norm_U: Tensor, clipping_norm: float, clipping: Clipping, present_U: Tensor
) -> Tensor:
    """Return the factor of every unit: min(1, C / norm), or C / (norm + gamma).

    Args:
        norm_U: norms before clipping, >= 0.
        clipping_norm: C > 0; infinite, for no clipping at all, only with "fixed".
        clipping: "fixed" scales down what exceeds C; "automatic" scales every unit towards C.
        present_U: False for padding units.

    Returns:
        Factors, [U]; 0 for a unit that is absent or whose norm is not finite.

    Raises:
        PlanError: an infinite C for automatic clipping.

    Formal guarantee: factor * norm <= C up to the rounding of one fp32 quotient, for both rules.

    Source: Abadi et al. 2016 (arXiv 1607.00133), Algorithm 1; Bu et al. 2022 (arXiv 2206.07136),
    AUTO-S, with their R as C.

    """
    if clipping == "automatic":
        if not math.isfinite(clipping_norm):
            raise PlanError(
                f"Expected a finite clipping_norm for automatic clipping, got {clipping_norm}. "
                'Set clipping = "fixed".'
            )
        factor_U = clipping_norm / (norm_U + AUTOMATIC_GAMMA)
    else:
        factor_U = (clipping_norm / norm_U.clamp(min=1e-12)).clamp(max=1.0)
    return factor_U.where(present_U & norm_U.isfinite(), 0.0)


def largest_coefficient(clipping_norm: float, clipping: Clipping) -> float:
    """Return a bound on the factors that `clip_coefficients` gives, whatever the norms."""
    return clipping_norm / AUTOMATIC_GAMMA if clipping == "automatic" else 1.0
