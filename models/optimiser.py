"""Adam on noised sums of clipped gradients. All of it is post-processing of their release.

Shapes: D coordinates of the trainable vector, d those of a piece of it.
"""

import json
import math
from dataclasses import dataclass

import torch
from safetensors.torch import load
from torch import Tensor

from models.training_settings import OptimiserSettings

_PIECE = 1 << 17


@dataclass(frozen=True)
class OptimiserState:
    """Parameters and moments after `step` rounds, each fp32 [D].

    Attributes:
        average_D: what is handed out: the moving average of the parameters, or the last ones.

    """

    step: int
    vector_D: Tensor
    first_D: Tensor
    second_D: Tensor
    average_D: Tensor

    @classmethod
    def start(cls, vector_D: Tensor) -> "OptimiserState":
        """Return the state before the first round."""
        first_D, second_D = torch.zeros_like(vector_D), torch.zeros_like(vector_D)
        return cls(0, vector_D, first_D, second_D, vector_D)

    @classmethod
    def from_bytes(cls, data: bytes) -> "OptimiserState":
        """Read what `to_bytes` wrote."""
        tensors = load(data)
        step = int(tensors["step"])
        vector_D = tensors["vector"]
        average_D = tensors.get("average", vector_D)
        return cls(step, vector_D, tensors["first"], tensors["second"], average_D)

    def to_bytes(self) -> bytes:
        """Return the state as safetensors."""
        return b"".join(self.parts())

    def parts(self) -> list[bytes | memoryview]:
        """Return the bytes of `to_bytes` one after the other: a header, and the tensors' own."""
        tensors = {"vector": self.vector_D, "first": self.first_D, "second": self.second_D}
        if self.average_D is not self.vector_D:
            tensors["average"] = self.average_D
        tensors["step"] = torch.tensor(self.step)
        header, data, end = {}, [], 0
        for name, tensor in tensors.items():
            found = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
            begin, end = end, end + found.nbytes
            kind = "I64" if name == "step" else "F32"
            shape = list(tensor.shape)
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
            data.append(found)
        text = json.dumps(header).encode()
        return [len(text).to_bytes(8, "little"), text, *data]


def adam_step(
    state: OptimiserState,
    sum_D: Tensor,
    expected_batch: float,
    settings: OptimiserSettings,
    rounds: int,
    *,
    noise_variance: float = 0.0,
    in_place: bool = False,
) -> OptimiserState:
    """Take one step on a released sum.

    Args:
        state: parameters and moments.
        sum_D: released sum of clipped gradients, fp32 or fp64 [D].
        expected_batch: B, the divisor: a run constant, never the drawn size.
        settings: rates.
        rounds: length of the schedule of rates.
        noise_variance: of the noise in each coordinate of the sum, for `bias_correction`.
        in_place: write over the old state, which nobody may use then: 12 bytes a coordinate less.

    Returns:
        A new state; without `in_place` the old one is not changed.

    Raises:
        ValueError: a sum that is not finite or of another length.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), Algorithm 1; the correction, Tang et al. 2023
    (arXiv 2312.14334), Algorithm 1; the average, corrected for its start as Adam's moments are.

    """
    if sum_D.shape != state.vector_D.shape or not _is_finite(sum_D):
        raise ValueError(
            f"Expected a finite sum of {len(state.vector_D)} coordinates, got shape "
            f"{tuple(sum_D.shape)}. The round must be aborted."
        )
    step = state.step + 1
    rate = settings.learning_rate * rate_factor(step, rounds, settings.warm_up)
    variance = noise_variance / expected_batch**2
    old = (state.vector_D, state.first_D, state.second_D)
    vector_D, first_D, second_D = old if in_place else map(torch.empty_like, old)
    # In pieces that a cache holds: fresh memory for every product costs more than the arithmetic.
    for begin in range(0, len(sum_D), _PIECE):
        piece = slice(begin, begin + _PIECE)
        mean_d = (sum_D[piece] / expected_batch).float()
        first_d, second_d = first_D[piece], second_D[piece]
        torch.lerp(state.first_D[piece], mean_d, 1 - settings.beta1, out=first_d)
        torch.lerp(state.second_D[piece], mean_d.square(), 1 - settings.beta2, out=second_d)
        moment_d = second_d / (1 - settings.beta2**step)
        if settings.bias_correction:
            moment_d = (moment_d - variance).clamp(min=settings.noise_floor * variance)
        change_d = rate * (first_d / (1 - settings.beta1**step))
        change_d /= moment_d.sqrt() + settings.epsilon
        torch.sub(state.vector_D[piece], change_d, out=vector_D[piece])
    average_D = _average(state, vector_D, step, settings.average_decay)
    return OptimiserState(step, vector_D, first_D, second_D, average_D)


def _is_finite(sum_D: Tensor) -> bool:
    """Tell whether all are finite: a sum's extremes are not where one is not."""
    return bool(torch.isfinite(torch.stack(torch.aminmax(sum_D))).all())


def _average(state: OptimiserState, vector_D: Tensor, step: int, decay: float) -> Tensor:
    """Return sum_t decay^(step - t) vector_t over its weights; the start has no weight."""
    if decay == 0:
        return vector_D
    if step == 1:
        return vector_D.clone()
    new_share = (1 - decay) / (1 - decay**step)
    return torch.lerp(state.average_D, vector_D, new_share)


def rate_factor(step: int, rounds: int, warm_up: float) -> float:
    """Learning-rate factor of a step (from 1): rises over `warm_up` of the rounds, cosine to 0."""
    rise = min(1.0, step / max(1.0, warm_up * rounds))
    return rise * 0.5 * (1 + math.cos(math.pi * (step - 1) / rounds))
