"""Local training: a draw of privacy units becomes one clipped sum, which only the gate asks for.

Shapes: B sequences, T positions, U units of a chunk, D coordinates of the trainable vector.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.data import Record
from models.footprint import ROOM, sequence_bytes, sequences_in
from models.language_model import LanguageModel
from models.tokenizer import Row, Tokenizer, stack_rows
from models.training_settings import Recipe
from models.vector import vector_length, views_by_name
from privacy.dp.clipping import Chunk, add_clipped_gradients, trained_parameters, unit_losses
from privacy.dp.passes import add_clipped_twice, add_clipped_unit, gradients_into
from privacy.dp.plan import PrivateStep
from privacy.dp.records import UnitLayout
from privacy.dp.sampling import chunks_for, physical_chunks

_ABSENT = Row((0,), 0)


@dataclass(frozen=True)
class UnitRows:
    """The sequences of every privacy unit of a node, in the order of the units' keys."""

    rows: tuple[tuple[Row, ...], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def as_one(self) -> "UnitRows":
        """Return all sequences as those of one unit: the institution, clipped as a whole."""
        return UnitRows((tuple(chain.from_iterable(self.rows)),))


def unit_rows(records: Iterable[Record], tokenizer: Tokenizer, recipe: Recipe) -> UnitRows:
    """Cut every unit's text into at most `recipe.sequences_per_unit` sequences.

    First sequences of all of a unit's records come before second ones, so that a long record does
    not crowd the others out.
    """
    records = sorted(records, key=lambda record: (record.unit, record.source))
    cap, length = recipe.sequences_per_unit, recipe.sequence_length
    cut = tokenizer.rows([record.text for record in records], length, cap)
    by_unit: dict[str, list[tuple[int, Row]]] = defaultdict(list)
    for record, rows in zip(records, cut, strict=True):
        by_unit[record.unit].extend(enumerate(rows))
    return UnitRows(
        tuple(
            tuple(row for _, row in sorted(found, key=lambda pair: pair[0])[:cap])
            for found in by_unit.values()
        )
    )


def sequences_at_once(model: LanguageModel, length: int) -> int:
    """Return how many sequences of `length` tokens to process at once, 1 to 32.

    What they need beside weights and sums shall stay near 2 GiB, on a GPU near a quarter of its
    memory. It is estimated by the model's shape: what goes into and comes out of each matrix,
    forwards and backwards. What is free at the moment does not count, so that a node that starts
    again adds up in the same order.
    """
    device, room = next(model.parameters()).device, ROOM
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory // 4
    return sequences_in(room, sequence_bytes(model, length))


class LocalTrainer:
    """One institution's model and data; `clipped_sum` is the only thing asked of them.

    Args:
        model: prepared by the recipe; its parameters are the round's. Work is done where it lies.
        units: the training units.
        recipe: cap and length of sequences.
        chunk_sequences: sequences processed at once: of whole units, or of one unit in pieces;
            None: `sequences_at_once`.
        two_passes, pad_draws: see `client.config.NodeConfig`.

    """

    def __init__(
        self,
        model: LanguageModel,
        units: UnitRows,
        recipe: Recipe,
        *,
        chunk_sequences: int | None = None,
        two_passes: bool = False,
        pad_draws: bool = True,
    ) -> None:
        self.model, self.units, self.recipe = model, units, recipe
        if chunk_sequences is None:
            chunk_sequences = sequences_at_once(model, recipe.sequence_length)
        self._chunk_sequences, self._two_passes = chunk_sequences, two_passes
        # An institution that is one unit has more sequences than the cap of each of its records.
        longest = max([recipe.sequences_per_unit, *map(len, units.rows)])
        self._chunk_units = max(1, chunk_sequences // longest)
        self._pad_draws = pad_draws
        self._device = next(model.parameters()).device

    @property
    def unit_count(self) -> int:
        """Privacy units that can be drawn."""
        return len(self.units)

    def clipped_sum(self, drawn: NDArray[np.int64], step: PrivateStep) -> NDArray[np.float32]:
        """Sum the clipped gradients of the drawn units; a step without noise does not clip.

        Args:
            drawn: indices of the drawn units, any number, none included.
            step: gives C and the rule; whether there is noise decides whether anything is clipped.

        Returns:
            Sum over the drawn units of the gradient of each unit's mean loss, fp32 [D].

        Raises:
            ClippingError: see `privacy.dp.clipping.add_clipped_gradients`.

        """
        sum_D = torch.zeros(vector_length(self.model), device=self._device)
        sums = views_by_name(self.model, sum_D)
        for chunk in self._chunks(drawn, step):
            self._add(chunk, step, sums)
        return sum_D.cpu().numpy()

    def _add(self, chunk: Chunk, step: PrivateStep, sums: Mapping[str, Tensor]) -> None:
        clip, rule = step.clipping_norm, step.clipping
        if not step.is_private:
            clip, rule = math.inf, "fixed"
        if len(chunk.token_BT) > self._chunk_sequences and chunk.layout.units == 1:
            add_clipped_unit(self.model, chunk, clip, sums, self._chunk_sequences, clipping=rule)
        elif not step.is_private:
            _add_gradients(self.model, chunk, sums)
        elif self._two_passes:
            add_clipped_twice(self.model, chunk, clip, sums, clipping=rule)
        else:
            add_clipped_gradients(self.model, chunk, clip, sums, clipping=rule)

    def _chunks(
        self, drawn: NDArray[np.int64], step: PrivateStep, part: int = 0, parts: int = 1
    ) -> Iterator[Chunk]:
        """Lay a draw out in chunks: as many for each of `parts`, and every unit in one of them."""
        most = chunks_for(len(self.units), step.sampling_probability, self._chunk_units)
        least = max(most if self._pad_draws else 0, math.ceil(len(drawn) / self._chunk_units))
        least = math.ceil(least / parts) * parts
        for indices, present in physical_chunks(drawn, self._chunk_units, least)[part::parts]:
            yield self._chunk(indices, present)

    def _chunk(self, indices: NDArray[np.int64], present: NDArray[np.bool_]) -> Chunk:
        """Lay units out in a fixed shape where draws are padded, and tightly otherwise."""
        if not self._pad_draws:
            real = max(1, int(present.sum()))
            indices, present = indices[:real], present[:real]
        rows: list[Row] = []
        unit_B: list[int] = []
        for place, (index, real) in enumerate(zip(indices, present, strict=True)):
            own = self.units.rows[index] if real else (_ABSENT,)
            short = self.recipe.sequences_per_unit - len(own)
            missing = max(0, short) if self._pad_draws else 0
            rows.extend((*own, *[_ABSENT] * missing))
            unit_B.extend([place] * (len(own) + missing))
        layout = UnitLayout(torch.tensor(unit_B, device=self._device), len(indices))
        token_BT, target_BT = stack_rows(rows, self._length(rows))
        present_U = torch.from_numpy(present).to(self._device)
        return Chunk(token_BT.to(self._device), target_BT.to(self._device), layout, present_U)

    def _length(self, rows: Sequence[Row]) -> int:
        if self._pad_draws:
            return self.recipe.sequence_length
        return max(2, *(len(row.ids) - 1 for row in rows))


def _add_gradients(model: LanguageModel, chunk: Chunk, sums: Mapping[str, Tensor]) -> None:
    """Add the plain gradient of the sum of the units' losses to `sums`."""
    with gradients_into(trained_parameters(model), sums):
        loss_U = unit_losses(model, chunk)
        loss_U.where(chunk.present_U, 0.0).sum().backward()  # type: ignore[no-untyped-call]
