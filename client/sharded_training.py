"""Local training of one institution over several processes, each with its share of the weights.

Rank 0 is the node: it alone draws the sample, and it alone adds noise to what it gets back. The
other ranks only ever learn which units to process (`serve`); they have no sampler, no noise and no
key. Every rank holds the institution's units.

Shapes: D coordinates of the trainable vector.
"""

import hashlib
import json
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from client.training import LocalTrainer, UnitRows
from models.decoder import Decoder
from models.parallel import ParallelError, World, assign, shard
from models.training_settings import Recipe
from models.vector import check_vector, vector_length, views_by_name
from privacy.dp.clipping import add_clipped_gradients
from privacy.dp.plan import PrivateStep


class ShardedTrainer(LocalTrainer):
    """A `LocalTrainer` whose physical chunks are divided among the processes of a `World`.

    Rank 0 calls `set_vector`, `clipped_sum` and at last `close`; every other rank calls `serve`.

    Args:
        model: the same, prepared by the same recipe, at every rank; sharded in place.
        units, recipe, chunk_sequences, pad_draws: as in `LocalTrainer`, the same at every rank.
        world: two processes or more.

    Raises:
        ParallelError: the ranks hold different weights, units or settings, or compute on GPUs.

    """

    def __init__(
        self,
        model: Decoder,
        units: UnitRows,
        recipe: Recipe,
        world: World,
        *,
        chunk_sequences: int | None = None,
        pad_draws: bool = True,
    ) -> None:
        super().__init__(model, units, recipe, chunk_sequences=chunk_sequences, pad_draws=pad_draws)
        self._world, self._usable = world, True
        self._check()
        self._weights = shard(model, world)

    def clipped_sum(self, drawn: NDArray[np.int64], step: PrivateStep) -> NDArray[np.float32]:
        """See `LocalTrainer.clipped_sum`; all ranks work, rank 0 gets the sum.

        A unit whose gradient is not finite contributes zero with and without noise.

        Formal guarantee: every drawn unit is processed whole, by exactly one rank, and clipped to C
        there; the ranks' sums are added once. The sum's sensitivity is a single process's.

        Raises:
            ParallelError: an earlier call failed, and the ranks no longer agree what comes next.

        """
        order = {"do": "sum", "drawn": drawn.tolist(), "step": step.model_dump(mode="json")}
        return self._together(order).numpy()

    def set_vector(self, vector_D: Tensor) -> None:
        """Set the trainable parameters at all ranks, fp32 [D].

        Raises:
            ValueError: another length than the layout's.

        """
        check_vector(self.model, vector_D)
        self._together({"do": "set"}, vector_D)

    def close(self) -> None:
        """Let the other ranks' `serve` return."""
        if self._usable:
            self._together({"do": "end"})

    def serve(self) -> None:
        """Work for rank 0 until it closes: what every other rank does."""
        while (order := json.loads(self._world.from_first()))["do"] != "end":
            self._obey(order, torch.zeros(vector_length(self.model)))

    def _check(self) -> None:
        """A unit's index must mean the same unit everywhere: else one might be summed twice."""
        if self._world.device.type != "cpu":
            raise ParallelError(
                "Expected processes that compute on CPU, got GPUs: private training has not been "
                "tried there. Set CUDA_VISIBLE_DEVICES to nothing."
            )
        settings = (self.recipe, self._chunk_units, self._pad_draws)
        digest = hashlib.sha256(repr(settings).encode())
        for rows in self.units.rows:
            digest.update(repr(rows).encode())
        if not self._world.agrees(digest.digest()):
            raise ParallelError(
                "Expected the same units, recipe and chunks in every process, got different ones. "
                "Read one shard with one node.toml in all of them."
            )

    def _together(self, order: dict[str, Any], vector_D: Tensor | None = None) -> Tensor:
        """Send an order to the other ranks and obey it here; a failure leaves all unusable."""
        if not (self._world.is_first and self._usable):
            raise ParallelError(
                "Expected an order by rank 0 while all processes stand by, got one by another rank "
                "or after a failure. Start the processes again."
            )
        if vector_D is None:
            vector_D = torch.zeros(vector_length(self.model))
        self._usable = False
        self._world.from_first(json.dumps(order).encode())
        self._obey(order, vector_D)
        self._usable = True
        return vector_D

    def _obey(self, order: dict[str, Any], vector_D: Tensor) -> None:
        if order["do"] == "set":
            self._set(vector_D)
        if order["do"] == "sum":
            step = PrivateStep.model_validate_json(json.dumps(order["step"]))
            self._add_sum(np.array(order["drawn"], np.int64), step, vector_D)

    def _set(self, vector_D: Tensor) -> None:
        distributed.broadcast(vector_D, 0)
        parameters = dict(self.model.named_parameters())
        for name, view in views_by_name(self.model, vector_D).items():
            assign(parameters[name], view)

    def _add_sum(self, drawn: NDArray[np.int64], step: PrivateStep, sum_D: Tensor) -> None:
        """Process this rank's chunks; rank 0 ends with the sum over all ranks."""
        bound = step.clipping_norm if step.is_private else math.inf
        rule = step.clipping if step.is_private else "fixed"
        sums = views_by_name(self.model, sum_D)
        for chunk in self._chunks(drawn, step, self._world.rank, self._world.size):
            add_clipped_gradients(self.model, chunk, bound, sums, self._weights, clipping=rule)
        distributed.reduce(sum_D, 0)
