"""The local work that `benchmarks.simulate` measures: a fixed batch per node, and its bare loop.

Shapes: N nodes, B sequences, T positions, D coordinates of the trainable vector.
"""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.config import preset
from models.decoder import Decoder
from models.recipe import prepare
from models.training_settings import Recipe
from models.vector import read_vector, write_vector

PRESET = "nano"


@dataclass(frozen=True)
class Work:
    """What every system computes in a round.

    Attributes:
        token_NBT, target_NBT: each node's sequences, all positions counted.
        vector_D: parameters to start from.

    """

    token_NBT: Tensor
    target_NBT: Tensor
    vector_D: Tensor

    @property
    def nodes(self) -> int:
        """How many nodes there are."""
        return len(self.token_NBT)


def new_model() -> Decoder:
    """Return a model of the measured size, prepared to be trained in full."""
    model = Decoder(preset(PRESET), torch.Generator().manual_seed(0))
    prepare(model, Recipe())
    return model


def summed_loss(model: Decoder, token_BT: Tensor, target_BT: Tensor) -> Tensor:
    """Sum of the sequences' mean losses: each sequence is a privacy unit."""
    loss = model.loss(token_BT, target_BT)
    return (loss.total_B / loss.tokens_B).sum()


def gradient(model: Decoder, token_BT: Tensor, target_BT: Tensor) -> Tensor:
    """Gradient of the summed loss as one flat vector, [D]."""
    summed_loss(model, token_BT, target_BT).backward()  # type: ignore[no-untyped-call]
    parameters = [p for p in model.parameters() if p.requires_grad]
    flat_D = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    return flat_D


class BareLoop:
    """The limit: one model, every node's batch in turn, nothing around it."""

    def __init__(self, work: Work) -> None:
        self.model, self.work = new_model(), work

    def round(self) -> Tensor:
        """Return the sum of all nodes' gradients, [D]."""
        sum_D = torch.zeros_like(self.work.vector_D)
        for token_BT, target_BT in zip(self.work.token_NBT, self.work.target_NBT, strict=True):
            write_vector(self.model, self.work.vector_D)
            sum_D += gradient(self.model, token_BT, target_BT)
        return sum_D


@dataclass
class Pairs:
    """Seconds per node update of a system's rounds, each beside a bare round that followed it.

    Attributes:
        bare: the limit.
        system, limit: seconds, one entry per round but the first.

    """

    bare: BareLoop
    system: list[float] = field(default_factory=list)
    limit: list[float] = field(default_factory=list)
    _begin: float | None = None

    def round_ended(self) -> None:
        """Note the end of one of the system's rounds; the next one begins on return."""
        end = time.perf_counter()
        if self._begin is not None:
            self.system.append((end - self._begin) / self.bare.work.nodes)
            begin = time.perf_counter()
            self.bare.round()
            self.limit.append((time.perf_counter() - begin) / self.bare.work.nodes)
        self._begin = time.perf_counter()


def start_vector() -> Tensor:
    """Parameters of a new model, [D]."""
    return read_vector(new_model())
