"""Inner product of every unit's gradient with one vector, from one backward pass.

As with book-keeping (`privacy.dp.clipping`), no unit's gradient is ever formed: a layer's share of
<g_u, V> is the sum over the unit's positions of grad . (V x), one more product per layer.

Shapes: B sequences, T positions, U units, V/D/I/O/E/M as in privacy.dp.records.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from models.language_model import LanguageModel
from models.ops import Slots, recording
from models.vector import views_by_name
from privacy.dp.clipping import Chunk, unit_losses


class _Projector:
    """The recorder that models.ops calls during backward; `total_B` collects the layers' shares."""

    def __init__(self, directions: Mapping[int, Tensor], sequences: int) -> None:
        self._directions = directions
        self.total_B = torch.zeros(sequences)

    def linear(self, weight_OI: Tensor, x_BTI: Tensor, grad_BTO: Tensor) -> None:
        y_BTO = x_BTI @ self._directions[id(weight_OI)].T
        self.total_B += (y_BTO * grad_BTO).flatten(1).sum(1)

    def grouped(self, weight_EOI: Tensor, x_MI: Tensor, grad_MO: Tensor, slots: Slots) -> None:
        direction_EOI = self._directions[id(weight_EOI)]
        for expert, begin, end in slots.used():
            y_MO = x_MI[begin:end] @ direction_EOI[expert].T
            sequence_M = slots.token_M[begin:end] // slots.positions
            self.total_B.index_add_(0, sequence_M, (y_MO * grad_MO[begin:end]).sum(1))

    def scale(self, weight_D: Tensor, x: Tensor, grad: Tensor) -> None:
        self.total_B += (x * grad * self._directions[id(weight_D)]).flatten(1).sum(1)

    def embedding(self, weight_VD: Tensor, token_BT: Tensor, grad_BTD: Tensor) -> None:
        y_BTD = self._directions[id(weight_VD)][token_BT]
        self.total_B += (y_BTD * grad_BTD).flatten(1).sum(1)


def project_gradients(model: LanguageModel, chunk: Chunk, direction_D: Tensor) -> Tensor:
    """Return <g_u, direction> of every unit's unclipped gradient, fp32 [U].

    Args:
        model: as for `privacy.dp.clipping.add_clipped_gradients`. chunk: whole units.
        direction_D: fp32, in the order of the trainable vector.

    """
    views = views_by_name(model, direction_D)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    directions = {id(parameters[name]): view for name, view in views.items()}
    projector = _Projector(directions, len(chunk.token_BT))
    with recording(projector):
        unit_losses(model, chunk).sum().backward()  # type: ignore[no-untyped-call]
    return chunk.layout.add_rows(projector.total_B[:, None]).squeeze(1)
