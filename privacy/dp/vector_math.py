"""Logarithms, and points on circles, of whole vectors.

numpy's functions are the faster ones where it has them for the processor's AVX-512, and go number
by number elsewhere; torch's are vectors everywhere. Of either, docs/privacy.md assumes errors of at
most 4 ulp. Suffix P: pairs.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def _numpy_is_fast() -> bool:
    found = np.lib.introspect.opt_func_info(func_name="^tan$", signature="float64")
    current = [kind["current"] for kinds in found.values() for kind in kinds.values()]
    return bool(current) and not any(each.startswith("baseline") for each in current)


NUMPY_IS_FAST: Final = _numpy_is_fast()
"""Whether numpy has tan, the rarest of these functions, for this processor's vectors."""


def log(x_P: Floats) -> Floats:
    """Natural logarithms, in new memory."""
    return np.log(x_P) if NUMPY_IS_FAST else torch.log(torch.from_numpy(x_P)).numpy()


def log1p_in_place(x_P: Floats) -> None:
    """Overwrite x by log(1 + x)."""
    if NUMPY_IS_FAST:
        np.log1p(x_P, out=x_P)
    else:
        torch.from_numpy(x_P).log1p_()


def on_circles(radius_P: Floats, angle_P: Floats) -> tuple[Floats, Floats]:
    """Return radius * cos(angle) and radius * sin(angle); the angles may be overwritten.

    Args:
        radius_P: radii.
        angle_P: angles from -pi to pi; pi itself is no float64, so tan(angle / 2) is finite.

    """
    if not NUMPY_IS_FAST:
        angle = torch.from_numpy(angle_P)
        cosine, sine = torch.cos(angle).numpy(), torch.sin(angle).numpy()
        cosine *= radius_P
        sine *= radius_P
        return cosine, sine
    # One tangent instead of sine and cosine: with t = tan(angle / 2) they are
    # (1 - t^2) / (1 + t^2) and 2t / (1 + t^2).
    angle_P *= 0.5
    tangent = np.tan(angle_P, out=angle_P)
    square = tangent * tangent
    scale = square + 1.0
    np.divide(radius_P, scale, out=scale)
    np.subtract(1.0, square, out=square)
    square *= scale
    tangent += tangent
    tangent *= scale
    return square, tangent
