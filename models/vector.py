"""A model's trainable parameters as one flat vector, in the order of their names in the model.

Shapes: D coordinates of the vector.
"""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def trainable_layout(model: nn.Module) -> tuple[tuple[str, int], ...]:
    """(name, element count) of every trainable parameter, in the vector's order."""
    return tuple((n, p.numel()) for n, p in model.named_parameters() if p.requires_grad)


def vector_length(model: nn.Module) -> int:
    """D, the number of trainable elements."""
    return sum(size for _, size in trainable_layout(model))


def read_vector(model: nn.Module) -> Tensor:
    """Copy the trainable parameters into a new vector, fp32 [D]."""
    parts = [p.detach().float().flatten() for p in model.parameters() if p.requires_grad]
    return torch.cat(parts)


def vector_of(data: memoryview) -> Tensor:
    """View fp32 bytes, little-endian, as a vector [D]; it must not be written to."""
    with warnings.catch_warnings():  # torch has no tensors that are only read
        warnings.simplefilter("ignore")
        return torch.frombuffer(data, dtype=torch.float32)


@torch.no_grad()
def write_vector(model: nn.Module, vector_D: Tensor) -> None:
    """Copy a vector into the trainable parameters.

    Raises:
        ValueError: another length than the layout's.

    """
    check_vector(model, vector_D)
    begin = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            end = begin + parameter.numel()
            parameter.copy_(vector_D[begin:end].view_as(parameter))
            begin = end


def check_vector(model: nn.Module, vector_D: Tensor) -> None:
    """Check a vector's length against the model's.

    Raises:
        ValueError: another length than the layout's.

    """
    total = vector_length(model)
    if vector_D.shape != (total,):
        raise ValueError(
            f"Expected a vector of {total} trainable elements, got {tuple(vector_D.shape)}. "
            "Both sides must prepare the same model with the same recipe."
        )


def views_by_name(model: nn.Module, vector_D: Tensor) -> Mapping[str, Tensor]:
    """Views of a vector in the shapes of the trainable parameters, by name."""
    views, begin = {}, 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            end = begin + parameter.numel()
            views[name] = vector_D[begin:end].view(parameter.shape)
            begin = end
    return views
